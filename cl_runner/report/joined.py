"""report.html of several runs: tables, figure 3 with a line per method, final accuracy with its spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from cl_runner.matrix import START, Floats
from cl_runner.report import plots
from cl_runner.report.ability import DRAWN, describe
from cl_runner.report.folder import Run
from cl_runner.report.html import document, picture, section, table, write
from cl_runner.report.tables import (
    METRICS,
    Group,
    Table,
    definition_of,
    headline_of,
    label_of,
    protocol_notes,
    protocol_signs,
)


def write_joined_report(groups: Sequence[Group], tables: Sequence[Table], notes: Sequence[str], path: Path) -> Path:
    """Write the page `path` and its pictures into the folder plots beside it.

    Args:
        groups: all groups of runs, for the pictures.
        tables: shown in this order.
        notes: runs left out, and why.
    """
    count = sum(len(group.runs) for group in groups)
    body = [f"<h1>{count} runs, {len(groups)} settings</h1>"]
    marks = protocol_notes(groups, protocol_signs(groups))
    body += [f'<div class="banner">{escape(mark[0].upper() + mark[1:])}.</div>' for mark in marks]
    for shown in tables:
        body.append(section(shown.title, " · ".join(shown.notes), table(shown.header, shown.rows, left=shown.left)))
    for order in dict.fromkeys(str(group.axes["task_order"]) for group in groups):
        same = [group for group in groups if group.axes["task_order"] == order]
        body += _pictures(order, same, path.parent / "plots")
    formulas = [[name, definition_of(name)] for name in METRICS]
    body.append(section("Formulas", "", table(["name", "formula"], formulas, left=2, long=1)))
    if notes:
        body.append(section("Left out", "", table(["run"], [[note] for note in notes], long=0)))
    return write(path, document("Runs compared", body))


def _pictures(order: str, groups: Sequence[Group], folder: Path) -> list[str]:
    labels = {label_of(group, groups): group for group in groups}
    metric, name = headline_of(groups), order.replace("/", "-")
    finals = {label: group.values(metric) for label, group in labels.items()}
    plots.final_points(finals, metric, "%", folder / f"final_{name}.png")
    parts = [picture(folder / f"final_{name}.png", f"final {metric} on {order}")]
    tasks = groups[0].runs[0].tasks
    alike = all(run.tasks == tasks for group in groups for run in group.runs)
    measures = {run.scored_by[tasks[0]] for group in groups for run in group.runs}
    measure = measures.pop() if len(measures) == 1 else "score"
    if len(tasks) > 1 and alike:
        curves = {label: np.stack([run.rows[1:, 0] for run in group.runs]) for label, group in labels.items()}
        plots.first_task_lines(tasks, curves, folder / f"first_task_{name}.png", measure)
        parts.append(picture(folder / f"first_task_{name}.png", f"{measure} of the first task on {order}"))
    note = (
        f"{metric} = {definition_of(metric)}. Below, the {measure} on the first task's test set after each task. "
        + " ".join(f"{mark}." for mark in protocol_notes(groups, protocol_signs(groups)))
    )
    sections = [section(f"Order {order}", note.rstrip(), *parts)]
    ability = _ability({label: group.runs for label, group in labels.items()}, folder / f"ability_{name}.png")
    if ability:
        note = (
            "Change since the untouched model of what the probes measured: the mean over seeds, one sample deviation."
        )
        sections.append(section(f"General ability over {order}", note, ability))
    return sections


def _ability(runs: Mapping[str, Sequence[Run]], path: Path) -> str:
    """A panel per number with a line per label, of the runs over the same tasks that have it; empty without one.

    Args:
        runs: label -> its completed runs, one per seed.
    """
    tasks = next(iter(runs.values()))[0].tasks
    drawn: dict[str, dict[str, Floats]] = {}
    for label, group in runs.items():
        shared = set.intersection(*(set(run.ability[0]) for run in group))
        for name in group[0].ability[0]:
            if name in shared and all(run.tasks == tasks for run in group):
                values = [run.ability[1][:, run.ability[0].index(name)] for run in group]
                drawn.setdefault(describe(name), {})[label] = np.stack(values)
    if not drawn:
        return ""
    plots.ability_lines([START, *tasks], dict(list(drawn.items())[:DRAWN]), path)
    return picture(path, "change of general ability after each task, a line per method")
