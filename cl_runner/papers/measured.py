"""Which runs fill which cells of a published table, with what they measured and what sets them apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cl_runner.intervals import draw, interval
from cl_runner.matrix import START
from cl_runner.papers.protocol import differences, distance, names
from cl_runner.papers.published import Cell, Published
from cl_runner.papers.settings import configuration, method_nodes
from cl_runner.report.folder import Run
from cl_runner.report.grouping import Group, group_runs, names_of
from cl_runner.report.numbers import values_of

#: Numbers of a finished run that tables of papers show and no report names -> from what it notes of its tasks.
COSTS_OF_TABLES: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], float]] = {
    "model_bytes": lambda tasks: tasks[-1]["model_bytes"],
    "stored_share/later_tasks": lambda tasks: float(np.mean([task["stored_share_percent"] for task in tasks[1:]])),
}
#: Place of a cell: names of its row and column.
Place = tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """What one group of runs has to say of a cell.

    Attributes:
        mean: of the runs, as printed.
        low, high: the 95 % interval; None where it is not known.
        differs: from the cell's protocol; empty = nothing does.
    """

    mean: float
    low: float | None
    high: float | None
    runs: tuple[Run, ...]
    differs: tuple[str, ...]


@dataclass
class Filling:
    """A table with runs in it.

    Attributes:
        cells: of each cell its groups of runs, those nearest to its protocol first.
        beside: columns of orders that the table has not, behind its own.
        unplaced: why other runs fill no cell.
    """

    cells: dict[Place, list[Measured]] = field(default_factory=dict)
    beside: dict[str, dict[str, list[Measured]]] = field(default_factory=dict)
    unplaced: list[str] = field(default_factory=list)

    @property
    def exact(self) -> set[Place]:
        """Cells that have runs from which nothing differs."""
        return {place for place, several in self.cells.items() if any(not each.differs for each in several)}


@dataclass(frozen=True)
class Nearest:
    """The cells whose commands have the methods of a group of runs, those of the nearest settings.

    Attributes:
        cells: the setting that a command asks for -> its cells.
        among: whether the order of the runs is one of the table's.
    """

    cells: Mapping[tuple[str, ...], Sequence[tuple[Place, Cell]]]
    among: bool


def fill(table: Published, runs: Sequence[Run]) -> Filling:
    """Put runs into the cells whose method and order they have; each difference in anything else is named."""
    found = Filling()
    for group in group_runs(runs):
        _place(table, group, found)
    for lists in (found.cells, *found.beside.values()):
        for several in lists.values():  # type: ignore[attr-defined]
            several.sort(key=lambda each: (len(each.differs), -len(each.runs)))
    _means(table, found)
    return found


def nearest_cells(table: Published, run: Run) -> Nearest | None:
    """Where a run belongs in a table, by its methods and its order; None where no row has its methods."""
    nodes = frozenset(run.config["method"])
    cells: dict[tuple[str, ...], list[tuple[Place, Cell]]] = {}
    for place, cell in table.cells.items():
        if cell.overrides is not None and cell.measure:
            cells.setdefault(cell.overrides, []).append((place, cell))
    able = [
        each for each in cells if method_nodes(each) == nodes and _bounds(configuration(each)) == _bounds(run.config)
    ]
    if not able:
        return None
    among = [each for each in able if names(configuration(each)) == names(run.config)]
    ranked = {each: distance(run, configuration(each)) for each in among or able}
    nearest = [each for each in ranked if ranked[each] == min(ranked.values())]
    return Nearest({each: cells[each] for each in (nearest if among else nearest[:1])}, bool(among))


def _place(table: Published, group: Group, found: Filling) -> None:
    run = group.runs[0]
    name, nearest = names_of(run), nearest_cells(table, run)
    if nearest is None:
        chain = ", ".join(run.config["method"])
        found.unplaced.append(f"{_folder(group)}: no row of {table.name} has the method {name['method']} ({chain})")
        return
    placed = False
    for setting, cells in nearest.cells.items():
        for (row, column), cell in cells:
            measured = _measured(table, group, cell, configuration(setting), nearest.among)
            if measured is None:
                continue
            placed = True
            if nearest.among:
                found.cells.setdefault((row, column), []).append(measured)
            else:
                several = sum(place[0] == row for place, _ in cells) > 1
                label = f"{column}, {name['task_order']}" if several else name["task_order"]
                found.beside.setdefault(label, {}).setdefault(row, []).append(measured)
    if not placed:
        found.unplaced.append(f"{_folder(group)}: it did not measure what {table.name} shows")


def _folder(group: Group) -> str:
    more = len(group.runs) - 1
    return f"{group.runs[0].folder}" + (f" and {more} more" if more else "")


def _bounds(config: Mapping[str, Any]) -> tuple[bool, bool]:
    order = config["task_order"]
    return bool(order.get("joint")), bool(order.get("restart"))


def _measured(table: Published, group: Group, cell: Cell, setting: Mapping[str, Any], among: bool) -> Measured | None:
    """None where no run of the group has the number."""
    values = {run.folder: number_of(run, cell.measure, cell.after) for run in group.runs}
    runs = tuple(run for run in group.runs if values[run.folder] is not None)
    if not runs:
        return None
    scale = table.data.scale
    numbers = [scale * float(values[run.folder] or 0.0) for run in runs]
    bounds = over_runs(numbers) if len(runs) > 1 else of_a_run(runs[0], cell.measure)
    if len(runs) == 1 and bounds is not None:
        bounds = (scale * bounds[0], scale * bounds[1])
    low, high = bounds or (None, None)
    apart = differences(runs, setting, cell.protocol, cell.measure, among)
    return Measured(float(np.mean(numbers)), low, high, runs, apart)


def over_runs(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of independent runs, of at least two."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def of_a_run(run: Run, measure: str) -> tuple[float, float] | None:
    """The 95 % bootstrap interval over the test examples of one run; None where it is not known."""
    if measure in run.intervals:
        low, high = run.intervals[measure]
        return low, high
    kind, _, task = measure.partition("/")
    if kind not in ("last", "own") or task not in run.tasks:
        return None
    row = run.done if kind == "last" else run.tasks.index(task) + 1
    scores = run.scores.get(row, {}).get(task)
    if scores is None or not len(scores):
        return None
    low, high = interval(draw([scores[None]])[:, 0, 0]).tolist()
    return low, high


def number_of(run: Run, measure: str, after: str = "") -> float | None:
    """A number of a run; None where it has none.

    Args:
        measure: a name of `values_of`, or last/TASK (score after the last task), own/TASK (right after the task),
            retrieval/TASK (votes of the keys), key_minutes/TASK (training them), milliseconds/PART/TASK (one answer's
            retrieval, answer or sum of both), milliseconds/share/TASK (of retrieval, percent), one of
            `COSTS_OF_TABLES`, ability/PROBE/NUMBER, with @TASK after that task and not the last.
        after: of an ability: `start`, a task, or `own` and `before` of the task that the measure ends with.
    """
    kind, _, rest = measure.partition("/")
    if kind in ("last", "own") and rest in run.tasks:
        place = run.tasks.index(rest)
        return _number(run.rows[run.done if kind == "last" else place + 1, place])
    if kind == "retrieval":
        return run.retrieval_accuracy.get(rest)
    if kind == "key_minutes":
        seconds = {str(task["name"]): task["phases"].get("keys") for task in run.details}.get(rest)
        return None if seconds is None else seconds / 60
    if kind == "milliseconds":
        return _milliseconds(run, *rest.split("/", 1))
    if kind == "ability":
        return _ability(run, rest, after)
    if measure in COSTS_OF_TABLES:
        return COSTS_OF_TABLES[measure](run.details) if len(run.details) > 1 else None
    return values_of(run).get(measure)


def _milliseconds(run: Run, part: str, task: str) -> float | None:
    """What an answer of a model that retrieves takes, as the method timed it after the last task."""
    timed = (run.retrieval[-1] if run.retrieval else {}).get("timing", {}).get(task)
    if timed is None:
        return None
    if part == "share":
        return float(timed["retrieval_share_percent"])
    return float(sum(timed[f"{each}_ms"] for each in (("retrieval", "answer") if part == "sum" else (part,))))


def at_task(measure: str, steps: Sequence[str]) -> tuple[str, str]:
    """A measure, and the one of some steps that it says it is taken after; names of numbers hold @ as well (pass@1)."""
    name, _, step = measure.rpartition("@")
    return (name, step) if step in steps else (measure, "")


def _ability(run: Run, name: str, after: str) -> float | None:
    columns, rows = run.ability
    steps = [START, *run.tasks]
    name, task = at_task(name, steps)
    if after in ("own", "before"):
        own = name.rpartition("/")[2]
        row = steps.index(own) - (after == "before") if own in steps else None
    else:
        wanted = task or after or steps[-1]
        row = steps.index(wanted) if wanted in steps else None
    if name not in columns or row is None or row >= len(rows):
        return None
    return _number(rows[row, columns.index(name)])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _means(table: Published, found: Filling) -> None:
    """Means over columns whose cells are all there: of the groups shown, run by run of the seeds that all have."""
    for (row, column), cell in table.cells.items():
        parts = [found.cells.get((row, name), []) for name in cell.column.mean_of]
        if not parts or not all(parts):
            continue
        shown = [each[0] for each in parts]
        differs = tuple(dict.fromkeys(text for each in shown for text in each.differs))
        by_seed = [
            {run.seed: number_of(run, table.cells[row, name].measure, cell.after) for run in each.runs}
            for name, each in zip(cell.column.mean_of, shown, strict=True)
        ]
        seeds = set.intersection(*(set(each) for each in by_seed))
        means = [table.data.scale * float(np.mean([each[seed] for each in by_seed])) for seed in sorted(seeds)]
        bounds = over_runs(means) if len(means) > 1 and all(len(each.runs) == len(seeds) for each in shown) else None
        low, high = bounds or (None, None)
        runs = tuple({run.folder: run for each in shown for run in each.runs}.values())
        found.cells[row, column] = [Measured(float(np.mean([e.mean for e in shown])), low, high, runs, differs)]
