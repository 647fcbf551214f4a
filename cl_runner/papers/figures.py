"""The figures of the papers as data: what is drawn of which runs, the commands that make them, published points."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cl_runner.papers.measured import at_task
from cl_runner.papers.missing import Command, commands
from cl_runner.papers.names import unknown
from cl_runner.papers.protocol import names
from cl_runner.papers.published import GRADES, Cell, FigureData, Paper, Part, Published, papers
from cl_runner.papers.settings import of_tasks

#: What a figure draws -> what it reads of a run, in words.
READS = {
    "first_task": "scores after every task (accuracy.csv)",
    "importance": "importance that its method measured (fisher.json)",
    "keys_map": "keys of a method that retrieves (keys.safetensors)",
    "learned": "scores after every task (accuracy.csv)",
    "bars": "scores after the last task (accuracy.csv)",
    "similarity": "keys of a method that retrieves (keys.safetensors)",
    "ability": "scores after every task (accuracy.csv) and what a probe measured (ability.csv)",
    "selected": "which weights were selected to train (masks.json)",
    "overlap": "which weights two tasks selected (masks.json)",
    "representations": "hidden states at the start and at the end (probes/representations)",
}


@dataclass(frozen=True)
class Point:
    """A published number in a figure.

    Attributes:
        line: what the paper calls it.
        measure: the number, as of a run: average_accuracy, or ability/PROBE/NUMBER.
        tasks: of the order it belongs to.
        after: the task it was measured after.
        value: in the unit of a run's number.
        source: the table it stands in, and how it is known.
    """

    line: str
    measure: str
    tasks: tuple[str, ...]
    after: str
    value: float
    source: str


@dataclass(frozen=True)
class Figure:
    """A figure with what its paper says."""

    paper: str
    about: Paper
    data: FigureData

    @property
    def name(self) -> str:
        """As it is asked for: pe/3."""
        return f"{self.paper}/{self.data.number}"

    @functools.cached_property
    def runs(self) -> Published:
        """The cells whose commands make its runs, as a table."""
        return self._part(self.data.runs, self.data.make)

    @property
    def points(self) -> Iterator[Point]:
        """Its published numbers."""
        for part in self.data.published:
            table = self._part(part)
            for (row, _), cell in table.cells.items():
                if isinstance(cell.value, float | int) and cell.overrides is not None:
                    yield _point(table, row, cell, cell.value)

    def commands(self, exact: Collection[tuple[str, str]] = (), data_root: str | None = None) -> list[Command]:
        """The commands that make its runs, but for cells that there are exact runs of."""
        return commands(self.runs, exact, data_root, every=True)

    def _part(self, part: Part, make: str = "") -> Published:
        data = next(each for each in self.about.tables if each.number == part.table)
        columns = [each for each in data.columns if each.name in (part.columns or [each.name]) and not each.mean_of]
        places = [data.columns.index(each) for each in columns]
        rows = [
            row.model_copy(update={"values": tuple(row.values[place] for place in places)})
            for row in data.rows
            if row.name in (part.rows or [row.name])
        ]
        changed = {"columns": tuple(columns), "rows": tuple(rows), "make": f"{data.make} {make}"}
        return Published(self.paper, self.about, data.model_copy(update=changed))


def _point(table: Published, row: str, cell: Cell, value: float) -> Point:
    assert cell.overrides is not None
    tasks = names(of_tasks(cell.overrides))
    measure, after = at_task(cell.measure, tasks)
    shown = round(value / table.data.scale, 9)  # 0.372 / 0.01 is not 37.2 to the last bit
    return Point(row, measure, tuple(tasks), after or tasks[-1], shown, f"{table.name}, {GRADES[cell.grade]}")


def figures() -> list[Figure]:
    """All figures of all papers."""
    return [Figure(name, paper, data) for name, paper in papers().items() for data in paper.figures]


def figure(name: str, rest: Sequence[str] = ()) -> Figure:
    """A figure by its name.

    Args:
        rest: what was typed behind it, for the line to type.

    Raises:
        ValueError: there is none; with the nearest name and the line to type.
    """
    known = {each.name: each for each in figures()}
    if name in known:
        return known[name]
    raise unknown("figure", name, {each.name: each.data.title for each in known.values()}, rest)
