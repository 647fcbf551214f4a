"""Figures of scores after each task: PE 3, SLM 9, PIECE 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cl_runner.matrix import START, Floats, learned_so_far
from cl_runner.overrides import nearest
from cl_runner.papers.figures import Figure
from cl_runner.papers.picture import Asked, Drawn, Picture, Selection, by_order, caption, seeds_of
from cl_runner.papers.published import GRADES
from cl_runner.report.ability import describe, unit_of
from cl_runner.report.drawing import short
from cl_runner.report.folder import Run
from cl_runner.report.panels import Panel, score_panels
from cl_runner.report.plots import lines_over_tasks
from cl_runner.report.text_table import Table

HEADER = ["figure", "order", "line", "measure", "after", "seed", "value", "unit", "source"]
MEAN = "mean over the tasks so far"
HOLLOW = "Black and hollow: published; right of the last task, what is published of the end"
BANDS = "Lines: means over seeds; bands: ± one sample standard deviation"


@dataclass(frozen=True)
class Series:
    """One run's numbers, or published ones, as they are drawn and as they stand in the data.

    Attributes:
        line: which line they are of: a setting, or what the paper calls it.
        steps: after which each value was measured.
        seed: None of published ones.
        source: the run's folder, or the table.
    """

    order: str
    line: str
    measure: str
    steps: tuple[str, ...]
    values: tuple[float, ...]
    unit: str
    seed: int | None
    source: str

    @classmethod
    def of(
        cls, run: Run, order: str, line: str, measure: str, steps: Sequence[str], values: Floats, unit: str = "%"
    ) -> Series:
        """A run's."""
        numbers = tuple(float(value) for value in values)
        return cls(order, line, measure, tuple(steps), numbers, unit, run.seed, str(run.folder))

    def rows(self) -> Iterator[list[str]]:
        """A line for each number, as `HEADER` has them."""
        seed = "" if self.seed is None else str(self.seed)
        for step, value in zip(self.steps, self.values, strict=True):
            if not np.isnan(value):
                yield [self.order, self.line, self.measure, step, seed, repr(value), self.unit, self.source]


def data_of(figure: Figure, series: Iterable[Series]) -> Table:
    """All numbers that were measured or published."""
    return Table(HEADER, [[figure.name, *row] for one in series for row in one.rows()], figure.data.title)


def curves(series: Iterable[Series], steps: Sequence[str], key: Callable[[Series], str]) -> dict[str, Floats]:
    """Name -> [n seeds, steps] of what was measured; NaN at steps that it has no value of."""
    found: dict[str, list[Floats]] = {}
    for one in series:
        if one.seed is not None:
            values = dict(zip(one.steps, one.values, strict=True))
            found.setdefault(key(one), []).append(np.array([values.get(step, np.nan) for step in steps]))
    return {name: np.stack(rows) for name, rows in found.items()}


def printed(series: Iterable[Series], steps: Sequence[str]) -> dict[str, dict[int, float]]:
    """Line -> its published values by the number of their step."""
    found: dict[str, dict[int, float]] = {}
    for one in series:
        if one.seed is None:
            pairs = zip(one.steps, one.values, strict=True)
            found.setdefault(one.line, {}).update({list(steps).index(step): value for step, value in pairs})
    return found


def published(figure: Figure) -> list[Series]:
    """All that a figure's paper prints of it."""
    return [
        Series(" ".join(each.tasks), each.line, each.measure, (each.after,), (each.value,), "%", None, each.source)
        for each in figure.points
    ]


def _of_tasks(series: Iterable[Series], tasks: Sequence[str]) -> list[Series]:
    return [one for one in series if one.order == " ".join(tasks)]


def _unused(figure: Figure, known: Sequence[Series], shown: Iterable[Sequence[str]]) -> list[str]:
    """What is said of published numbers where all runs are over other orders."""
    orders = list(dict.fromkeys(one.order for one in known))
    without = [tasks for tasks in shown if " ".join(tasks) not in orders]
    if not known or not without:
        return []
    return [f"published numbers of {figure.name} are of {'; '.join(orders)}, and drawn beside runs over these alone"]


def first_task(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """The scores on one task, from where it was learned on: a line per setting, a picture per order."""
    drawn = Drawn()
    for order, settings in by_order(selection):
        runs = [run for setting in settings for run in setting.runs.values()]
        tasks = runs[0].tasks
        name = _task(asked.task or tasks[0], order, tasks)
        place, metric = tasks.index(name), runs[0].scored_by[name]
        steps = tasks[place:]
        series = [
            Series.of(run, order, setting.label, f"{metric}/{name}", steps, run.rows[place + 1 :, place])
            for setting in settings
            for run in setting.runs.values()
        ]
        lines = curves(series, steps, lambda one: one.line)
        said = caption(figure, selection, runs, order, f"{BANDS}; {seeds_of(settings)}")
        what = f"{metric} on {short(name)}"
        drawn.pictures.append(
            Picture((order,), partial(_first_task, steps, lines, what, said), data_of(figure, series))
        )
    return drawn


def _first_task(steps: Sequence[str], lines: dict[str, Floats], what: str, said: str, path: Path) -> None:
    lines_over_tasks(steps, lines, path, what, caption=said)


def _task(name: str, order: str, tasks: Sequence[str]) -> str:
    if name in tasks:
        return name
    close = nearest(name, tasks)
    said = f"--task {name} is no task of {order}, whose tasks are {', '.join(tasks)}"
    raise ValueError(said + (f".\nNearest: {close!r}. Type: --task {close}" if close else ""))


def learned(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """The scores on every task learned: a line per task and their mean, a panel per order, a picture per setting."""
    known, drawn = published(figure), Drawn()
    all_tasks = []
    for design in selection.designs:
        for setting in design.settings:
            panels, series = [], []
            for order in dict.fromkeys(order for order, _ in setting.runs):
                runs = [run for (own, _), run in setting.runs.items() if own == order]
                beside = _of_tasks(known, runs[0].tasks)
                found = [one for run in runs for one in _learned(run, order, setting.label)] + beside
                n = f" (n = {len(runs)})" if len(runs) > 1 else ""
                panels.append(_learned_panel(f"{setting.label}, {order}{n}", runs[0].tasks, runs[0].measure, found))
                all_tasks.append(runs[0].tasks)
                series += found
            hollow = [HOLLOW] if any(panel.published for panel in panels) else []
            said = caption(figure, selection, list(setting.runs.values()), "", BANDS, *hollow)
            drawn.pictures.append(
                Picture((setting.label,), partial(_panels, panels, said, True), data_of(figure, series))
            )
    if not selection.groups:
        orders = dict.fromkeys(one.order for one in known)
        panels = [_learned_panel(order, order.split(" "), "accuracy", _of_tasks(known, [order])) for order in orders]
        said = caption(figure, selection, [], "", HOLLOW)
        drawn.pictures.append(Picture((), partial(_panels, panels, said, True), data_of(figure, known)))
    drawn.notes += _unused(figure, known, all_tasks)
    return drawn


def _learned(run: Run, order: str, label: str) -> list[Series]:
    tasks = run.tasks
    found = [
        Series.of(run, order, label, f"{run.scored_by[task]}/{task}", tasks[k:], run.rows[k + 1 :, k])
        for k, task in enumerate(tasks)
    ]
    return [*found, Series.of(run, order, label, MEAN, tasks, learned_so_far(run.rows))]


def _learned_panel(title: str, tasks: Sequence[str], metric: str, series: Sequence[Series]) -> Panel:
    lines = curves(series, tasks, lambda one: one.measure.partition("/")[2] or one.measure)
    return Panel(title, tasks, f"{metric}, %", lines, MEAN, printed(series, tasks))


def _panels(panels: Sequence[Panel], said: str, alike: bool, path: Path) -> None:
    score_panels(panels, path, said, alike)


def ability(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """The mean score so far, and a number of a probe: a panel each, a line per setting, a picture per order."""
    known, drawn, tasks_shown = published(figure), Drawn(), []
    level = figure.data.level
    assert level is not None, f"{figure.name} names no number of a probe"
    default = level.measure.partition("/")[2]
    every = dict.fromkeys(name for group in selection.groups for run in group.runs for name in run.ability[0])
    if asked.ability and asked.ability not in every:
        close = nearest(asked.ability, every)
        said = f"no run measured {asked.ability}; they measured {', '.join(every) or 'no ability'}"
        raise ValueError(said + (f".\nNearest: {close!r}. Type: --ability {close}" if close else ""))
    for order, settings in by_order(selection):
        runs = [run for setting in settings for run in setting.runs.values()]
        tasks, wanted = runs[0].tasks, asked.ability or default
        having = [run for run in runs if wanted in run.ability[0]]
        if len(having) < len(runs):
            drawn.notes.append(_without(wanted, order, runs, len(having), default))
        series = [
            Series.of(run, order, setting.label, MEAN, tasks, learned_so_far(run.rows))
            for setting in settings
            for run in setting.runs.values()
        ]
        measured = [
            Series.of(run, order, setting.label, wanted, [START, *tasks], _ability(run, wanted), unit_of(wanted))
            for setting in settings
            for run in setting.runs.values()
            if wanted in run.ability[0]
        ]
        beside = _of_tasks(known, tasks)
        tasks_shown.append(tasks)
        panels = _ability_panels(figure, tasks, runs[0].measure, wanted, series, measured, beside)
        hollow = [HOLLOW] if any(panel.published for panel in panels) else []
        said = caption(figure, selection, runs, order, f"{BANDS}; {seeds_of(settings)}", *hollow)
        shown = [*beside, *_levels(figure, beside)]
        if wanted != default:
            shown = [one for one in beside if one.measure == "average_accuracy"]
        drawn.pictures.append(
            Picture((order,), partial(_panels, panels, said, False), data_of(figure, [*series, *measured, *shown]))
        )
    if not selection.groups:
        tasks = known[0].order.split(" ")
        panels = _ability_panels(figure, tasks, "score", default, [], [], known)
        said = caption(figure, selection, [], "", HOLLOW)
        drawn.pictures.append(
            Picture((), partial(_panels, panels, said, False), data_of(figure, [*known, *_levels(figure, known)]))
        )
    drawn.notes += _unused(figure, known, tasks_shown)
    return drawn


def _levels(figure: Figure, beside: Sequence[Series]) -> list[Series]:
    """The published value of no run's line, where others are drawn beside."""
    level = figure.data.level
    if level is None or not beside:
        return []
    source = f"{figure.name}, {GRADES[level.grade]}"
    return [Series(beside[0].order, level.text, level.measure, (START,), (level.value,), "%", None, source)]


def _ability(run: Run, name: str) -> Floats:
    columns, rows = run.ability
    found: Floats = rows[:, columns.index(name)]
    return found


def _without(wanted: str, order: str, runs: Sequence[Run], having: int, default: str) -> str:
    others = list(dict.fromkeys(name for run in runs for name in run.ability[0]))
    said = f"{len(runs) - having} of {len(runs)} runs over {order} did not measure {wanted}, of which panel b is"
    if others:
        said += f"; they measured {', '.join(others[:6])}. Type: --ability {others[0]}"
    return said + (f" (or run them with probe={default.partition('/')[0]})" if wanted == default else "")


def _ability_panels(
    figure: Figure,
    tasks: Sequence[str],
    metric: str,
    wanted: str,
    series: Sequence[Series],
    measured: Sequence[Series],
    beside: Sequence[Series],
) -> list[Panel]:
    """Panels a and b; b only where there is something of it."""
    level = figure.data.level
    assert level is not None
    of_scores = [one for one in beside if one.measure == "average_accuracy"]
    of_ability = [one for one in beside if one.measure == f"ability/{wanted}"]
    steps = [START, *tasks]
    what = f"mean {metric} over the tasks so far, %"
    panels = [Panel("a: tasks", tasks, what, curves(series, tasks, _line), "", printed(of_scores, tasks))]
    if measured or of_ability:
        levels = {level.text: level.value} if of_ability else {}
        lines = curves(measured, steps, _line)
        title = f"b: {wanted}" + (", lower is better" if describe(wanted).endswith("lower is better") else "")
        what = ", ".join(part for part in (wanted.rpartition("/")[2], unit_of(wanted)) if part)
        panels.append(Panel(title, steps, what, lines, "", printed(of_ability, steps), levels))
    return panels


def _line(one: Series) -> str:
    return one.line
