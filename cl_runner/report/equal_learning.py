"""What methods keep at equal learning: their settings' curves of learned against kept, read at the same level.

Two methods at one learning rate, or at their own best ones, learn differently much; who learns less has less to forget.
A method tried at several settings is a curve, and curves can be compared wherever both are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from cl_runner.report.ability import CHANGE, OWN
from cl_runner.report.comparison import lower_is_better
from cl_runner.report.design import Design, Numbers, designs_of
from cl_runner.report.differences import number_text
from cl_runner.report.folder import Run
from cl_runner.report.grouping import Group, names_of
from cl_runner.report.text_table import Table

#: Where the range that most methods reach is read.
LEVELS = (0.25, 0.5, 0.75)
LEARNED, LOST = "plasticity/diagonal", "forgetting/chaudhry18"

#: Learned and kept of each of a method's settings.
Points = list[tuple[float, float]]


def read_at(points: Points, level: float) -> float | None:
    """What a curve keeps where it has learned `level`, between its neighbouring points; None beyond its ends."""
    ordered = sorted(points)
    learned, kept = [x for x, _ in ordered], [y for _, y in ordered]
    if len(points) < 2 or not learned[0] <= level <= learned[-1]:
        return None
    return float(np.interp(level, learned, kept))


def common_range(curves: Sequence[Points]) -> tuple[float, float] | None:
    """The range of learning that most curves reach, the widest of several; None where no two meet."""
    ends = [(min(x for x, _ in points), max(x for x, _ in points)) for points in curves if len(points) > 1]
    places = sorted({place for each in ends for place in each})
    best: tuple[int, float, float, float] | None = None
    for low, high in itertools.pairwise(places):
        count = sum(start <= low and high <= end for start, end in ends)
        if count > 1 and (best is None or (count, high - low) > best[:2]):
            best = (count, high - low, low, high)
    return None if best is None else best[2:]


def equal_learning_tables(groups: Sequence[Group], numbers: Numbers) -> list[Table]:
    """A table for each order and pair of numbers of which two methods have curves that meet."""
    tables = []
    for design in (whole.over(order) for whole in designs_of(groups) for order in whole.orders):
        runs = [run for setting in design.settings for run in setting.runs.values()]
        names = dict.fromkeys(name for run in runs for name in numbers.of(run))
        own = [name for name in names if name.startswith(OWN)]
        told = {name.removeprefix(OWN) for name in own}
        changes = [n for n in names if n.startswith(CHANGE) and n[len(CHANGE) :].partition("/")[0] not in told]
        pairs = [(LEARNED, LOST), *((x, y) for x in own for y in changes if not y.endswith("perplexity"))]
        for learned, kept in pairs:
            table = _table(design, learned, kept, numbers)
            if table is not None:
                tables.append(table)
    return tables


def _table(design: Design, learned: str, kept: str, numbers: Numbers) -> Table | None:
    """A row per method: what it keeps at each level, mean over seeds; None where no two curves meet."""
    curves = _curves(design, learned, kept, numbers)
    means = {method: [_mean(points) for points in settings] for method, settings in curves.items()}
    found = common_range(list(means.values()))
    if found is None:
        return None
    low, high = found
    levels = [low + share * (high - low) for share in LEVELS]
    rows = []
    for method, settings in curves.items():
        if len(settings) < 2:
            continue
        seeds = set.intersection(*(set(points) for points in settings))
        cells, counts = [], []
        for level in levels:
            values = [read_at([points[seed] for points in settings], level) for seed in sorted(seeds)]
            there = [value for value in values if value is not None]
            counts.append(len(there))
            spread = f" ± {number_text(kept, float(np.std(there, ddof=1))).lstrip('+')}" if len(there) > 1 else ""
            cells.append(number_text(kept, float(np.mean(there))) + spread if there else "-")
        rows.append(
            [method, str(len(settings)), " to ".join(dict.fromkeys(map(str, (min(counts), max(counts))))), *cells]
        )
    order = design.orders[0]
    heads = [f"at {number_text(learned, level)}" for level in levels]
    better = "less" if lower_is_better(kept) else "more"
    notes = [
        f"{kept}, of which {better} is better, where {learned} is at the same level: each seed's curve through the "
        "method's settings, straight between neighbours; mean ± sample standard deviation over the n seeds reaching it",
        "- the method's settings do not reach that level on both sides: nothing is guessed beyond them",
    ]
    return Table(["method", "settings", "n", *heads], rows, f"Kept at equal learning, {order}: {kept}", 1, notes)


def _curves(
    design: Design, learned: str, kept: str, numbers: Numbers
) -> dict[str, list[dict[int, tuple[float, float]]]]:
    """Method -> of each of its settings seed -> learned and kept."""
    backbones = {run.backbone for setting in design.settings for run in setting.runs.values()}
    curves: dict[str, list[dict[int, tuple[float, float]]]] = {}
    for setting in design.settings:
        points: dict[int, tuple[float, float]] = {}
        for (_, seed), run in setting.runs.items():
            x, y = numbers.value(run, learned), numbers.value(run, kept)
            if x is not None and y is not None:
                points[seed] = (x, y)
        if points:
            curves.setdefault(_name(next(iter(setting.runs.values())), len(backbones) > 1), []).append(points)
    return curves


def _name(run: Run, told: bool) -> str:
    method = names_of(run)["method"]
    return f"{method}, {run.backbone}" if told else method


def _mean(points: dict[int, tuple[float, float]]) -> tuple[float, float]:
    x, y = np.mean(list(points.values()), axis=0)
    return float(x), float(y)
