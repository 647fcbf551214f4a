"""Labelled texts from local files and data sets of the Hugging Face hub.

A row is kept as its prompt and its label's name. What a definition (conf/task) says of columns, labels and prompts is
checked here, and every mistake names the file or data set, the nearest right name and what to type.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_runner.config import TaskDefinition
from cl_runner.data.converters import Record, converted
from cl_runner.data.pictures import picture_column
from cl_runner.data.prompts import RESERVED, check_template, placeholders, prompt
from cl_runner.data.readers import check_archive, check_form, file_records


@dataclass(frozen=True, slots=True)
class Row:
    """A usable row of a source: its number there (from 1), its prompt, its label's name or its answer, its picture."""

    number: int
    prompt: str
    label: str
    picture: str = ""  # as the row names it


def local_path(definition: TaskDefinition, name: str, domain: str, split: str, variant: str | int | None) -> Path:
    """The file that holds `domain` and the source's own `split` by the definition task.<name>.

    Of several places it is the first where there is a file, or else the first.

    Raises:
        ValueError: the definition has no path, one asks for a variant that is not given, or one begins with the home
            folder (~) of an unknown user.
    """
    paths = _paths(definition, name, domain, split, variant)
    return next((path for path in paths if path.is_file()), paths[0])


def _paths(definition: TaskDefinition, name: str, domain: str, split: str, variant: str | int | None) -> list[Path]:
    """All places where the file may be."""
    given = [definition.path] if isinstance(definition.path, str) else definition.path
    if not given:
        raise ValueError(f"task.{name} reads files but has no path. Type: task.{name}.path=FOLDER/{{domain}}.csv")
    paths = []
    for path in given:
        if "{variant}" in path and variant is None:
            raise ValueError(
                f"task.{name}.path={path} holds {{variant}}, but the task order names no variant. "
                f"Type: task_order.variant=NAME"
            )
        try:
            home = str(Path(path).expanduser())
        except RuntimeError as error:
            raise ValueError(f"task.{name}.path={path}: {error}") from None
        for placeholder, value in (("domain", domain), ("split", split), ("variant", str(variant))):
            home = home.replace(f"{{{placeholder}}}", value)
        paths.append(Path(home))
    return paths


def read(definition: TaskDefinition, name: str, domain: str, split: str, variant: str | int | None) -> list[Row]:
    """The rows of a local file or hub split, those with a dropped label, no answer or no text left out.

    Args:
        definition: the node task.<name>.
        name: of the definition, for messages.
        domain: fills {domain} in the path or the hub configuration.
        split: the source's own name of the split; fills {split} in the path.
        variant: of the task order; fills {variant} in the path.

    Raises:
        ValueError: the source is missing, unreadable or without usable rows, a column or a label is unknown, or the
            prompt's template is mistaken.
    """
    if definition.source == "files":
        path = local_path(definition, name, domain, split, variant)
        places = _paths(definition, name, domain, split, variant)
        for place in places:
            check_form(place)
        if not path.is_file():
            raise ValueError(_missing(places, definition.download))
        try:
            return _rows(file_records(path, definition), definition, name, str(path))
        except ValueError:
            check_archive(path)
            raise
    where, records = _hub_records(definition, name, domain, split)
    return _rows(records, definition, name, where)


def _rows(records: Iterable[Record], definition: TaskDefinition, name: str, where: str) -> list[Row]:
    found: list[tuple[int, str, dict[str, str]]] = []
    columns: dict[str, None] = {}
    number = 0
    wanted = [column for column in placeholders(definition) if column not in RESERVED]
    shown = picture_column(definition, name)
    seen: dict[int, str] = {}
    for number, record in enumerate(records, start=1):
        columns.update(dict.fromkeys(record))
        text = _text(record, definition.text, number, where)
        raw = str(record.get(definition.label))
        if definition.labels is not None and raw not in definition.labels:
            if definition.label in columns:
                known = ", ".join(repr(value) for value in definition.labels)
                raise ValueError(
                    f"row {number} of {where} has the label {raw!r} in column {definition.label!r}; "
                    f"known: {known}. Add under task.{name}.labels: '{raw}': NAME "
                    f"(or '{raw}': null to drop such rows)"
                )
            continue
        if definition.labels is not None:
            label = definition.labels[raw]
        else:
            label = _answer(record, definition.label, number, where)
        cells = {column: _cell(record, column, number, where) for column in wanted if column in record}
        if label is not None and (text or any(cell.strip() for cell in cells.values())):
            found.append((number, label, {**cells, "text": text}))
            seen[number] = _cell(record, shown, number, where) if shown else ""
    if number == 0:
        raise ValueError(f"{where} holds no rows")
    _check_columns(columns, definition, name, where)
    check_template(definition, name, columns, where)
    if not found:
        raise ValueError(f"none of the {number} rows of {where} can be used: no text, or a label that is dropped")
    empty = dict.fromkeys(columns, "")
    return [Row(number, prompt(definition, {**empty, **cells}), label, seen[number]) for number, label, cells in found]


def _missing_cell(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _text(record: Record, columns: list[str], number: int, where: str) -> str:
    parts = []
    for column in columns:
        cell = record.get(column)
        if _missing_cell(cell):
            continue
        if not isinstance(cell, str):
            kind = type(cell).__name__
            raise ValueError(f"row {number} of {where}: column {column!r} holds {cell!r} ({kind}), not text")
        parts.append(cell.strip())
    return " ".join(part for part in parts if part)


def _cell(record: Record, column: str, number: int, where: str) -> str:
    """A text or number as it stands; a missing one is empty."""
    cell = record.get(column)
    if _missing_cell(cell):
        return ""
    if not isinstance(cell, str | int | float):
        kind = type(cell).__name__
        raise ValueError(f"row {number} of {where}: column {column!r} holds {cell!r} ({kind}), not text or a number")
    return str(cell)


def _answer(record: Record, column: str, number: int, where: str) -> str | None:
    """A free answer as it stands; None: there is none."""
    cell = _cell(record, column, number, where)
    return cell if cell.strip() else None


def _check_columns(columns: Iterable[str], definition: TaskDefinition, name: str, where: str) -> None:
    known = list(columns)
    wanted = [(column, f"task.{name}.text=[COLUMN]") for column in definition.text]
    shown = picture_column(definition, name)
    if shown:
        wanted.append((shown, f"task.{name}.picture=FOLDER/{{COLUMN}}"))
    for column, remedy in [*wanted, (definition.label, f"task.{name}.label=COLUMN")]:
        if column not in known:
            raise ValueError(
                f"{where} has no column {column!r}; it has: {', '.join(known)}.{_nearest(column, known)} Type: {remedy}"
            )


def _nearest(name: str, known: Iterable[str]) -> str:
    """' Nearest: ...' or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Nearest: {close[0]!r}." if close else ""


def _missing(paths: Sequence[Path], download: str | None) -> str:
    """What to say of a file that is in none of its places: how far the first path exists, and where to get it."""
    path = paths[0]
    parent, child = path.parent, path.name
    while not parent.is_dir() and parent != parent.parent:
        parent, child = parent.parent, parent.name
    near = _nearest(child, sorted(os.listdir(parent)) if parent.is_dir() else [])
    others = f" Nor is there {' or '.join(map(str, paths[1:]))}." if len(paths) > 1 else ""
    fetch = f" {download.strip().removesuffix('.')}." if download else ""
    remedy = "Set data_root=FOLDER, or CL_RUNNER_DATA, to the folder that holds the data sets."
    return f"{path} does not exist: {parent} holds no {child!r}.{near}{others}{fetch} {remedy}"


def _hub_records(definition: TaskDefinition, name: str, domain: str, split: str) -> tuple[str, list[Record]]:
    """How the data set is called in messages, and its first `max_rows` records."""
    if definition.dataset is None:
        raise ValueError(f"task.{name} reads the hub but names no data set. Type: task.{name}.dataset=OWNER/NAME")
    if definition.revision is None:
        raise ValueError(
            f"task.{name} must name the revision of {definition.dataset}, so that a run can be repeated. "
            f"Type: task.{name}.revision=COMMIT"
        )
    configuration = definition.configuration and definition.configuration.replace("{domain}", domain)
    where = f"{definition.dataset} ({configuration or 'default'}, {split}, {definition.revision[:12]})"

    import datasets

    try:
        stream = datasets.load_dataset(
            definition.dataset,
            configuration,
            split=split,
            revision=definition.revision,
            streaming=definition.max_rows is not None,
        )
        records = list(itertools.islice(stream, definition.max_rows))
    except Exception as error:  # the library raises its own, the hub client's and the HTTP client's errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the hub data set {where} cannot be read: {reason}. Check task.{name}.dataset, .configuration, "
            f".splits and .revision, and the network; without one, read a local copy with source=files"
        ) from None
    return where, list(converted(definition.convert, records, where))
