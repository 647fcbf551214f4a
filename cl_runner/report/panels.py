"""Scores after each task in several panels, with published numbers beside them: SLM, figure 9, and PIECE, figure 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from cl_runner.matrix import Floats
from cl_runner.report.drawing import MARKERS, drawing, grid_shape, panels, short
from cl_runner.report.plots import draw_lines, legend_columns, name_steps

#: Markers of published numbers.
HOLLOW = (*MARKERS, "p", "h", "<", ">")
#: Between two published numbers of the last step, which stand right of it.
WIDE = 0.3


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


def score_panels(shown: Sequence[Panel], path: Path, caption: str = "", alike: bool = False) -> None:
    """Panels, two in a row, with one legend above them: what was measured in colours, what was published black, hollow.

    Args:
        alike: whether all have one scale.
    """
    labels = list(dict.fromkeys(label for panel in shown for label in panel.lines if label != panel.mean))
    printed = list(dict.fromkeys(label for panel in shown for label in panel.published))
    down, across = grid_shape(len(shown), 2)
    width = max(6.8, across * max(0.5 * len(shown[0].steps) + 1.2, 4.2))
    entries = [*labels, *(panel.mean for panel in shown[:1] if panel.mean), *map(_published, printed)]
    entries += [_published(text) for panel in shown for text in panel.levels]
    columns = legend_columns(entries, int(width / 1.8))
    with drawing(path, width, 3.3 * down + 0.6 + 0.19 * -(-len(entries) // columns), caption=caption) as figure:
        handles: dict[str, Artist] = {}
        plots = panels(figure, len(shown), 2)
        for axes, panel in zip(plots, shown, strict=True):
            _panel(axes, panel, labels, printed)
            found, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, found, strict=True))
        if alike:
            low, high = (pick(axes.get_ylim()[end] for axes in plots) for end, pick in ((0, min), (1, max)))
            for axes in plots:
                axes.set_ylim(low, high)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns, fontsize=8)


def _published(label: str) -> str:
    return f"{label} (published)"


def _panel(axes: Axes, panel: Panel, labels: Sequence[str], printed: Sequence[str]) -> None:
    draw_lines(axes, {label: values for label, values in panel.lines.items() if label != panel.mean}, labels)
    if panel.mean in panel.lines:
        values = panel.lines[panel.mean].mean(axis=0)
        axes.plot(np.arange(len(values)), values, "-", color="black", linewidth=2.2, label=panel.mean, zorder=3)
    last, right = len(panel.steps) - 1, len(panel.steps) - 1.0
    for label, points in panel.published.items():
        marker = HOLLOW[printed.index(label) % len(HOLLOW)]
        style: dict[str, Any] = {"color": "black", "marker": marker, "markerfacecolor": "white", "markersize": 5.5}
        style["label"] = _published(label)
        steps = sorted(points)
        if steps == [last]:  # the ends of several lines side by side, where none hides another
            right += WIDE
            axes.plot([right], [points[last]], linestyle="", zorder=4, **style)
        else:
            axes.plot(steps, [points[step] for step in steps], linestyle=":", linewidth=1.2, zorder=2.5, **style)
    for text, value in panel.levels.items():
        axes.axhline(value, color="black", linestyle=(0, (6, 3)), linewidth=0.8, label=_published(text))
    name_steps(axes, panel.steps)
    if right > last:
        axes.axvspan(last + WIDE / 2, right + WIDE / 2, color="#eeeeee", zorder=0, linewidth=0)
    axes.set_xlim(-0.15, right + 0.15 + WIDE / 2 * (right > last))
    axes.set_title(short(panel.title, 60), loc="left")
    axes.set_xlabel("after task")
    axes.set_ylabel(panel.what)
