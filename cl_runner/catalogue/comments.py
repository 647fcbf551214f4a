"""What the comments of an option's file say of each of its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from cl_runner.groups import file_of, starts_from


def meanings(option: str, folders: Sequence[Path] = ()) -> dict[str, list[str]]:
    """Key of group `method`, such as `ewc.strength`, -> what is said of it.

    What a file says itself comes last, and first what those say that it starts from.
    """
    found: dict[str, list[str]] = {}
    for start in starts_from(option, folders):
        for key, said in meanings(start, folders).items():
            found.setdefault(key, []).extend(said)
    for key, text in comments(file_of("method", option, folders).read_text(encoding="utf-8")).items():
        found.setdefault(key, []).append(text)
    return {key: list(dict.fromkeys(said)) for key, said in found.items()}


def comments(text: str) -> dict[str, str]:
    """Dotted key -> the comment of its value in a YAML: behind it, going on below it; or else above it."""
    lines = text.splitlines()
    found = {}
    for key, place in _values(yaml.compose(text), ""):
        said = [_comment(lines[place.last][place.end :])]
        for line in lines[place.last + 1 :]:
            if not _is_comment(line) or _indent(line) <= place.column:
                break
            said.append(_comment(line))
        if not any(said) and place.column:  # a comment above the first key is about the file
            for line in reversed(lines[: place.first]):
                if not _is_comment(line) or _indent(line) != place.column:
                    break
                said.insert(0, _comment(line))
        joined = " ".join(part for part in said if part)
        if joined:
            found[key] = joined
    return found


class _Place(NamedTuple):
    """Column and line of a key, and line and column of the end of its value; of a mapping in lines that of the key."""

    column: int
    first: int
    last: int
    end: int


def _values(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, _Place]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        in_lines = isinstance(value, yaml.CollectionNode) and not value.flow_style
        in_lines |= isinstance(value, yaml.ScalarNode) and value.style in ("|", ">")
        end = key.end_mark if in_lines else value.end_mark
        yield f"{prefix}{key.value}", _Place(key.start_mark.column, key.start_mark.line, end.line, end.column)
        yield from _values(value, f"{prefix}{key.value}.")


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _comment(text: str) -> str:
    """What stands behind the sign of a comment; a key's colon, or what begins a text in lines, may stand before it."""
    _, sign, said = text.partition("#")
    return said.strip() if sign else ""
