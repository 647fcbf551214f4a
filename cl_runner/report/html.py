"""Pages from the templates beside this file: each one self-contained document without network.

The page of several runs has a script of our own, which sorts and filters one table; without scripts it shows all rows.
"""

from __future__ import annotations

import base64
import functools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cl_runner.report.numbers import definition_of


class Embedded(NamedTuple):
    """A picture inside a page: its width there, in CSS pixels, and its bytes as an address."""

    width: int
    source: str


def embedded(path: Path) -> Embedded:
    """A PNG, to be shown at two thirds of its 150 pixels per inch, so that it is sharp on dense screens."""
    data = path.read_bytes()
    # The width stands in the header of a PNG file: bytes 16 to 19.
    width = round(int.from_bytes(data[16:20], "big") / 1.5)
    return Embedded(width, f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}")


def breakable(name: str) -> Markup:
    """A name that may go on in the next line after a slash, a full stop or an underscore."""
    return Markup("<wbr>").join(re.split(r"(?<=[/._])", name))


def meaning(name: str) -> str:
    """The definition of a number of a run, or the empty text for any other word."""
    try:
        return definition_of(name)
    except KeyError:
        return ""


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cl_runner.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"embedded": embedded, "breakable": breakable, "meaning": meaning}
    return environment


def render(template: str, **values: Any) -> str:
    """A whole page from a file in templates/; texts are escaped, and a value that is missing is an error."""
    return _environment().get_template(template).render(values)


def write(path: Path, text: str) -> Path:
    """Write a file so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
