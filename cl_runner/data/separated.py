"""Rows of CSV and TSV files, read as they stand: what could be read in two ways is refused with its row."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from cl_runner.data.reader import Reader, Record

#: Of `quoting`: how quotes are read. backslash: \" is a quote, \\ a backslash, any other backslash stands for itself.
_QUOTING: dict[str, dict[str, Any]] = {
    "none": {"quoting": csv.QUOTE_NONE, "quotechar": None},
    "double": {"doublequote": True},
    "backslash": {"doublequote": False, "escapechar": "\\"},
}
_BACKSLASH = re.compile(r'\\["\\]|\\')
_OTHER_FORM = "Write quotes inside quoted cells twice, or the rows as JSON lines (.jsonl)"
_DELIMITERS = {";": "';'", "\t": "tab", ",": "','", "|": "'|'"}


class Options(Protocol):
    """How cells are told apart: config.TaskDefinition says what each option means."""

    @property
    def delimiter(self) -> str | None: ...
    @property
    def quoting(self) -> str | None: ...
    @property
    def header(self) -> bool | list[str]: ...
    @property
    def labels(self) -> Any: ...
    @property
    def label(self) -> str: ...


class AsTheEndingSays(NamedTuple):
    """The options of a file of which nothing is said."""

    delimiter: str | None = None
    quoting: str | None = None
    header: bool | list[str] = True
    labels: Any = None
    label: str = ""


class Separated(Reader):
    """A CSV or TSV file.

    The module csv does the reading, strictly: pandas fills up short rows, renames repeated columns and keeps text
    behind a closing quote, all without a word, and pyarrow names no row.

    Args:
        key: where the options stand in the configuration; None = they cannot be typed.
    """

    def __init__(
        self, path: Path, definition: Options, key: str | None, form: str, opened: Callable[[], IO[str]]
    ) -> None:
        super().__init__(path)
        self._definition, self._key, self._opened = definition, key, opened
        given = definition.delimiter or ("tab" if form == "tsv" else ",")
        self._delimiter = "\t" if given == "tab" else given
        self._quoting = definition.quoting or ("none" if form == "tsv" else "double")
        self._header: list[str] = []

    def raws(self) -> Iterator[list[str]]:
        """The cells of each row."""
        # Reviews are longer than the module's default limit of 131,072 characters more often than one thinks.
        csv.field_size_limit(sys.maxsize)
        lines: list[str] = []  # of the row that is read
        number, begins = 0, 1
        with self._opened() as file:
            given = self._noted(file, lines)
            reader = csv.reader(given, delimiter=self._delimiter, strict=True, **_QUOTING[self._quoting])
            try:
                for cells in reader:
                    if cells and not self._header:
                        self._header = self._named(cells)
                        if self._definition.header is True:
                            cells = []
                    if cells:
                        number += 1
                        self._check(cells, number, begins, lines)
                        yield cells
                    lines.clear()
                    begins = reader.line_num + 1
            except csv.Error as error:
                raise self._unreadable(error, number + 1, begins, lines) from None

    def parse(self, raws: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, Record]]:
        """Rows by the names of the columns."""
        for number, cells in raws:
            yield number, dict(zip(self._header, cells, strict=True))

    def _noted(self, file: IO[str], lines: list[str]) -> Iterator[str]:
        for line in file:
            lines.append(line)
            if self._quoting == "backslash":
                line = _BACKSLASH.sub(lambda match: match[0] if len(match[0]) == 2 else "\\\\", line)
            yield line

    def _named(self, first: list[str]) -> list[str]:
        """The names of the columns: of the first row, of the definition, or their numbers."""
        header = self._definition.header
        names = header if isinstance(header, list) else first
        if not header:
            names = [str(place) for place in range(1, len(first) + 1)]
        repeated = [column for column in names if column and names.count(column) > 1]
        if repeated:
            places = [str(place) for place, column in enumerate(names, 1) if column == repeated[0]]
            raise ValueError(
                f"{self.place} has {len(places)} columns that are called {repeated[0]!r} "
                f"(columns {' and '.join(places)}). Rename all but one of them"
            )
        return names

    def _check(self, cells: Sequence[str], number: int, begins: int, lines: Sequence[str]) -> None:
        """A row has as many cells as the header, and is not several rows that a quote joined."""
        if len(cells) != len(self._header):
            kind = "more" if len(cells) > len(self._header) else "fewer"
            raise ValueError(
                f"row {number} of {self.place} has {kind} cells than the header "
                f"({len(cells)}, the header has {len(self._header)}: {', '.join(self._header)})"
                f"{self._quoted_hint(lines)}"
            )
        if self._quoting == "none":
            quoted = sum(len(cell) > 1 and cell[0] == '"' == cell[-1] for cell in cells)
            if quoted:
                self.notes["rows with a cell in quotes, which are read as characters"] += 1
        elif len(lines) > 1:
            if self._definition.quoting is None and self._joined(lines):
                raise ValueError(
                    f"row {number} of {self.place} (lines {begins} to {begins + len(lines) - 1}) is several rows that "
                    f"a quote joins: each of its lines has a label of its own. "
                    f"If quotes are characters, type: {self._key}.quoting=none (or, if the lines belong to one "
                    f"text, {self._key}.quoting=double)"
                )
            self.notes["rows of several lines"] += 1

    def _joined(self, lines: Sequence[str]) -> bool:
        """Whether each line, its quotes read as characters, would be a row with a known label."""
        labels, label = self._definition.labels, self._definition.label
        if not isinstance(labels, dict) or label not in self._header:
            return False
        place = self._header.index(label)
        parts = [line.rstrip("\r\n").split(self._delimiter) for line in lines]
        return all(len(cells) == len(self._header) and cells[place].strip('"') in labels for cells in parts)

    def _quoted_hint(self, lines: Sequence[str]) -> str:
        if self._key is None:
            return ""
        text = "".join(lines)
        if self._quoting == "double" and '\\"' in text:
            return f'. If \\" is a quote inside a text, type: {self._key}.quoting=backslash'
        if self._quoting == "none" and '"' in text:
            return f". If quotes hold cells together, type: {self._key}.quoting=double"
        return ""

    def _unreadable(self, error: csv.Error, number: int, begins: int, lines: Sequence[str]) -> ValueError:
        """What to say of quotes that do not fit together."""
        where = f"row {number} of {self.place} (line {begins})" if self._header else f"the header of {self.place}"
        characters = f"If quotes are characters, type: {self._key}.quoting=none" if self._key else _OTHER_FORM
        hint = self._quoted_hint(lines) or f". {characters}"
        if "unexpected end of data" in str(error):
            return ValueError(f"{where} opens a quote that no row closes{hint}")
        if "expected after" in str(error):
            return ValueError(
                f"{where} goes on behind a closing quote; a quote inside a quoted cell is written twice{hint}"
            )
        return ValueError(f"{where} cannot be read ({error})")

    def advice(self, wanted: Sequence[str]) -> str:
        """What may be the reason if a wanted column is not there; empty if nothing suggests itself."""
        line = self._delimiter.join(self._header)
        key = self._key
        if line.startswith("sep="):
            return f"Its first line is Excel's: delete it, and type: \"{key}.delimiter='CHARACTER'\""
        if "\0" in line:
            return f"Every other character is NUL, as in UTF-16. Type: {key}.encoding=utf-16-le"
        for other, written in _DELIMITERS.items():
            cells = [cell.strip('"') for cell in line.split(other)]
            if other != self._delimiter and set(wanted) <= set(cells):
                value = written if written == "tab" else f'"{key}.delimiter={written}"'
                return f"Type: {key}.delimiter=tab" if written == "tab" else f"Type: {value}"
        cells = [cell.strip('" ') for cell in self._header]
        if set(wanted) <= set(cells) and self._quoting == "none":
            return f"If quotes hold cells together, type: {key}.quoting=double"
        if set(wanted) <= set(cells):
            return "Leave out the blanks around the names of its first line"
        folded = {cell.casefold() for cell in cells}
        if self._definition.header is True and not folded & {column.casefold() for column in wanted}:
            names = [*wanted, *(f"column_{place}" for place in range(len(wanted) + 1, len(self._header) + 1))]
            names = names[: len(self._header)]
            return (
                f"If its first line is no header, name its columns in their order: '{key}.header=[{','.join(names)}]'"
            )
        return ""
