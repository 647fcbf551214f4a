"""Figures of scores after the last task, bars of several settings side by side: SLM 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.matrix import Floats
from cl_runner.papers.figures import Figure
from cl_runner.papers.lines import HEADER, Series, data_of, published
from cl_runner.papers.picture import Asked, Drawn, Picture, Selection, by_order, caption, seeds_of
from cl_runner.report.drawing import COLOURS, drawing, short
from cl_runner.report.plots import legend_columns
from cl_runner.report.text_table import Table

MEAN = "mean"
WHISKERS = "Bars: means over seeds; whiskers: ± one sample standard deviation"
HOLLOW = "black and hollow: published means"


def bars(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """The score of every task after the last one, and their mean: a bar per setting, a picture per order."""
    known, drawn = published(figure), Drawn()
    for order, settings in by_order(selection):
        runs = [run for setting in settings for run in setting.runs.values()]
        tasks = runs[0].tasks
        series = [
            Series.of(run, order, setting.label, f"{run.scored_by[task]}/{task}", tasks[-1:], run.rows[-1:, place])
            for setting in settings
            for run in setting.runs.values()
            for place, task in enumerate(tasks)
        ]
        series += [
            Series.of(run, order, setting.label, MEAN, tasks[-1:], run.rows[-1:].mean(axis=1))
            for setting in settings
            for run in setting.runs.values()
        ]
        values = {
            setting.label: np.array([[*run.rows[-1], run.rows[-1].mean()] for run in setting.runs.values()])
            for setting in settings
        }
        beside = [one for one in known if one.order == " ".join(tasks)]
        printed = {one.line: one.values[0] for one in beside}
        more = [WHISKERS + (f"; {HOLLOW}" if printed else ""), seeds_of(settings)]
        said = caption(figure, selection, runs, order, "; ".join(more))
        metric = f"{runs[0].measure} after the last task, %"
        draw = partial(_bars, [*tasks, MEAN], values, printed, metric, said)
        drawn.pictures.append(Picture((order,), draw, data_of(figure, [*series, *beside])))
    if not selection.groups:
        table = Table(HEADER, [[figure.name, *row] for one in known for row in one.rows()], figure.data.title)
        for order in dict.fromkeys(one.order for one in known):
            printed = {one.line: one.values[0] for one in known if one.order == order}
            draw = partial(
                _bars, [MEAN], {}, printed, "accuracy after the last task, %", caption(figure, selection, [], "")
            )
            drawn.pictures.append(Picture((order,), draw, table))
    return drawn


def _bars(
    names: Sequence[str],
    values: Mapping[str, Floats],
    printed: Mapping[str, float],
    what: str,
    said: str,
    path: Path,
) -> None:
    """Groups of bars.

    Args:
        values: setting -> [n seeds, names].
        printed: what the paper calls a setting -> its mean.
    """
    width = 0.8 / max(1, len(values))
    entries = [*values, *printed]
    columns = legend_columns(entries)
    tall = 3.8 + 0.2 * -(-len(entries) // columns)
    with drawing(path, max(6.4, 0.3 * len(names) * max(1, len(values)) + 2.2), tall, caption=said) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(names))
        for number, (label, seeds) in enumerate(values.items()):
            spread = seeds.std(axis=0, ddof=1) if len(seeds) > 1 else None
            style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": label, "capsize": 2.5}
            axes.bar(places + (number + 0.5) * width - 0.4, seeds.mean(axis=0), width * 0.94, yerr=spread, **style)
        for number, (line, value) in enumerate(printed.items()):
            place = len(names) - 1 + (number + 0.5) * 0.8 / len(printed) - 0.4
            marker = "osD^v"[number % 5]
            axes.plot(place, value, marker, color="black", markerfacecolor="white", label=f"{line} (published)")
        axes.set_xticks(places, [short(name) for name in names])
        axes.grid(False, axis="x")
        axes.set_ylabel(what)
        if min((float(seeds.min()) for seeds in values.values()), default=0.0) >= 0:
            axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper center", ncols=columns, fontsize=8)
