"""Checks of single values, as they stand in the types of options, and the names of scores."""

from __future__ import annotations

from typing import Literal

from pydantic import AfterValidator

from cl_runner.registry import PartKind, find, load

#: Scores of weights; cl_runner/sparse/scores.py has their formulas.
Score = Literal[
    "fisher",
    "second_order",
    "gradient_over_fisher",
    "gradient_over_shifted_fisher",
    "gradient_over_shifted_root",
    "abs_grad",
    "magnitude",
    "random",
]


def checked_file_name(name: str) -> str:
    """A name that files are called by."""
    if len(name.encode()) > 200:
        raise ValueError(f"a name of at most 200 bytes, which files are called by, and not {len(name.encode())}")
    if set(name) == {"."}:
        raise ValueError("another name: files are called by it")
    if name == "start":
        raise ValueError("another name: `start` is the row before the first task")
    return name


def known(kind: PartKind, what: str) -> AfterValidator:
    """A name that the registry knows; what is the user's own is imported, so that its mistakes come out at once."""

    def check(name: str) -> str:
        try:
            place = find(kind, name)
            if not place.built_in and not callable(load(place)):
                raise ValueError(f"{place.module}.{place.name} is nothing that can be called")
        except ValueError as error:
            raise ValueError(f"{what} ({error})") from error
        return name

    return AfterValidator(check)


def checked_label_name(name: str) -> str:
    """A name that an answer can be."""
    if not name.strip():
        raise ValueError("the name of a label (null drops its rows): an empty answer is never right")
    return name


def checked_character(delimiter: str) -> str:
    """A delimiter."""
    if delimiter != "tab" and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
        raise ValueError("one character, or tab")
    return delimiter


def checked_encoding(name: str) -> str:
    """An encoding that Python knows."""
    try:
        "".encode(name)
    except LookupError:
        raise ValueError("an encoding that Python knows, such as utf-8, utf-16 or cp1252") from None
    return name


def checked_places(path: object) -> object:
    """One path as a list of places, each a list of paths that are read together."""
    places = [path] if isinstance(path, str) else path
    return [[one] if isinstance(one, str) else one for one in places] if isinstance(places, list) else places


def checked_columns(header: bool | list[str]) -> bool | list[str]:
    """Whether there is a header, or the names of its columns."""
    if isinstance(header, list) and (not header or len(set(header)) < len(header)):
        raise ValueError("true, false or the names of all columns, each another one")
    return header
