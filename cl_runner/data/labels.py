"""What a cell of the label's column means: the names of a definition, or those of the file's own schema."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from cl_runner.config import TaskDefinition

#: The value of `labels` that takes the names from the schema.
SCHEMA = "schema"
#: A key of `labels` for rows that have none: only to drop them.
NONE = ""


def is_missing(cell: Any) -> bool:
    """Whether a cell is empty: null, or not a number."""
    return cell is None or (isinstance(cell, float | Decimal) and cell != cell)


def check_text(text: str, what: str) -> None:
    """A text can be written as UTF-8.

    Args:
        what: the row and the column, for the message.

    Raises:
        ValueError: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start : error.start + 1]
        raise ValueError(
            f"{what} holds half a character, {half!a} at place {error.start + 1}: one of two escapes that belong "
            "together is missing, as where a text was cut between them. Mend or leave out that row"
        ) from None


def alike(text: str) -> str:
    """What texts that look the same have in common.

    Composed Unicode (NFC) without invisible characters, any white space as one blank, none at the ends.
    """
    seen = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return " ".join(seen.split())


def shown(names: Iterable[object]) -> str:
    """Names in a row, those that cannot be seen with their escapes."""
    return ", ".join(name if name.isprintable() else ascii(name) for name in map(str, names))


def check_names(names: Iterable[str], what: str) -> None:
    """No two names look the same.

    Args:
        what: whose they are, for the message.

    Raises:
        ValueError: two differ in Unicode form, invisible characters or white space only.
    """
    known: dict[str, str] = {}
    for name in dict.fromkeys(names):
        other = known.setdefault(alike(name), name)
        if other != name:
            raise ValueError(
                f"{what} are called {other!r} and {name!r}, which differ in {difference(other, name)} only "
                f"({other!a} and {name!a}). Write both in the same way"
            )


def check_keys(labels: Mapping[str, str | None], what: str) -> None:
    """No two values that look the same mean different labels.

    Raises:
        ValueError: two do.
    """
    known: dict[str, str] = {}
    for key in labels:
        other = known.setdefault(alike(key), key)
        if labels[other] != labels[key]:
            raise ValueError(
                f"{what} gives {other!a} and {key!a}, which differ in {difference(other, key)} only, "
                f"two meanings: {labels[other]!r} and {labels[key]!r}. Give both the same"
            )


def difference(one: str, other: str) -> str:
    """In what two texts that look the same differ."""
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "Unicode form"
    return "white space" if "".join(one.split()) == "".join(other.split()) else "invisible characters"


def meaning(cell: Any, definition: TaskDefinition, name: str, where: str) -> str | None:
    """The label's name of a cell; None: such rows are dropped. The definition has labels.

    Args:
        name: of the definition, for messages.
        where: the row, for messages.

    Raises:
        ValueError: the label is unknown, or there is none and nothing says that such rows are dropped.
    """
    labels = definition.labels
    assert isinstance(labels, dict)
    raw = str(cell)
    if is_missing(cell) or (not raw.strip() and raw not in labels):
        if NONE in labels and labels[NONE] is None:
            return None
        raise ValueError(
            f"{where} has no label in column {definition.label!r}. Give it one, "
            f"or add under task.{name}.labels: '': null, to leave out rows without a label"
        )
    if raw in labels:
        return labels[raw]
    check_text(raw, f"{where}: column {definition.label!r}")
    known = ", ".join(map(repr, labels))
    close = [key for key in labels if alike(key) == alike(raw)]
    if close:
        raise ValueError(
            f"{where} has the label {raw!r} in column {definition.label!r}, which differs from the known {close[0]!r} "
            f"in {difference(raw, close[0])} only: {raw!a} and {close[0]!a}. "
            f"Add it as it stands in the file under task.{name}.labels, in double quotes: "
            f'"{_escaped(raw)}": {labels[close[0]] or "null"}'
        )
    raise ValueError(
        f"{where} has the label {raw!r} in column {definition.label!r}; known: {known}. "
        f"Add under task.{name}.labels: '{raw}': NAME (or '{raw}': null to drop such rows)"
    )


def _escaped(text: str) -> str:
    """As it may stand between double quotes in YAML, which reads the same escapes as Python."""
    return ascii(text)[1:-1].replace('"', '\\"')


def class_names(features: Any, column: str) -> list[str] | None:
    """The names that a schema of the library datasets gives to the numbers of a column; None if it names none."""
    names = getattr((features or {}).get(column), "names", None)
    return list(names) if names else None


def check_schema(names: Sequence[str] | None, definition: TaskDefinition, name: str, where: str) -> None:
    """What a definition says of labels agrees with the names that the source itself has for them.

    Args:
        names: of the schema; None = it names no classes.

    Raises:
        ValueError: labels stand for numbers that have names, or the definition gives those names to other numbers.
    """
    if names is None:
        return
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if definition.labels is None:
        raise ValueError(
            f"column {definition.label!r} of {where} holds numbers, which its schema names: {listed}. With "
            f"task.{name}.labels null the numbers would be the answers. Type: task.{name}.labels=schema"
        )
    if isinstance(definition.labels, Mapping):
        own = {str(number): alike(label).casefold() for number, label in enumerate(names)}
        given = {key: alike(label).casefold() for key, label in definition.labels.items() if label is not None}
        moved = [key for key in given if given[key] in own.values() and own.get(key, given[key]) != given[key]]
        if moved:
            raise ValueError(
                f"task.{name}.labels calls {moved[0]} {definition.labels[moved[0]]!r}, and the schema of {where} calls "
                f"it {names[int(moved[0])]!r}: {listed}. Type: task.{name}.labels=schema"
            )
