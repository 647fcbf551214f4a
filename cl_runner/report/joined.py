"""report.html of several runs: tables, figure 3 with a line per method, final accuracy with its spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.matrix import START, Floats, learned_so_far
from cl_runner.report import plots
from cl_runner.report.ability import APART, CHANGE, DRAWN, OWN, describe, unit_of
from cl_runner.report.drawing import short
from cl_runner.report.epochs import compared_epochs
from cl_runner.report.equal_learning import LEARNED, LOST
from cl_runner.report.folder import Run
from cl_runner.report.grouping import Group, label_of, protocol_notes, protocol_signs
from cl_runner.report.html import render, write
from cl_runner.report.numbers import definition_of, values_of
from cl_runner.report.representations import compared_values
from cl_runner.report.runs_table import runs_table
from cl_runner.report.tables import METRICS, headline_of
from cl_runner.report.text_table import Table


def write_joined_report(
    groups: Sequence[Group], tables: Sequence[Table], notes: Sequence[str], path: Path, others: Sequence[Run] = ()
) -> Path:
    """Write the page `path` and its pictures into the folder plots beside it.

    Args:
        groups: all groups of runs, for the pictures.
        tables: shown in this order.
        notes: runs left out, and why.
        others: runs that are unfinished or have failed: a line each.
    """
    by_order: dict[str, list[Group]] = {}
    for group in groups:
        by_order.setdefault(str(group.axes["task_order"]), []).append(group)
    known = [name for name in METRICS if any(group.values(name) for group in groups)]
    page = render(
        "joined.html.j2",
        runs=sum(len(group.runs) for group in groups),
        settings=len(groups),
        marks=protocol_notes(groups, protocol_signs(groups)),
        every=runs_table([run for group in groups for run in group.runs], others, path.parent),
        tables=tables,
        orders=[_order_values(name, same, path.parent / "plots") for name, same in by_order.items()],
        formulas=Table(["name", "formula"], [[name, definition_of(name)] for name in known], left=2, long=1),
        left_out=Table(["run"], [[note] for note in notes], long=0),
        definition_of=definition_of,
    )
    return write(path, page)


def _order_values(order: str, groups: Sequence[Group], folder: Path) -> dict[str, Any]:
    """What the page shows of the runs over one order, its pictures drawn into `folder`."""
    labels = {label_of(group, groups): group for group in groups}
    metric, name = headline_of(groups), order.replace("/", "-")
    drawn = {"final": folder / f"final_{name}.png"}
    plots.final_points({label: group.values(metric) for label, group in labels.items()}, metric, "%", drawn["final"])
    tasks = groups[0].runs[0].tasks
    alike = all(run.tasks == tasks for group in groups for run in group.runs)
    measures = {run.scored_by[tasks[0]] for group in groups for run in group.runs}
    measure = measures.pop() if len(measures) == 1 else "score"
    if len(tasks) > 1 and alike:
        curves = {label: np.stack([run.rows[1:, 0] for run in group.runs]) for label, group in labels.items()}
        drawn["first_task"] = folder / f"first_task_{name}.png"
        plots.lines_over_tasks(tasks, curves, drawn["first_task"], f"{measure} on {short(tasks[0])}")
        seen = {label: np.stack([learned_so_far(run.rows) for run in group.runs]) for label, group in labels.items()}
        drawn["learned_so_far"] = folder / f"learned_so_far_{name}.png"
        plots.lines_over_tasks(tasks, seen, drawn["learned_so_far"], "mean score on tasks so far")
    runs = {label: group.runs for label, group in labels.items()}
    if alike and compared_epochs(runs, folder / f"epochs_{name}.png", measure):
        drawn["epochs"] = folder / f"epochs_{name}.png"
    ability = _ability(runs)
    if ability:
        drawn["ability"] = folder / f"ability_{name}.png"
        plots.ability_lines([START, *tasks], ability, drawn["ability"])
    return {
        "name": order,
        "metric": metric,
        "measure": measure,
        "marks": protocol_notes(groups, protocol_signs(groups)),
        "drawn": drawn,
        "representations": compared_values(runs, folder, name) if alike else [],
        "trade_offs": _trade_offs(groups, folder, name),
    }


def _trade_offs(groups: Sequence[Group], folder: Path, name: str) -> list[tuple[str, str, Path]]:
    """What a method learned, what it lost, and their picture: a dot per run, a colour per method."""
    runs = [(str(group.axes["method"]), values_of(run)) for group in groups for run in group.runs]
    learned = dict.fromkeys(key for _, values in runs for key in values if key.startswith(OWN))
    lost = dict.fromkeys(
        key
        for _, values in runs
        for key in values
        if key.startswith(CHANGE)
        and not key.startswith(CHANGE + APART)
        and not key.endswith("perplexity")
        and key[len(CHANGE) :].partition("/")[0] not in {own.removeprefix(OWN) for own in learned}
    )
    drawn = []
    pairs = [(x, y) for x in learned for y in list(lost)[:DRAWN]]
    methods = [str(group.axes["method"]) for group in groups]
    if len(set(methods)) < len(methods) and any(LOST in values for _, values in runs):  # curves of several settings
        pairs.append((LEARNED, LOST))
    for x, y in pairs:
        points: dict[str, list[tuple[float, float]]] = {}
        for method, values in runs:
            if x in values and y in values:
                points.setdefault(method, []).append((values[x], values[y]))
        path = folder / f"trade_off_{y.removeprefix(CHANGE).replace('/', '_')}_{name}.png"
        units = [f"{key}, {unit_of(key.partition('/')[2])}".rstrip(", ") for key in (x, y)]
        if y == LOST:
            units = [f"{x}, %", f"{y}, points (less is kept better)"]
        plots.trade_off(points, units[0], units[1], path)
        drawn.append((x, y, path))
    return drawn


def _ability(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Floats]]:
    """The numbers that are drawn, each with its unit -> label -> values [n seeds, steps] of runs over the same tasks.

    Args:
        runs: label -> its completed runs, one per seed.
    """
    tasks = next(iter(runs.values()))[0].tasks
    found: dict[str, dict[str, Floats]] = {}
    for label, group in runs.items():
        shared = set.intersection(*(set(run.ability[0]) for run in group))
        for name in group[0].ability[0]:
            if name in shared and not name.startswith(APART) and all(run.tasks == tasks for run in group):
                values = [run.ability[1][:, run.ability[0].index(name)] for run in group]
                found.setdefault(describe(name), {})[label] = np.stack(values)
    return dict(list(found.items())[:DRAWN])
