"""Pictures of runs. Every function draws one figure of its own and writes it to `path`, in the format it ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from cl_runner.matrix import Floats
from cl_runner.report.costs import bytes_text
from cl_runner.report.drawing import (
    COLOURS,
    MARKERS,
    MOST,
    cells,
    drawing,
    grid_shape,
    heat_map,
    heat_map_size,
    layer_names,
    legend_above,
    module_names,
    name_bars,
    panels,
    rows_and_columns,
    short,
    signed,
    thinned,
)


def accuracy_heat_map(tasks: Sequence[str], rows: Floats, path: Path, measure: str, columns: Sequence[str]) -> None:
    """The score of every test set (columns, percent) at the start and after each task (rows).

    Args:
        rows: [t + 1, T], as in cl_runner/matrix.py. Cells of tasks not yet trained are pale, those not measured empty.
        measure: what the scores are, such as accuracy.
        columns: names of the test sets; a second line may name a metric.
    """
    colours = colormaps["viridis"]
    trained = np.arange(len(rows))[:, None] > np.arange(len(tasks))
    # The scale serves the tasks that were trained; `start` would take half of it.
    measured = np.isfinite(rows)
    spread = rows[trained & measured] if (trained & measured).any() else np.append(rows[measured], 0.0)
    scale = Normalize(float(np.floor(spread.min())), max(float(np.ceil(spread.max())), spread.min() + 1), clip=True)
    width, height, size = heat_map_size(len(rows), len(tasks))
    texts = [["" if np.isnan(value) else f"{value:.1f}" for value in row] for row in rows]
    names = ["start", *(f"after {short(task)}" for task in tasks[: len(rows) - 1])], columns
    empty = "" if measured.all() else " · empty: not measured"
    notes = f"test set · {measure} in %\npale: task not yet trained{empty}", f"{measure}, %"
    with drawing(path, width, height) as figure:
        axes = figure.add_subplot()
        heat_map(axes, np.where(trained, rows, np.nan), texts, names, colours, scale, notes, size)
        pale = colours(scale(np.where(measured, rows, 0.0)))
        pale[..., 3] = np.where(~trained & measured, 0.14, 0.0)
        cells(axes, pale)


def forgetting_heat_map(tasks: Sequence[str], forgetting: Floats, path: Path) -> None:
    """Forgetting F[t,u] in percentage points (`cl_runner.matrix.forgetting_matrix`), [t, T] with t > 1."""
    shown = forgetting[1:, : len(forgetting) - 1]
    limit = max(float(np.nanmax(np.abs(shown))), 1.0)
    width, height, size = heat_map_size(*shown.shape)
    colours, scale = colormaps["RdBu_r"], Normalize(-limit, limit)
    texts = [[signed(value) if np.isfinite(value) else "" for value in row] for row in shown]
    names = [f"after {short(task)}" for task in tasks[1 : len(forgetting)]], tasks[: len(forgetting) - 1]
    notes = "test set · forgetting/chaudhry18 in points\nblue: improved", "points lost"
    with drawing(path, width, height) as figure:
        heat_map(figure.add_subplot(), shown, texts, names, colours, scale, notes, size)


def lines_over_tasks(
    tasks: Sequence[str],
    curves: Mapping[str, Floats],
    path: Path,
    what: str,
    interval: Floats | None = None,
    caption: str = "",
) -> None:
    """A score after each task, a line per method: of the first task (PE, figure 3), of all so far (SLM, figure 9).

    Args:
        tasks: [T] names, the x axis.
        curves: label -> [n seeds, t] percent, t <= T; the line is the mean, the band one sample deviation around it.
        what: the scores are, such as accuracy on kettles; they are percent.
        interval: [t, 2] bounds in percent around the only line of a single run.
        caption: below it.
    """
    height = 4.2 + (0.05 * max(map(len, tasks)) if len(tasks) > 6 else 0.0)  # room for slanted names
    with drawing(path, max(6.4, 0.45 * min(len(tasks), MOST) + 3.2), height, caption=caption) as figure:
        axes = figure.add_subplot()
        draw_lines(axes, curves, list(curves))
        if interval is not None:
            axes.fill_between(range(len(interval)), *interval.T, color=COLOURS[0], alpha=0.15, linewidth=0)
        name_steps(axes, tasks)
        axes.set_xlabel("after task")
        axes.set_ylabel(f"{what}, %")
        if len(curves) > 1 and max(map(len, curves)) <= 24:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
        elif len(curves) > 1:
            columns = legend_columns(curves)
            figure.set_size_inches(figure.get_figwidth() + 1.2, height + 0.2 * -(-len(curves) // columns))
            figure.legend(loc="outside upper center", ncols=columns)


def legend_columns(labels: Iterable[str], most: int = 4) -> int:
    """Columns of a legend as wide as a figure."""
    return max(1, min(most, 96 // (max(map(len, labels)) + 6)))


def draw_lines(axes: Axes, curves: Mapping[str, Floats], labels: Sequence[str]) -> None:
    """A line through the mean over seeds, with a band of one sample deviation.

    Args:
        curves: label -> [n seeds, steps].
        labels: all there are, each with its own colour and marker.
    """
    shade = 0.15 if len(curves) < 5 else 0.07
    for label, runs in curves.items():
        number, steps, mean = labels.index(label), np.arange(runs.shape[1]), runs.mean(axis=0)
        colour = COLOURS[number % len(COLOURS)]
        name = f"{label} (n = {len(runs)})" if len(runs) > 1 else label
        dashes = "-" if number < len(COLOURS) else "--"
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(steps, mean, dashes, color=colour, label=name, marker=marker, markersize=4.5)
        if len(runs) > 1:
            spread = runs.std(axis=0, ddof=1)
            axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=shade, linewidth=0)


def name_steps(axes: Axes, steps: Sequence[str]) -> None:
    """Names below places of a curve, as many as there is room for, slanted where they are long or many."""
    axes.set_xticks(thinned(len(steps)), [short(steps[place]) for place in thinned(len(steps))])
    if len(steps) > 6 or max(map(len, steps)) > 9:
        axes.tick_params(axis="x", rotation=40)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    axes.margins(x=0.03)


def ability_lines(steps: Sequence[str], curves: Mapping[str, Mapping[str, Floats]], path: Path) -> None:
    """The change of general ability since `start` (retention curve), a panel per number and a line per method.

    Args:
        steps: `start`, then the tasks.
        curves: number with its unit -> label -> values [n seeds, steps so far], in the number's unit.
    """
    labels = list(dict.fromkeys(label for lines in curves.values() for label in lines))
    down, across = grid_shape(len(curves), 2)
    rows = -(-len(labels) // legend_columns(labels, len(labels)))
    width = max(6.4, 0.45 * min(len(steps), MOST) + 3.0) if across == 1 else 10.6
    with drawing(path, width, 2.5 * down + 1.0 + 0.2 * rows) as figure:
        handles: dict[str, Artist] = {}
        for place, (axes, title) in enumerate(zip(panels(figure, len(curves), 2), curves, strict=True)):
            axes.axhline(0, color="#888888", linewidth=1)
            draw_lines(axes, {label: values - values[:, :1] for label, values in curves[title].items()}, labels)
            lines, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, lines, strict=True))
            axes.set_title(short(title, 62), loc="left")
            # Names only below the lowest panel of each column.
            name_steps(axes, steps)
            if place + across < len(curves):
                axes.tick_params(axis="x", labelbottom=False)
            if place % across == 0:
                axes.set_ylabel("change since start")
        if len(labels) > 1:
            figure.legend(
                handles.values(), handles.keys(), loc="outside upper center", ncols=legend_columns(labels, len(labels))
            )


def fisher_map(after: str, layers: Sequence[Mapping[str, Any]], path: Path, caption: str = "") -> None:
    """Mean Fisher information by layer and module, log10, darker = larger (PE, figure 4).

    Args:
        after: name of the latest task it was computed after, or before which it was computed.
        layers: the `layers` of fisher.json: layer, module, log10_mean (None where all zero), zero_fraction.
        caption: below it.
    """
    rows, columns = rows_and_columns(layers)
    values = np.full((len(rows), len(columns)), np.nan)
    texts = [["" for _ in columns] for _ in rows]
    for cell in layers:
        row, column = rows.index(str(cell["layer"])), columns.index(cell["module"])
        if cell["log10_mean"] is not None:
            values[row, column] = cell["log10_mean"]
        mean = "all zero" if cell["log10_mean"] is None else signed(cell["log10_mean"])
        partly = cell["zero_fraction"] > 0 and cell["log10_mean"] is not None
        texts[row][column] = mean + (f"\n{_share(100 * cell['zero_fraction'])} zero" if partly else "")
    colours = colormaps["YlGnBu"]
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    scale = Normalize(low, max(high, low + 0.5))
    names = layer_names(rows), module_names(columns)
    notes = f"log10 of the mean Fisher before {short(after)}\nbelow it the share of exact zeros, if any"
    with drawing(path, 0.85 * len(columns) + 2.6, 0.44 * len(rows) + 1.7, caption=caption) as figure:
        axes = figure.add_subplot(facecolor="#f3f3f3")
        heat_map(axes, values, texts, names, colours, scale, (notes, "log10 mean Fisher"), 7)


def _share(percent: float) -> str:
    return f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def storage_bars(details: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bytes stored per task against the whole model, on a log scale (PE, table 3).

    Args:
        details: `tasks_detail` of summary.json: name, stored_bytes, model_bytes.
    """
    stored = [int(task["stored_bytes"]) for task in details]
    model = int(details[0]["model_bytes"])
    with drawing(path, 7.6, 0.34 * min(len(details), MOST) + 1.3) as figure:
        axes = figure.add_subplot()
        floor = min([size for size in stored if size] or [model]) / 8
        axes.barh(range(len(details)), [max(size, floor) - floor for size in stored], left=floor, color=COLOURS[0])
        axes.axvline(model, color=COLOURS[1], linestyle="--", linewidth=1.2)
        axes.set_title(f"dashed: the whole model, {bytes_text(model)}", color=COLOURS[1], fontsize=9, loc="right")
        for place in thinned(len(stored)):
            size = stored[place]
            text = f" {bytes_text(size)} · {100 * size / model:.3g} %" if size else " nothing stored"
            inside = size > model / 30
            axes.text(
                size if inside else max(size, floor),
                place,
                text + " " if inside else text,
                va="center",
                ha="right" if inside else "left",
                fontsize=8,
                color="white" if inside else "black",
            )
        name_bars(axes, [str(task["name"]) for task in details], thinned(len(details)))
        axes.set_xscale("log", base=4)
        axes.set_xlim(floor, model * 2)
        axes.xaxis.set_major_formatter(lambda size, _: bytes_text(size))
        axes.xaxis.set_minor_formatter(lambda size, _: "")
        axes.set_xlabel("bytes stored for the task (log scale)")


def phase_bars(details: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Seconds per task: between tasks (importance and the like), training, evaluation and probes, the rest.

    Args:
        details: `tasks_detail` of summary.json: name, phases {phase: seconds}.
    """
    groups = {
        "between tasks": ("importance", "selection", "answers"),
        "prepare, train": ("prepare", "queries", "keys", "train"),
        "evaluation, probes": ("evaluate", "probe"),
        "saving and reporting": ("load", "snapshot", "checkpoint", "describe", "report"),
    }
    with drawing(path, 7.6, 0.34 * min(len(details), MOST) + 1.7) as figure:
        axes = figure.add_subplot()
        start = np.zeros(len(details))
        for colour, (label, phases) in zip(
            (COLOURS[5], COLOURS[0], COLOURS[2], "#b0b0b0"), groups.items(), strict=True
        ):
            seconds = np.array([sum(task["phases"].get(phase, 0.0) for phase in phases) for task in details])
            axes.barh(range(len(details)), seconds, left=start, color=colour, label=label)
            start += seconds
        for place in thinned(len(start)):
            axes.text(start[place], place, f" {start[place]:.1f} s", va="center", fontsize=8)
        name_bars(axes, [str(task["name"]) for task in details], thinned(len(details)))
        axes.set_xlim(0, 1.12 * max(float(start.max()), 1e-3))
        axes.set_xlabel("seconds")
        legend_above(axes)


def loss_curve(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training loss over all steps with the boundaries between tasks.

    Args:
        lines: the training lines of metrics.jsonl: task, task_index, step, loss.
    """
    with drawing(path, 9.0, 3.6) as figure:
        axes = figure.add_subplot()
        parts: dict[int, list[Mapping[str, Any]]] = {}
        for line in lines:
            parts.setdefault(int(line["task_index"]), []).append(line)
        indices = sorted(parts)
        crowded, named = len(indices) > 6, {indices[place] for place in thinned(len(indices))}
        losses = np.array([line["loss"] for line in lines], dtype=float)
        # A few first steps of an unfit head must not flatten everything after them.
        top = max(1.15 * float(np.percentile(losses, 99)), float(np.median(losses)) + 1e-9)
        for index in indices:
            part = parts[index]
            steps = np.array([line["step"] for line in part])
            loss = np.array([line["loss"] for line in part], dtype=float)
            colour = COLOURS[index % 2]
            window = max(1, len(loss) // 15)
            axes.plot(steps, loss, color=colour, alpha=0.3, linewidth=0.8, marker="." if len(loss) == 1 else None)
            if window > 1:
                smooth = np.convolve(loss, np.full(window, 1 / window), mode="valid")
                axes.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.5)
            else:
                axes.plot(steps, loss, color=colour, linewidth=1.2)
            axes.axvline(steps[0], color="#bbbbbb", linewidth=0.7)
            if index not in named:
                continue
            axes.annotate(
                short(str(part[0]["task"]), 22),
                (float(steps[0]), 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(2, 3),
                textcoords="offset points",
                fontsize=7.5,
                rotation=40 if crowded else 20,
                ha="left",
                va="bottom",
                color=colour,
            )
        axes.set_ylim(min(0.0, float(losses.min())), top)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss")
        axes.grid(False, axis="x")
        axes.margins(x=0.01)


def final_points(values: Mapping[str, Sequence[float]], metric: str, unit: str, path: Path) -> None:
    """One metric for several groups of runs: every seed a dot, the mean a bar, one sample deviation a whisker.

    Args:
        values: label -> the metric of each seed.
        unit: of the metric, for the axis.
    """
    with drawing(path, 7.6, 0.36 * len(values) + 1.1) as figure:
        axes = figure.add_subplot()
        for place, numbers in enumerate(values.values()):
            seeds = np.array(numbers)
            spread = seeds.std(ddof=1) if len(seeds) > 1 else 0.0
            axes.errorbar(seeds.mean(), place, xerr=spread, color=COLOURS[0], marker="|", markersize=14, capsize=3)
            axes.plot(seeds, np.full(len(seeds), place), "o", color=COLOURS[1], markersize=4, alpha=0.7)
            axes.annotate(
                f"{seeds.mean():.2f}" + (f" ± {spread:.2f}" if len(seeds) > 1 else ""),
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(values)), [short(label, 60) for label in values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlabel(f"{metric}, {unit} · dot: a seed, whisker: ± one sample deviation" if unit else metric)
        axes.margins(x=0.08)


def trade_off(points: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, path: Path) -> None:
    """Two numbers of many runs against each other.

    Args:
        points: label -> (x, y) of each run.
        x, y: names and units of the axes.
    """
    with drawing(path, 7.6, 4.6) as figure:
        axes = figure.add_subplot()
        axes.axhline(0, color="#888888", linewidth=1)
        for number, (label, pairs) in enumerate(points.items()):
            ordered = np.array(sorted(pairs))
            colour = COLOURS[number % len(COLOURS)]
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(ordered[:, 0], ordered[:, 1], "-", color=colour, linewidth=1, alpha=0.5)
            axes.plot(
                ordered[:, 0], ordered[:, 1], marker, color=colour, markersize=5, linestyle="", label=short(label)
            )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.legend(loc="best", fontsize=8)
