"""Scores after each task in several panels, with published numbers beside them: SLM, figure 9, and PIECE, figure 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from cl_runner.matrix import Floats
from cl_runner.report.drawing import COLOURS, MARKERS, drawing, grid_shape, panels, short
from cl_runner.report.plots import draw_lines, legend_columns, name_steps


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        steps: [t] names, the x axis.
        what: the y axis, with its unit.
        lines: label -> [n seeds, t]; NaN where a line has no value yet.
        mean: label of the line that is drawn thick and black, if any.
        published: label -> values by the number of their step.
        levels: text -> a value of no step.
    """

    title: str
    steps: Sequence[str]
    what: str
    lines: Mapping[str, Floats]
    mean: str = ""
    published: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)


def score_panels(shown: Sequence[Panel], path: Path, caption: str = "", most: int = 2) -> None:
    """Panels with one legend above them: what was measured filled, what was published hollow.

    Args:
        most: panels in a row.
    """
    labels = list(dict.fromkeys(label for panel in shown for label in panel.lines if label != panel.mean))
    printed = list(dict.fromkeys(label for panel in shown for label in panel.published))
    down, across = grid_shape(len(shown), most)
    width = max(6.8, across * max(0.5 * len(shown[0].steps) + 1.2, 4.2))
    entries = [*labels, *(panel.mean for panel in shown[:1] if panel.mean), *map(_published, printed)]
    entries += [text for panel in shown for text in panel.levels]
    columns = legend_columns(entries, max(2, int(width / 2)))
    with drawing(path, width, 3.3 * down + 0.6 + 0.19 * -(-len(entries) // columns), caption=caption) as figure:
        handles: dict[str, Artist] = {}
        for axes, panel in zip(panels(figure, len(shown), most), shown, strict=True):
            _panel(axes, panel, labels, printed)
            found, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, found, strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns, fontsize=8)


def _published(label: str) -> str:
    return f"{label} (published)"


def _panel(axes: Axes, panel: Panel, labels: Sequence[str], printed: Sequence[str]) -> None:
    draw_lines(axes, {label: values for label, values in panel.lines.items() if label != panel.mean}, labels)
    if panel.mean in panel.lines:
        values = panel.lines[panel.mean].mean(axis=0)
        axes.plot(np.arange(len(values)), values, "-", color="black", linewidth=2.2, label=panel.mean, zorder=3)
    ends: list[str] = []
    for label, points in panel.published.items():
        number = printed.index(label)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        steps = sorted(points)
        style = {"color": colour, "marker": marker, "markerfacecolor": "white", "label": _published(label)}
        if steps == [len(panel.steps) - 1]:
            # The ends of several, side by side right of the last step, where none hides another.
            axes.plot([steps[0] + 0.35 + 0.3 * len(ends)], [points[steps[0]]], linestyle="", clip_on=False, **style)
            ends.append(label)
        else:
            axes.plot(steps, [points[step] for step in steps], linestyle=":", linewidth=1.2, zorder=2.5, **style)
    for text, value in panel.levels.items():
        axes.axhline(value, color="#777777", linestyle=(0, (6, 3)), linewidth=1, label=_published(text))
    name_steps(axes, panel.steps)
    if ends:
        last = len(panel.steps) - 1
        axes.axvspan(last + 0.15, last + 0.35 + 0.3 * len(ends), color="#eeeeee", zorder=0, linewidth=0)
    axes.set_title(short(panel.title, 60), loc="left")
    axes.set_xlabel("after task")
    axes.set_ylabel(panel.what)
