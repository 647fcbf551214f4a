"""Tables over groups of runs: mean and spread over seeds, one row per group or as the pivots that papers show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cl_runner.matrix import FORMULAS, OWN_WEIGHT, RETRIEVAL, SERVED, formula_of, headline
from cl_runner.report.ability import CHANGE, OWN, signed
from cl_runner.report.comparison import bounds_of
from cl_runner.report.costs import COSTS, cost_text
from cl_runner.report.design import Numbers
from cl_runner.report.differences import INTERVAL, LETTERS, Judged, difference_tables, judged, judged_axis
from cl_runner.report.equal_learning import equal_learning_tables
from cl_runner.report.folder import Run
from cl_runner.report.forgotten import forgotten_table
from cl_runner.report.grouping import (
    NAMES,
    Group,
    axis_text,
    identity,
    protocol_notes,
    protocol_signs,
    shown_axes,
)
from cl_runner.report.marks import COLUMNS, mark_notes, marks_beside, marks_of, words_of
from cl_runner.report.numbers import AFTER_K, RETRIEVALS, definition_of, values_of
from cl_runner.report.text_table import Table, safe_cell

#: What the long table shows, in this order.
METRICS = (
    "union_accuracy",
    "average_accuracy",
    "forgetting/chaudhry18",
    "bwt/gem",
    "retained_share",
    "first_task/after_first",
    "first_task/last",
    "plasticity/diagonal",
    *RETRIEVALS,
    *COSTS,
)
#: Column heads of costs that carry a unit.
UNIT_HEADS = {
    "trainable_share/later_tasks": "trainable_share/later_tasks, %",
    "online_seconds/later_tasks": "online_seconds/later_tasks, s",
    "offline_seconds/later_tasks": "offline_seconds/later_tasks, s",
}


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation over n runs; the spread of a single run is None."""

    mean: float
    spread: float | None
    count: int


def cell_of(values: Sequence[float]) -> Cell | None:
    """None without values."""
    if not len(values):
        return None
    return Cell(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def cell_text(metric: str, cell: Cell | None) -> str:
    """`81.62 ± 0.31`; costs in their own units, whose spread says little, as the mean."""
    if cell is None:
        return "-"
    if metric in COSTS:
        return cost_text(metric, cell.mean, unit=False)
    if metric.startswith(CHANGE):
        return signed(cell.mean) + (f" ± {cell.spread:.3g}" if cell.spread is not None else "")
    return f"{cell.mean:.2f}" + (f" ± {cell.spread:.2f}" if cell.spread is not None else "")


def known_metrics(groups: Sequence[Group]) -> list[str]:
    """Every name that `--metric` takes: every formula's, the costs', and what only some runs have."""
    found = dict.fromkeys(name for group in groups for run in group.runs for name in values_of(run))
    numbered = [name for name in found if name.startswith((AFTER_K, CHANGE, OWN))]
    return [*(name for name in FORMULAS if not name.startswith(AFTER_K)), *numbered, *COSTS]


def headline_of(groups: Sequence[Group]) -> str:
    """The number that all runs can be compared by."""
    return headline(set.intersection(*(set(run.metrics) for group in groups for run in group.runs)))


def _joined(values: pd.Series[float]) -> Any:
    return cell_of(values.tolist())


def over_seeds(groups: Sequence[Group], numbers: Callable[[Run], Mapping[str, float]] = values_of) -> pd.DataFrame:
    """A `Cell` of each number, or None: a row per group, a column per number that some run has.

    Args:
        numbers: of a run, by name.
    """
    entries = [
        (place, name, value)
        for place, group in enumerate(groups)
        for run in group.runs
        for name, value in numbers(run).items()
    ]
    frame = pd.DataFrame(entries, columns=["group", "name", "value"])
    cells = frame.pivot_table(index="group", columns="name", values="value", aggfunc=_joined, sort=False)
    cells = cells.reindex(range(len(groups))).astype(object)
    return cells.where(cells.notna(), None)


def _by_group(
    title: str,
    groups: Sequence[Group],
    cells: pd.DataFrame,
    notes: Sequence[str],
    judgement: Judged,
    behind: str,
    counted: bool = False,
) -> Table:
    """What tells a group apart, with `counted` the number of its runs, and its cells, as texts.

    Args:
        cells: of `over_seeds`; some of its rows may be left out.
        judgement: interval and letters of each group.
        behind: the column that they are of, and stand behind.
    """
    axes, signs = shown_axes(groups), protocol_signs(groups)
    beside = axes.index("method") + 1
    rows = []
    for place in cells.index:
        group = groups[place]
        sign = signs.get(group.axes["protocol"], "")
        named = [axis_text(group.axes[key]) + (sign if key == "method" else "") for key in axes]
        named[beside:beside] = marks_of(group)
        counts = [str(len(group.runs))] if counted else []
        texts = [cell_text(name, cell) for name, cell in cells.loc[place].items()]
        rows.append(
            [*named, *counts, *_inserted(texts, cells, behind, judgement.texts[place] if judgement.texts else ())]
        )
    names = [*axes[:beside], *COLUMNS, *axes[beside:]]
    heads = [UNIT_HEADS.get(name, name) for name in map(str, cells)]
    heads = _inserted(heads, cells, behind, (INTERVAL, LETTERS) if judgement.texts else ())
    header = [*names, *(["n"] if counted else []), *heads]
    marked = mark_notes([groups[place] for place in cells.index])
    said = [*notes, *judgement.notes, *marked, *protocol_notes(groups, signs)]
    return Table(header, rows, title, len(names), said)


def _inserted(texts: Sequence[str], cells: pd.DataFrame, behind: str, more: Sequence[str]) -> list[str]:
    place = list(cells.columns).index(behind) + 1
    return [*texts[:place], *more, *texts[place:]]


def long_table(groups: Sequence[Group], numbers: Numbers | None = None) -> Table:
    """One row per group: what differs, the number of seeds, every metric of `METRICS` that some run has.

    Behind the headline stand its interval, and letters of the groups of one order that are not told apart.
    """
    cells = over_seeds(groups)
    ability = [name for name in map(str, cells) if name.startswith((CHANGE, OWN))]
    # Of a probe with a number per task the mean is enough here.
    means = tuple(CHANGE + name.removeprefix(OWN) + "/" for name in ability if name.startswith(OWN))
    metrics = [name for name in METRICS if name in cells] + [name for name in ability if not name.startswith(means)]
    told = (*shown_axes(groups), "protocol")
    fixed = ", ".join(f"{key} {groups[0].axes[key]}" for key in NAMES if key not in told)
    notes = ["mean ± sample standard deviation over n seeds; scores in %, forgetting and transfer in points"]
    if any(metric.startswith(CHANGE) for metric in metrics):
        notes.append(f"{CHANGE}: general ability after the last task minus before the first, in the probe's unit")
    if any(metric.startswith(OWN) for metric in metrics):
        notes.append(f"{OWN}: mean over tasks of a probe's number for each task right after it was learned")
    title, shown = "All runs" + (f": {fixed}" if fixed else ""), headline_of(groups)
    judgement = judged(groups, shown, numbers or Numbers())
    return _by_group(title, groups, cells[metrics], notes, judgement, shown, counted=True)


def forgetting_table(groups: Sequence[Group], numbers: Numbers | None = None) -> Table | None:
    """Forgetting after k tasks (SLM's table), a row per group; None where no run has three tasks."""
    cells = over_seeds(groups)
    numbered = sorted(int(name.removeprefix(AFTER_K)) for name in map(str, cells) if name.startswith(AFTER_K))
    if len(numbered) < 2:
        return None
    cells = cells[[f"{AFTER_K}{k}" for k in numbered]].set_axis([f"after {k}" for k in numbered], axis="columns")
    notes = [f"{AFTER_K}k = {formula_of(AFTER_K + 'k')}"]
    judgement = judged(groups, f"{AFTER_K}{numbered[-1]}", numbers or Numbers())
    return _by_group("Forgetting after k tasks, points", groups, cells, notes, judgement, f"after {numbered[-1]}")


def retrieval_tables(groups: Sequence[Group], numbers: Numbers | None = None) -> list[Table]:
    """Retrieval by task after the last one, a row per group: what texts were served, and eq. 13 (SLM, table 12)."""
    kinds = (
        (SERVED, "Texts served rightly by task, %", lambda run: run.served("served_percent")),
        (OWN_WEIGHT, "Weight of a text's own task by task, %", lambda run: run.served("own_weight_percent")),
        (RETRIEVAL, "Retrieval accuracy by task, %", lambda run: run.retrieval_accuracy),
    )
    tables = []
    for name, title, of_run in kinds:
        cells = over_seeds(groups, of_run).dropna(how="all")
        if not cells.empty:
            cells.insert(len(cells.columns), "mean", over_seeds(groups).get(name), allow_duplicates=True)
            notes, judgement = [f"mean: {name} = {formula_of(name)}"], judged(groups, name, numbers or Numbers())
            tables.append(_by_group(title, groups, cells, notes, judgement, "mean"))
    return tables


def table_shape(
    groups: Sequence[Group], rows_key: str, column_key: str, metric: str, numbers: Numbers | None = None
) -> Table:
    """A pivot: `rows_key` down, `column_key` across, mean and spread of one metric, and the mean of each full column.

    Where one of them is task_order, intervals and letters of the other one's values over all orders stand beside.

    Args:
        groups: of `group_runs`.
        rows_key, column_key: task_order, backbone, method, or a dotted configuration key.

    Raises:
        ValueError: a key or metric is unknown, or a cell would mix runs that differ in something else.
    """
    check_axis(groups, rows_key)
    check_axis(groups, column_key)
    check_metric(groups, metric)
    places = [(axis_text(group.axis(rows_key)), axis_text(group.axis(column_key))) for group in groups]
    for number, (row, column) in enumerate(places):
        other = groups[places.index((row, column))].axes
        differs = [key for key, value in groups[number].axes.items() if repr(value) != repr(other[key])]
        if differs:
            raise ValueError(
                f"the cell {rows_key} {row}, {column_key} {column} would mix runs that differ in "
                f"{', '.join(differs)}. Type --columns {differs[0]}, or --where {differs[0]}=VALUE with one of "
                f"{axis_text(groups[number].axes[differs[0]])}, {axis_text(other[differs[0]])}."
            )
    named = [
        (place[key == column_key], group)
        for key in {rows_key, column_key} & {"method"}
        for place, group in zip(places, groups, strict=True)
    ]
    cells = [cell_of(group.values(metric)) for group in groups]
    apart = {} if "protocol" in (rows_key, column_key) else protocol_signs(groups)
    signs = [apart.get(group.axes["protocol"], "") for group in groups]
    frame = pd.DataFrame(places, columns=["row", "column"]).assign(
        sign=signs,
        text=[cell_text(metric, cell) + sign for cell, sign in zip(cells, signs, strict=True)],
        mean=[np.nan if cell is None else cell.mean for cell in cells],
    )
    values = [group.axis(column_key) for group in groups]
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    down, across = list(frame["row"].unique()), list(dict.fromkeys(map(axis_text, values)))

    def shape(values: str) -> pd.DataFrame:
        return frame.pivot(index="row", columns="column", values=values).reindex(index=down, columns=across)

    rows = [list(texts) for texts in shape("text").fillna("-").itertuples(name=None)]
    if len(down) > 1:
        means = shape("mean").mean(skipna=False)
        means = means.where(shape("sign").nunique() == 1)  # protocols are not averaged
        rows.append(["mean", *(cell_text(metric, cell_of([] if np.isnan(mean) else [mean])) for mean in means)])
    counts = sorted({cell.count for cell in cells if cell})
    seeds = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1])))) if counts else "0"
    notes = [f"mean ± sample standard deviation, n = {seeds}; {metric} = {definition_of(metric)}"]
    marks = {column: marks_beside(named, column) for column in COLUMNS} if named else {}
    notes += mark_notes(groups) if named else []
    notes += protocol_notes(groups, apart)
    for key in groups[0].axes:
        if key not in (rows_key, column_key, "protocol") and len({repr(group.axes[key]) for group in groups}) > 1:
            columns = frame.groupby([axis_text(group.axes[key]) for group in groups], sort=False)["column"].unique()
            parts = [f"{value} for {', '.join(names)}" for value, names in columns.items()]
            notes.append(f"also differs: {key} is {'; '.join(parts)}")
    title = f"{UNIT_HEADS.get(metric, metric)}: {rows_key} by {column_key}"
    told, said = judged_axis(groups, places, rows_key, column_key, metric, numbers or Numbers())
    notes += said
    if column_key == "task_order":
        rows = [[*row, *(found.get(row[0], "") for found in told.values())] for row in rows]
        across = [*across, *told]
    if rows_key == "method":
        rows = [[row[0], *(found.get(row[0], "") for found in marks.values()), *row[1:]] for row in rows]
        return Table([rows_key, *marks, *across], rows, title, 1 + len(marks), notes)
    below = [[column, *(found[name] for name in across)] for column, found in marks.items()]
    if rows_key == "task_order":
        below += [[head, *(found.get(name, "-") for name in across)] for head, found in told.items()]
    return Table([rows_key, *across], rows, title, notes=notes, below=below)


def check_axis(groups: Sequence[Group], key: str) -> None:
    """A row or column key exists in some run, or a ValueError names the nearest one."""
    known = list(dict.fromkeys([*NAMES, *(k for group in groups for k in identity(group.runs[0]))]))
    if key not in known:
        raise ValueError(f"no run has the key {key!r}.{_nearest(key, known)}")


def check_metric(groups: Sequence[Group], metric: str) -> None:
    """A metric's name is one of `known_metrics`, or a ValueError lists them."""
    known = known_metrics(groups)
    if metric not in known:
        raise ValueError(f"there is no metric {metric!r}; known: {', '.join(known)}.{_nearest(metric, known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    from cl_runner.overrides import nearest

    close = nearest(name, known)
    return f" Nearest: {close}. Type: {close}" if close else ""


def paper_tables(groups: Sequence[Group], metric: str, numbers: Numbers | None = None) -> list[Table]:
    """PE's Table 1 (order by method) and Table 2 (order by fraction), where the runs vary in those axes.

    A shape whose cells would mix runs is left out: the long table has them apart.
    """
    tables = []
    for title, column_key in (("PE table 1", "method"), ("PE table 2", "method.pe.fraction")):
        chosen = [group for group in groups if group.axis(column_key) is not None]
        columns = {repr(group.axis(column_key)) for group in chosen}
        orders = {group.axes["task_order"] for group in chosen}
        if len(columns) < 2 or (column_key == "method" and len(orders) < 2):
            continue
        try:
            table = table_shape(chosen, "task_order", column_key, metric, numbers)
        except ValueError:
            continue
        tables.append(replace(table, title=f"{title}, {table.title}"))
    return tables


def all_tables(groups: Sequence[Group], metric: str | None = None) -> list[Table]:
    """Every table that the runs can fill; `metric` is that of the papers' shapes, and what settings are compared by."""
    numbers, shown = Numbers(), metric or headline_of(groups)
    forgetting = forgetting_table(groups, numbers)
    lost = forgotten_table(groups)
    return [
        long_table(groups, numbers),
        *paper_tables(groups, shown, numbers),
        *difference_tables(groups, shown, numbers, alone=metric is not None),
        *equal_learning_tables(groups, numbers),
        *([forgetting] if forgetting else []),
        *([lost] if lost else []),
        *retrieval_tables(groups, numbers),
    ]


def exact_csv(groups: Sequence[Group]) -> str:
    """One line per group with exact numbers as CSV: axes, n, seeds; mean, spread, bounds of every metric's interval."""
    cells, numbers = over_seeds(groups), Numbers()
    metrics = [metric for metric in known_metrics(groups) if metric in cells]
    lines = pd.DataFrame(
        [
            {key: safe_cell(str(value) if key == "protocol" else axis_text(value)) for key, value in group.axes.items()}
            | {"n": len(group.runs), "seeds": " ".join(map(str, group.seeds))}
            | {column: safe_cell(", ".join(words_of(group, column))) for column in COLUMNS}
            for group in groups
        ]
    )
    columns = {}
    for metric in metrics:
        columns[f"{metric} mean"] = [cell and cell.mean for cell in cells[metric]]
        columns[f"{metric} std"] = [cell and cell.spread for cell in cells[metric]]
        runs = [{(str(group.axes["task_order"]), run.seed): run for run in group.runs} for group in groups]
        bounds = [bounds_of(each, metric, numbers) for each in runs]
        for number, name in enumerate(("low", "high")):
            columns[f"{metric} {name}"] = [each and each[number] for each in bounds]
    lines = pd.concat([lines, pd.DataFrame(columns)], axis=1)
    lines.columns = [safe_cell(str(name)) for name in lines.columns]
    return lines.to_csv(index=False, lineterminator="\n")
