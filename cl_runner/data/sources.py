"""Labelled texts from local files and data sets of the Hugging Face hub.

Rows are read one after the other, and once there are many none of them stays in memory (spool.py). What a definition
(conf/task) says of columns, labels and prompts is checked here, and every mistake names the file or data set, the
nearest right name and what to type. Rows that are left out are counted by the reason.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cl_runner.config import TaskDefinition
from cl_runner.data import chats
from cl_runner.data.converters import DOCUMENTS, convert
from cl_runner.data.hub import hub_reader
from cl_runner.data.kept_rows import Rows
from cl_runner.data.labels import SCHEMA, check_schema, check_text, is_missing, meaning, shown
from cl_runner.data.pictures import picture_column
from cl_runner.data.places import all_paths, local_paths, missing, nearest
from cl_runner.data.prompts import RESERVED, check_template, label_names, placeholders
from cl_runner.data.reader import Reader, Record
from cl_runner.data.readers import check_archive, explained, form_of, reader_of
from cl_runner.data.vqa import VqaV2

Item = TypeVar("Item")

#: Why a row is left out.
NO_TEXT, NO_ANSWER, NO_LABEL = "no text", "no answer", "no label"
DROPPED, OVER = "dropped label", "over max_rows"
#: `convert` of the release whose files are joined, and hold all kinds of questions and, with another file, all splits.
JOINED = "vqa_v2"
_LACKING = "rows with an empty field"


@dataclass(frozen=True, slots=True)
class Source:
    """What was read of a source.

    Attributes:
        files: in order.
        rows: the usable ones, ascending.
        count: of all rows that it holds.
        left_out: rows by the reason.
        notes: what else is worth knowing, counted.
    """

    files: tuple[str, ...]
    rows: Rows
    count: int
    left_out: Counter[str]
    notes: Counter[str]


def read(
    definition: TaskDefinition, name: str, domain: str, split: str, variant: str | int | None, data_seed: int
) -> Source:
    """The rows of local files or of a hub split, those with a dropped label, no answer or no text left out.

    Args:
        definition: the node task.<name>.
        name: of the definition, for messages.
        domain: fills {domain} in the path or the hub configuration.
        split: the source's own name of the split; fills {split} in the path.
        variant: of the task order; fills {variant} in the path.
        data_seed: of the draw that max_rows asks for.

    Raises:
        ValueError: the source is missing, unreadable or without usable rows, a column or a label is unknown, or the
            prompt's template is mistaken.
    """
    if definition.source == "hub":
        readers: list[Reader] = [hub_reader(definition, name, domain, split)]
        return _Reading(definition, name, readers).source(f"{data_seed}/rows/{domain}/{split}")
    paths = found_files(definition, name, domain, split, variant)
    try:
        if definition.convert == JOINED:
            readers = [VqaV2(paths, domain, split)]
        else:
            readers = [reader_of(path, definition, name, split) for path in paths]
        return _Reading(definition, name, readers).source(f"{data_seed}/rows/{domain}/{split}")
    except ValueError:
        for path in paths:
            check_archive(path)
        raise


def found_files(
    definition: TaskDefinition, name: str, domain: str, split: str, variant: str | int | None
) -> list[Path]:
    """The files of a source, all of which are there and of a format that is read.

    Raises:
        ValueError: otherwise.
    """
    paths = local_paths(definition, name, domain, split, variant)
    if not all(path.exists() for path in paths):
        places = all_paths(definition, name, domain, split, variant)
        for path in (path for place in places for path in place):
            if path.suffix:
                form_of(path, definition, name)
        lacking = [next(path for path in place if not path.exists()) for place in places]
        raise ValueError(missing(lacking, definition.download))
    for path in paths:
        form_of(path, definition, name)
    return paths


def schema_labels(
    definition: TaskDefinition, name: str, domain: str, split: str, variant: str | int | None
) -> dict[str, str | None]:
    """The labels of a definition that takes them from the source's own schema (`labels: schema`).

    Raises:
        ValueError: the source has no schema that names them, or its files name them differently.
    """
    if definition.source == "hub":
        readers: list[Reader] = [hub_reader(definition, name, domain, split)]
    else:
        paths = found_files(definition, name, domain, split, variant)
        readers = [reader_of(path, definition, name, split) for path in paths]
    for reader in readers:
        if reader.class_names is None:
            raise ValueError(
                f"task.{name}.labels={SCHEMA} takes the names of labels from the schema, and {reader.place} has none "
                f"for a column {definition.label!r}: no ClassLabel of the library datasets. "
                f"Name them under task.{name}.labels: 'VALUE': NAME"
            )
        if reader.class_names != readers[0].class_names:
            raise ValueError(f"the schemas of {readers[0].place} and {reader.place} name other labels")
    # -1 stands for no label in data sets of the hub, and is refused as one that is unknown.
    return {str(number): label for number, label in enumerate(readers[0].class_names or [])}


class _Reading:
    """One source on its way from records to rows."""

    def __init__(self, definition: TaskDefinition, name: str, readers: list[Reader]) -> None:
        self._definition, self._name, self._readers = definition, name, readers
        self._labels = definition.labels if isinstance(definition.labels, dict) else {}
        self._columns: dict[str, None] = {}
        self._lacking: dict[str, str] = {}  # a wanted column -> the first row without it
        self._kinds: set[tuple[str, ...]] = set()  # fields of records that are as they should be
        self._at = ("", 0)  # the record that is looked at: its file, and its number there
        self._count = 0
        self._left_out: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._shown = picture_column(definition, name)
        self._chats = chats.are_asked(definition, name)
        self._filled = [column for column in placeholders(definition) if column not in RESERVED]
        wanted = [*definition.text, definition.label, *([self._shown] if self._shown else [])]
        self._wanted = list(dict.fromkeys(wanted))
        self._fields = list(dict.fromkeys([*wanted, *self._filled]))
        #: Fields of which a prompt is made, that may be empty where others are not.
        self._parts = [*(definition.text if len(definition.text) > 1 else []), *self._filled]

    def source(self, seed: str) -> Source:
        """Everything that is usable."""
        definition, name = self._definition, self._name
        if definition.convert is None:
            for reader in self._readers:
                check_schema(reader.class_names, definition, name, reader.place)
        files = {reader.place: number for number, reader in enumerate(self._readers)}
        rows = Rows(definition, list(files), label_names(definition))
        for _, unit, place, row, record in self._records(seed):
            self._at = (place, row)
            usable = self._usable(record)
            if usable is not None:
                rows.add(unit, files[place], row, *usable, record.get(chats.COLUMN) if self._chats else None)
        where = self._readers[0].place + (f" and {len(self._readers) - 1} more" if len(self._readers) > 1 else "")
        if self._count == 0:
            raise ValueError(f"{where} holds no rows")
        self._check_columns(where)
        check_template(definition, name, self._columns, where)
        if not rows:
            said = ", ".join(f"{reason} ({count})" for reason, count in self._left_out.items())
            raise ValueError(
                f"none of the {self._count} rows of {where} can be used: no text, or a label that is dropped: {said}"
            )
        rows.end(self._columns)
        for reader in self._readers:
            self._notes.update(reader.notes)
        return Source(tuple(r.place for r in self._readers), rows, self._count, self._left_out, self._notes)

    # Records

    def _records(self, seed: str) -> Iterator[tuple[int, int, str, int, Record]]:
        """Number, unit, file, number there and record of every row, or of `max_rows` drawn ones."""
        limit = self._definition.max_rows
        if self._definition.convert is not None:
            rows = self._counted(self._converted(self._definition.convert))
            yield from rows if limit is None else self._drawn(rows, limit, seed)
        elif limit is None:
            yield from self._counted(self._plain())
        else:
            raws = self._counted(
                (file, row, raw) for file in range(len(self._readers)) for row, raw in self._raws(file)
            )
            chosen = self._drawn(raws, limit, seed)
            for file, reader in enumerate(self._readers):
                own = [(number, row, raw) for number, at, row, raw in chosen if at == file]
                with self._explained(reader):
                    for (number, row, _), (_, record) in zip(
                        own, reader.parse((row, raw) for _, row, raw in own), strict=True
                    ):
                        yield number, number, reader.place, row, record

    def _explained(self, reader: Reader) -> Any:
        return explained(Path(reader.place), self._definition, self._name)

    def _raws(self, file: int) -> Iterator[tuple[int, Any]]:
        reader = self._readers[file]
        with self._explained(reader):
            yield from enumerate(reader.raws(), start=1)

    def _plain(self) -> Iterator[tuple[int, str, int, Record]]:
        for file, reader in enumerate(self._readers):
            with self._explained(reader):
                for row, record in reader.parse(self._raws(file)):
                    yield self._count + 1, reader.place, row, record

    def _converted(self, kind: str) -> Iterator[tuple[int, str, int, Record]]:
        """Rows of converted records; those of one record are one unit, but for documents."""
        before = 0
        for file, reader in enumerate(self._readers):
            with self._explained(reader):
                row = number = 0
                records = reader.parse(self._raws(file))
                options = {"turns": self._definition.turns} if self._chats else {}
                for row, (number, record) in enumerate(convert(kind, records, reader.place, **options), start=1):
                    unit = self._count + 1 if kind in DOCUMENTS else before + number
                    yield unit, reader.place, row, record
                before += number

    def _counted(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Rows with their number before them."""
        for row in rows:
            self._count += 1
            yield (self._count, *row)

    def _drawn(self, rows: Iterable[Item], limit: int, seed: str) -> list[Item]:
        """`limit` rows by chance, each as likely, in their order; fewer rows are a part of those of a larger limit.

        A row's key depends on its number alone, so that all formats of one data set draw the same rows. Only `random()`
        is used: its numbers are the same in every version of Python.
        """
        generator = random.Random(seed)
        kept: list[tuple[float, int, Item]] = []
        for number, row in enumerate(rows):
            key = -generator.random()
            if len(kept) < limit:
                heapq.heappush(kept, (key, number, row))
            elif key > kept[0][0]:
                heapq.heapreplace(kept, (key, number, row))
        over = self._count - len(kept)
        if over:
            self._left_out[OVER] = over
        return [row for _, _, row in sorted(kept, key=lambda one: one[1])]

    # Rows

    @property
    def _where(self) -> str:
        """The row that is looked at, for messages."""
        return f"row {self._at[1]} of {self._at[0]}"

    def _usable(self, record: Record) -> tuple[str, dict[str, str], str] | None:
        """Label or answer, the cells that a prompt is made of, and the picture's name; None: the row is left out."""
        definition = self._definition
        self._check_fields(record)
        text = self._text(record)
        label: str | None = None
        if definition.labels is None:
            label = self._cell(record, definition.label)
        elif definition.label in self._columns:
            cell = record.get(definition.label)
            label = None if is_missing(cell) else self._labels.get(str(cell))
            if label is None:
                label = meaning(cell, definition, self._name, self._where)
        cells = {column: self._cell(record, column) for column in self._filled if column in record}
        if label is None:
            cell = record.get(definition.label)
            self._left_out[NO_LABEL if is_missing(cell) or not str(cell).strip() else DROPPED] += 1
        elif not label.strip():
            self._left_out[NO_ANSWER] += 1
        elif not text and not any(cell.strip() for cell in cells.values()):
            self._left_out[NO_TEXT] += 1
        else:
            if any(record.get(column, "") == "" or is_missing(record[column]) for column in self._parts):
                self._notes[_LACKING] += 1
            return label, {**cells, "text": text}, self._cell(record, self._shown) if self._shown else ""
        return None

    def _check_fields(self, record: Record) -> None:
        """A wanted field that some rows have is there in all of them, unless the definition says otherwise."""
        kind = tuple(record)
        if kind in self._kinds:
            return
        self._columns.update(dict.fromkeys(record))
        for column in self._fields:
            if column not in record and column not in self._lacking:
                held = shown(record)
                said = f"{self._where} has no field {column!r}, which other rows have; it holds: {held}"
                self._lacking[column] = f"{said}.{nearest(column, record)}"
        if self._definition.missing_fields == "refuse":
            for column, said in self._lacking.items():
                if column in self._columns:
                    raise ValueError(
                        f"{said} Give it one, null where there is nothing to say, or type: "
                        f"task.{self._name}.missing_fields=empty"
                    )
        self._kinds.add(kind)

    def _text(self, record: Record) -> str:
        parts = []
        for column in self._definition.text:
            cell = record.get(column)
            if is_missing(cell):
                continue
            if not isinstance(cell, str):
                kind = type(cell).__name__
                said = f"{self._where}: column {column!r} holds {cell!r} ({kind}), not text"
                raise ValueError(f"{said}{self._chat_hint(cell)}")
            if not cell.isascii():
                check_text(cell, f"{self._where}: column {column!r}")
            parts.append(cell.strip())
        return " ".join(part for part in parts if part)

    def _chat_hint(self, cell: Any) -> str:
        key = f"task.{self._name}"
        if not chats.looks_like_chat(cell):
            return ""
        columns = f"'{key}.text=[text]' {key}.label=answer"
        return (
            f". It is a chat. Type: {key}.convert=chats {columns} backbone.chat_template=true "
            f"(or {key}.convert=messages {columns}: its turns as plain text)"
        )

    def _cell(self, record: Record, column: str) -> str:
        """A text or number as it stands; a missing one is empty."""
        cell = record.get(column)
        if is_missing(cell):
            return ""
        if not isinstance(cell, str | int | float):
            kind = type(cell).__name__
            said = f"{self._where}: column {column!r} holds {cell!r} ({kind}), not text or a number"
            raise ValueError(f"{said}{self._chat_hint(cell)}")
        text = str(cell)
        if not text.isascii():
            check_text(text, f"{self._where}: column {column!r}")
        return text

    def _check_columns(self, where: str) -> None:
        known, name = list(self._columns), self._name
        remedies = dict.fromkeys(self._definition.text, f"task.{name}.text=[COLUMN]")
        if self._shown:
            remedies[self._shown] = f"task.{name}.picture=FOLDER/{{COLUMN}}"
        remedies[self._definition.label] = f"task.{name}.label=COLUMN"
        for column, remedy in remedies.items():
            if column not in self._columns:
                advice = self._readers[0].advice(self._wanted) or f"Type: {remedy}"
                raise ValueError(
                    f"{where} has no column {column!r}; it has: {shown(known)}.{nearest(column, known)} {advice}"
                )
