"""report.html of several runs: tables, figure 3 with a line per method, final accuracy with its spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cl_runner.matrix import FORMULAS
from cl_runner.report import plots
from cl_runner.report.costs import COSTS
from cl_runner.report.html import document, picture, section, table, write
from cl_runner.report.tables import METRICS, Group, Table, label_of


def write_joined_report(groups: Sequence[Group], tables: Sequence[Table], notes: Sequence[str], path: Path) -> Path:
    """Write the page `path` and its pictures into the folder plots beside it.

    Args:
        groups: all groups of runs, for the pictures.
        tables: shown in this order.
        notes: runs left out, and why.
    """
    count = sum(len(group.runs) for group in groups)
    body = [f"<h1>{count} runs, {len(groups)} settings</h1>"]
    for shown in tables:
        body.append(section(shown.title, " · ".join(shown.notes), table(shown.header, shown.rows, left=shown.left)))
    for order in dict.fromkeys(str(group.axes["task_order"]) for group in groups):
        same = [group for group in groups if group.axes["task_order"] == order]
        body += _pictures(order, same, path.parent / "plots")
    formulas = [[name, (FORMULAS | COSTS)[name]] for name in METRICS]
    body.append(section("Formulas", "", table(["name", "formula"], formulas, left=2, long=1)))
    if notes:
        body.append(section("Left out", "", table(["run"], [[note] for note in notes], long=0)))
    return write(path, document("Runs compared", body))


def _pictures(order: str, groups: Sequence[Group], folder: Path) -> list[str]:
    labels = {label_of(group, groups): group for group in groups}
    finals = {label: group.values("union_accuracy") for label, group in labels.items()}
    name = order.replace("/", "-")
    plots.final_points(finals, "union_accuracy", "%", folder / f"final_{name}.png")
    curves = {label: np.stack([run.rows[1:, 0] for run in group.runs]) for label, group in labels.items()}
    tasks = groups[0].runs[0].tasks
    parts = [picture(folder / f"final_{name}.png", f"final union accuracy on {order}")]
    if len(tasks) > 1 and all(group.runs[0].tasks == tasks for group in groups):
        plots.first_task_lines(tasks, curves, folder / f"first_task_{name}.png")
        parts.append(picture(folder / f"first_task_{name}.png", f"accuracy of the first task on {order}"))
    note = (
        "Accuracy on the union of all test sets after the last task, and on the first task's test set after each task."
    )
    return [section(f"Order {order}", note, *parts)]
