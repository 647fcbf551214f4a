"""report.html of several runs: tables, figure 3 with a line per method, final accuracy with its spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from cl_runner.matrix import START, Floats, learned_so_far
from cl_runner.report import plots
from cl_runner.report.ability import CHANGE, DRAWN, OWN, describe, unit_of
from cl_runner.report.drawing import short
from cl_runner.report.folder import Run
from cl_runner.report.grouping import Group, label_of, protocol_notes, protocol_signs
from cl_runner.report.html import document, picture, section, table, write
from cl_runner.report.numbers import definition_of, values_of
from cl_runner.report.tables import METRICS, headline_of
from cl_runner.report.text_table import Table


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
    known = [name for name in METRICS if any(group.values(name) for group in groups)]
    formulas = [[name, definition_of(name)] for name in known]
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
        what = f"{measure} on {short(tasks[0])}"
        plots.lines_over_tasks(tasks, curves, folder / f"first_task_{name}.png", what)
        parts.append(picture(folder / f"first_task_{name}.png", f"{measure} of the first task on {order}"))
        seen = {label: np.stack([learned_so_far(run.rows) for run in group.runs]) for label, group in labels.items()}
        plots.lines_over_tasks(tasks, seen, folder / f"learned_so_far_{name}.png", "mean score on tasks so far")
        parts.append(picture(folder / f"learned_so_far_{name}.png", f"mean score on the tasks learned so far, {order}"))
    note = (
        f"{metric} = {definition_of(metric)}. Below, the {measure} on the first task's test set after each task, "
        "and the mean over the tasks learned so far (figure 9 of the SLM paper). "
        + " ".join(f"{mark}." for mark in protocol_notes(groups, protocol_signs(groups)))
    )
    sections = [section(f"Order {order}", note.rstrip(), *parts)]
    ability = _ability({label: group.runs for label, group in labels.items()}, folder / f"ability_{name}.png")
    if ability:
        note = (
            "Change since the untouched model of what the probes measured: the mean over seeds, one sample deviation."
        )
        sections.append(section(f"General ability over {order}", note, ability))
    sections += _trade_offs(groups, folder, name)
    return sections


def _trade_offs(groups: Sequence[Group], folder: Path, name: str) -> list[str]:
    """What a method learned against what it lost: a dot per run, a colour per method."""
    runs = [(str(group.axes["method"]), values_of(run)) for group in groups for run in group.runs]
    learned = dict.fromkeys(key for _, values in runs for key in values if key.startswith(OWN))
    lost = dict.fromkeys(
        key
        for _, values in runs
        for key in values
        if key.startswith(CHANGE)
        and not key.endswith("perplexity")
        and key[len(CHANGE) :].partition("/")[0] not in {own.removeprefix(OWN) for own in learned}
    )
    parts = []
    for x, y in ((x, y) for x in learned for y in list(lost)[:DRAWN]):
        points: dict[str, list[tuple[float, float]]] = {}
        for method, values in runs:
            if x in values and y in values:
                points.setdefault(method, []).append((values[x], values[y]))
        path = folder / f"trade_off_{y.removeprefix(CHANGE).replace('/', '_')}_{name}.png"
        units = [f"{key}, {unit_of(key.partition('/')[2])}".rstrip(", ") for key in (x, y)]
        plots.trade_off(points, units[0], units[1], path)
        note = f"{x}: {definition_of(x)}. {y}: {definition_of(y)}. A dot is a run; lines join a method's runs by {x}."
        parts.append(section("Learned against kept", note, picture(path, f"{y} over {x}")))
    return parts


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
