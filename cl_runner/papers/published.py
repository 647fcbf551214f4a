"""The published tables as data: every cell's number, how it is known, its protocol, and the run that would make it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cl_runner.papers.names import unknown

HERE = Path(__file__).parent
#: How a number is known -> what a reader is told of it.
GRADES = {
    "paper": "read in the paper's text",
    "copy": "read in a copy of the paper's text",
    "code": "read in released code, logs or files",
    "later": "read in a later paper of the same authors",
    "memory": "from memory: verify it before printing",
}
#: Signs behind a published number.
UNVERIFIED, WRONG = "?", "!"

Grade = Literal["paper", "copy", "code", "later", "memory"]
Counts = int | dict[str, int]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Protocol(_Part):
    """How a cell was measured, as far as the paper says it. What is no number is for people.

    Attributes:
        train, test: examples of every task, or by task; of `base` and `incremental` ones.
        metric: of each task, by the name that it has here where that is the same.
        formula: from the tasks' scores to the cell.
        seeds: runs that the cell is a mean of; None = not said.
    """

    backbone: str = ""
    data: str = ""
    cut: str = ""
    train: Counts | None = None
    test: Counts | None = None
    order: str = ""
    metric: str = ""
    epochs: int | str = ""
    selection: str = ""
    formula: str = ""
    seeds: int | None = None

    def over(self, other: Protocol) -> Protocol:
        """This one, with what `other` says in its place."""
        return self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})


class _Line(_Part):
    """What a column and a row have in common.

    Attributes:
        make: overrides of the run, behind those of the table.
        none: why no run of this project makes it.
        bound: what its order is joined with.
        suffix: behind the name of its order.
        measure: the number of a run, see cl_runner/papers/measured.py; of a column with `{row}` for the row's name.
        after: of a number that a probe measured: after which task, `start`, or each task's `own` or `before` it.
    """

    name: str
    make: str = ""
    none: str = ""
    bound: Literal["", "joint", "single_task"] = ""
    suffix: str = ""
    measure: str = ""
    after: str = ""
    protocol: Protocol = Protocol()


class Column(_Line):
    """A column; `mean_of` names the columns that it is the mean of."""

    mean_of: tuple[str, ...] = ()


class Row(_Line):
    """A row: a value of each column, as printed; None where the paper has none."""

    values: tuple[float | str | None, ...]
    grade: Grade | None = None
    grades: dict[str, Grade] = {}
    note: str = ""


class Misprint(_Part):
    """What is known to be wrong with cells, as printed; no rows or columns: all of them."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    text: str


class TableData(_Part):
    """A table as its file says it.

    Attributes:
        number: the paper's, or ours where `printed` is false.
        transposed: whether rows and columns change places in print.
        scale: what a run's number is multiplied by, to be as printed.
        deviates: what the runs of `make` do otherwise than the paper, or do not know of it.
    """

    number: int
    printed: bool = True
    title: str
    decimals: int = 2
    transposed: bool = False
    scale: float = 1.0
    grade: Grade | None = None
    make: str = ""
    none: str = ""
    measure: str = ""
    protocol: Protocol = Protocol()
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    errors: tuple[Misprint, ...] = ()
    remarks: tuple[str, ...] = ()
    deviates: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> TableData:
        rows, columns = [row.name for row in self.rows], [column.name for column in self.columns]
        for names in (rows, columns):
            if len(set(names)) < len(names):
                raise ValueError(f"table {self.number}: a name is there twice among {names}")
        for row in self.rows:
            if len(row.values) != len(columns):
                raise ValueError(
                    f"table {self.number}, row {row.name}: {len(row.values)} values, {len(columns)} columns"
                )
        named = {name for column in self.columns for name in column.mean_of}
        named |= {name for row in self.rows for name in row.grades} | {c for e in self.errors for c in e.columns}
        unknown = named - set(columns) | {name for error in self.errors for name in error.rows} - set(rows)
        if unknown:
            raise ValueError(f"table {self.number} has no {', '.join(sorted(unknown))}")
        return self


class Part(_Part):
    """Cells of a table of the same paper; no rows or columns: all of them."""

    table: int
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


class Level(_Part):
    """A published value that belongs to no run's line, such as the untouched model's.

    Attributes:
        measure: the number whose panel it stands in, as in a table.
        value: in the unit of a run's number.
    """

    measure: str
    value: float
    text: str
    grade: Grade


class FigureData(_Part):
    """A figure as its file says it.

    Attributes:
        draws: what is drawn of runs, see cl_runner/papers/pictures.py.
        runs: the cells whose commands make its runs.
        make: overrides behind those of the cells.
        published: cells whose numbers are drawn beside.
        remarks: what is known of it in words.
        deviates: what is drawn here otherwise than in the paper.
    """

    number: int
    title: str
    draws: Literal[
        "first_task",
        "importance",
        "keys_map",
        "learned",
        "bars",
        "similarity",
        "ability",
        "selected",
        "overlap",
        "representations",
    ]
    runs: Part
    make: str = ""
    published: tuple[Part, ...] = ()
    level: Level | None = None
    remarks: tuple[str, ...] = ()
    deviates: tuple[str, ...] = ()


class OtherData(_Part):
    """Tables and figures of a paper that hold no number of a run that is here: settings, drawings, what was not read.

    Attributes:
        tables, figures: their numbers in the paper; none of both: `place` says where they stand.
        none: why there is no line that shows it, such as a drawing.
        runs: overrides of the runs that it is about, several values by commas.
        shown: what is typed behind the program's name to see it.
    """

    title: str
    tables: tuple[int, ...] = ()
    figures: tuple[int, ...] = ()
    place: str = ""
    none: str = ""
    runs: tuple[str, ...] = ()
    shown: str = ""

    @model_validator(mode="after")
    def _says_it(self) -> OtherData:
        if bool(self.none) == bool(self.shown):
            raise ValueError(f"{self.title}: either a line that shows it, or why there is none")
        return self


class Paper(_Part):
    """A paper's file: `missing` says which of its numbers are not here.

    Attributes:
        has: how many tables and figures the paper has; None = not all of them are listed.
    """

    title: str
    source: str
    grade: Grade
    has: dict[Literal["tables", "figures"], int] | None = None
    missing: tuple[str, ...] = ()
    protocol: Protocol = Protocol()
    tables: tuple[TableData, ...]
    figures: tuple[FigureData, ...] = ()
    others: tuple[OtherData, ...] = ()

    @model_validator(mode="after")
    def _has_them(self) -> Paper:
        of = {data.number: data for data in self.tables}
        for figure in self.figures:
            for part in (figure.runs, *figure.published):
                table = of[part.table]
                lacking = set(part.rows) - {line.name for line in table.rows}
                lacking |= set(part.columns) - {line.name for line in table.columns}
                if lacking:
                    raise ValueError(f"figure {figure.number}: table {part.table} has no {', '.join(sorted(lacking))}")
        return self

    @model_validator(mode="after")
    def _has_all(self) -> Paper:
        """Of a paper that says how many it has, every table and figure is here once."""
        for kind, count in (self.has or {}).items():
            listed = [number for other in self.others for number in getattr(other, kind)]
            listed += [each.number for each in getattr(self, kind) if getattr(each, "printed", True)]
            if sorted(listed) != list(range(1, count + 1)):
                raise ValueError(f"of {count} {kind} these are here: {sorted(listed)}")
        return self


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        value: as printed; None = the paper has none.
        errors: what is known to be wrong with it.
        overrides: of the run that makes it; None = no run does, and `none` says why.
        measure: the number of that run; empty for a mean of other columns.
    """

    row: Row
    column: Column
    value: float | str | None
    grade: Grade
    errors: tuple[str, ...]
    protocol: Protocol
    overrides: tuple[str, ...] | None
    none: str
    measure: str
    after: str


@dataclass(frozen=True)
class Published:
    """A table with what its paper says of all of them."""

    paper: str
    about: Paper
    data: TableData

    @property
    def name(self) -> str:
        """As it is asked for: pe/1."""
        return f"{self.paper}/{self.data.number}"

    @property
    def in_the_paper(self) -> str:
        """The number that the paper gives it."""
        return f"table {self.data.number}" if self.data.printed else "numbered here"

    @functools.cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """Every cell by the names of its row and its column."""
        return {
            (row.name, column.name): self._cell(row, column, value)
            for row in self.data.rows
            for column, value in zip(self.data.columns, row.values, strict=True)
        }

    def _cell(self, row: Row, column: Column, value: float | str | None) -> Cell:
        data = self.data
        errors = tuple(
            error.text
            for error in data.errors
            if row.name in (error.rows or [row.name]) and column.name in (error.columns or [column.name])
        )
        none = row.none or column.none or data.none
        made = overrides(data.make, column.make, row.make, bound=row.bound or column.bound, suffix=row.suffix)
        return Cell(
            row=row,
            column=column,
            value=value,
            grade=row.grades.get(column.name) or row.grade or data.grade or self.about.grade,
            errors=errors,
            protocol=self.about.protocol.over(data.protocol).over(column.protocol).over(row.protocol),
            overrides=None if none or column.mean_of else made,
            none=none,
            measure="" if column.mean_of else row.measure or column.measure.format(row=row.name) or data.measure,
            after=row.after,
        )

    def text(self, cell: Cell) -> str:
        """A published number as printed, with its signs; empty where the paper has none."""
        if cell.value is None:
            return "-"
        shown = cell.value if isinstance(cell.value, str) else f"{cell.value:.{self.data.decimals}f}"
        return shown + UNVERIFIED * (cell.grade == "memory") + WRONG * bool(cell.errors)


def overrides(*parts: str, bound: str = "", suffix: str = "") -> tuple[str, ...]:
    """What is typed for a run, of parts of which a later one wins.

    Args:
        bound: an option of group `task_order` that the order is joined with.
        suffix: behind the order's name.
    """
    chosen: dict[str, str] = {}
    for word in " ".join(parts).split():
        key, _, value = word.partition("=")
        chosen[key] = value
    if "task_order" in chosen:
        chosen["task_order"] += suffix
    if bound and "task_order" in chosen:
        chosen["task_order"] = f"[{chosen['task_order']},{bound}]"
    return tuple(f"{key}={value}" for key, value in chosen.items())


@functools.cache
def papers() -> Mapping[str, Paper]:
    """Every paper by its name."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for path in sorted(HERE.glob("*.yaml")):
        found[path.stem] = Paper.model_validate(yaml.load(path.read_text(encoding="utf-8"), loader))
    return found


def tables() -> list[Published]:
    """All tables of all papers."""
    return [Published(name, paper, data) for name, paper in papers().items() for data in paper.tables]


def table(name: str, rest: Sequence[str] = ()) -> Published:
    """A table by its name.

    Args:
        rest: what was typed behind it, for the line to type.

    Raises:
        ValueError: there is none; with the nearest name and the line to type.
    """
    known = {each.name: each for each in tables()}
    if name in known:
        return known[name]
    raise unknown("table", name, {each.name: each.data.title for each in known.values()}, rest)
