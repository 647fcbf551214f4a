"""Where the trained weights lie and what the tasks share of them, from masks.json: numbers and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from cl_runner.matrix import Floats
from cl_runner.report.drawing import (
    COLOURS,
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
    plain_numbers,
    rows_and_columns,
    short,
)
from cl_runner.report.text_table import Table

SHADES = colormaps["YlGnBu"]
#: More tasks than this have no picture each.
MULTIPLES = 8


@dataclass(frozen=True)
class Atlas:
    """The selections of a run as arrays; T tasks, L layers and M modules in the order they are shown."""

    tasks: list[str]
    layers: list[str]
    modules: list[str]
    selected: Floats  # [T, L, M] entries
    parameters: Floats  # [T, L, M] entries that were selected from; 0 where there are none
    overlap: Floats  # [T, T] Jaccard index, NaN but for earlier (column) and later (row)
    overlap_by_layer: Floats  # [T, T, L], NaN also where neither task selects anything in the layer

    @property
    def share(self) -> Floats:
        """[T, L, M] percent of the entries that are selected, NaN where there are none."""
        with np.errstate(invalid="ignore"):
            return 100 * self.selected / self.parameters

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(later, earlier) task numbers whose overlap is known."""
        return [(b, a) for a, b in combinations(range(len(self.tasks)), 2) if np.isfinite(self.overlap[b, a])]

    @property
    def expected(self) -> Floats:
        """[T, T] Jaccard index to expect of random masks as large, each a share of all weights; NaN as in `overlap`."""
        shares = self.selected.sum(axis=(1, 2)) / self.parameters.sum(axis=(1, 2))
        found = np.full_like(self.overlap, np.nan)
        for later, earlier in self.pairs:
            found[later, earlier] = random_jaccard(shares[later], shares[earlier])
        return found


def read_atlas(masks: Sequence[Mapping[str, Any]]) -> Atlas:
    """The entries of masks.json as arrays.

    Args:
        masks: its `tasks`: task, cells (layer, module, selected, parameters), overlap (earlier task: all, layers).
    """
    tasks = [str(mask["task"]) for mask in masks]
    cells = [(number, cell) for number, mask in enumerate(masks) for cell in mask["cells"]]
    layers, modules = rows_and_columns(cell for _, cell in cells)
    row, column = ({name: place for place, name in enumerate(names)} for names in (layers, modules))
    selected = np.zeros((len(tasks), len(layers), len(modules)))
    parameters = np.zeros_like(selected)
    for number, cell in cells:
        place = number, row[cell["layer"]], column[cell["module"]]
        selected[place], parameters[place] = cell["selected"], cell["parameters"]
    overlap = np.full((len(tasks), len(tasks)), np.nan)
    by_layer = np.full((len(tasks), len(tasks), len(layers)), np.nan)
    for later, mask in enumerate(masks):
        for other, found in mask["overlap"].items():
            earlier = tasks.index(other)
            overlap[later, earlier] = found["all"]
            for layer, jaccard in found["layers"].items():
                by_layer[later, earlier, row[layer]] = jaccard
    return Atlas(tasks, layers, modules, selected, parameters, overlap, by_layer)


def mean_atlas(atlases: Sequence[Atlas]) -> Atlas:
    """The mean over runs of one setting, such as its seeds.

    Raises:
        ValueError: they are not of the same tasks, layers and modules.
    """
    first = atlases[0]
    if any((each.tasks, each.layers, each.modules) != (first.tasks, first.layers, first.modules) for each in atlases):
        raise ValueError("the selections of its seeds are not of the same tasks, layers and modules")
    names = ("selected", "parameters", "overlap", "overlap_by_layer")
    means = {name: np.mean([getattr(each, name) for each in atlases], axis=0) for name in names}
    return Atlas(first.tasks, first.layers, first.modules, **means)


def random_jaccard(a: float, b: float) -> float:
    """Jaccard index to expect of two random masks with shares a and b of the same weights; f / (2 - f) if a = b = f."""
    return a * b / (a + b - a * b)


def atlas_values(masks: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any] | None:
    """What templates/atlas.html.j2 shows, its pictures drawn into `folder`; None without masks."""
    if not masks:
        return None
    atlas = read_atlas(masks)
    drawn = {name: folder / f"{name}.png" for name in ("masks", "masks_shares")}
    share_heat_map(atlas, drawn["masks"])
    share_bars(atlas, drawn["masks_shares"])
    if 1 < len(atlas.tasks) <= MULTIPLES:
        drawn["masks_tasks"] = folder / "masks_tasks.png"
        share_multiples({"": atlas}, drawn["masks_tasks"])
    counts, entries = atlas.selected.sum(axis=(1, 2)), atlas.parameters.sum(axis=(1, 2))
    rows = [
        [task, f"{count:,.0f}", f"{among:,.0f}", f"{100 * count / among:.3g}"]
        for task, count, among in zip(atlas.tasks, counts, entries, strict=True)
    ]
    values = {"tasks": len(rows), "table": Table(["task", "selected", "out of", "%"], rows), "drawn": drawn}
    if not atlas.pairs:
        return values | {"overlap": None}
    drawn |= {name: folder / f"{name}.png" for name in ("overlap", "overlap_layers")}
    overlap_heat_map({"": atlas}, drawn["overlap"])
    overlap_lines(atlas, drawn["overlap_layers"])
    means = {"measured": float(np.nanmean(atlas.overlap)), "expected": float(np.nanmean(atlas.expected))}
    return values | {"overlap": means}


def _log_scale(percent: Floats) -> LogNorm:
    """From the least to the largest share above 0, at least a decade: what differs less is about the same."""
    found = percent[percent > 0]
    high = float(found.max()) if found.size else 1.0
    return LogNorm(min(float(found.min()) if found.size else high, high / 10), high)


def _mean_share(atlas: Atlas) -> Floats:
    """[L, M] percent, the mean over tasks of `share`; NaN where nothing was selected from."""
    known = np.isfinite(atlas.share)
    with np.errstate(invalid="ignore"):
        return np.where(known, atlas.share, 0.0).sum(axis=0) / known.sum(axis=0)


def _percent_text(percent: float) -> str:
    """Two digits, or what there is room for."""
    if not np.isfinite(percent):
        return ""
    if percent == 0:
        return "0"
    return f"{percent:.2g}" if 0.001 <= percent < 99.5 else f"{percent:.0e}" if percent < 1 else f"{percent:.0f}"


def share_heat_map(atlas: Atlas, path: Path) -> None:
    """Share of selected weights by layer and module, mean over tasks, on a log scale (PIECE, figure 3)."""
    percent = _mean_share(atlas)
    scale = _log_scale(percent)
    texts = [[_percent_text(value) for value in row] for row in percent]
    names = layer_names(atlas.layers), module_names(atlas.modules)
    notes = "selected, % of the weights of the layer and module · empty: not selected from", "selected, % (log scale)"
    with drawing(path, max(6.0, 0.72 * len(atlas.modules) + 2.6), 0.26 * len(atlas.layers) + 1.7) as figure:
        axes = figure.add_subplot()
        _grey_zeros(axes, percent)
        heat_map(axes, np.where(percent > 0, percent, np.nan), texts, names, SHADES, scale, notes, 7.5)


def _grey_zeros(axes: Axes, percent: Floats) -> None:
    """Pale grey under the cells of which nothing is selected, which have no place on a log scale."""
    cells(axes, np.where(percent != 0, np.nan, 0.0), colormaps["Greys"], Normalize(-1, 10))


def share_multiples(atlases: Mapping[str, Atlas], path: Path, caption: str = "") -> None:
    """The heat map of `share_heat_map` for each task, without numbers, on one scale (PIECE, figure 3).

    Args:
        atlases: label -> selections in the same layers and modules; each begins a row of its own.
        caption: below it.
    """
    first = next(iter(atlases.values()))
    scale = _log_scale(np.concatenate([atlas.share.ravel() for atlas in atlases.values()]))
    across = max(grid_shape(len(atlas.tasks), 4)[1] for atlas in atlases.values())
    rows = [grid_shape(len(atlas.tasks), across)[0] for atlas in atlases.values()]
    width, height = 0.19 * len(first.modules) + 0.25, max(1.5, 0.125 * len(first.layers) + 0.35)
    with drawing(path, across * width + 2.0, sum(rows) * height + 1.1, {"font.size": 6.5}, caption) as figure:
        grid = figure.subplots(sum(rows), across, squeeze=False)
        for number, (label, atlas) in enumerate(atlases.items()):
            block = list(grid[sum(rows[:number]) : sum(rows[: number + 1])].flat)
            for axes in block[len(atlas.tasks) :]:
                axes.set_visible(False)
            for place, (axes, task, percent) in enumerate(zip(block, atlas.tasks, atlas.share, strict=False)):
                _grey_zeros(axes, percent)
                cells(axes, np.where(percent > 0, percent, np.nan), SHADES, scale)
                axes.set_title(f"{short(label, 30)}\n{short(task, 22)}" if label else short(task, 22), fontsize=8)
                axes.grid(False)
                axes.spines[:].set_visible(False)
                axes.tick_params(length=0)
                left = place % across == 0
                lowest = place + across >= len(atlas.tasks) and number == len(atlases) - 1
                axes.set_yticks(range(len(atlas.layers)), layer_names(atlas.layers) if left else [])
                names = module_names(atlas.modules) if lowest else []
                axes.set_xticks(range(len(atlas.modules)), names, rotation=90)
        bar = figure.colorbar(ScalarMappable(scale, SHADES), ax=figure.axes, fraction=0.02, pad=0.01, aspect=50)
        bar.set_label("selected, % (log scale)", fontsize=8)
        plain_numbers(bar.ax)
        bar.outline.set_visible(False)


def share_bars(atlas: Atlas, path: Path) -> None:
    """How the selected weights, mean over tasks, are shared out over modules and layers, beside all there were."""
    selected = (atlas.selected / atlas.selected.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
    weights = (atlas.parameters / atlas.parameters.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
    names = module_names(atlas.modules), layer_names(atlas.layers)
    with drawing(path, 7.6, 0.24 * (len(names[0]) + len(names[1])) + 1.8) as figure:
        upper, lower = figure.subplots(2, 1, height_ratios=[len(labels) + 1 for labels in names])
        for axis, (axes, labels) in enumerate(zip((upper, lower), names, strict=True)):
            shares, reference = 100 * selected.sum(axis=axis), 100 * weights.sum(axis=axis)
            places = np.arange(len(labels))
            axes.barh(places, shares, color=COLOURS[0], label="of the selected weights")
            axes.plot(
                reference, places, "|", color=COLOURS[5], markersize=9, mew=2, label="of the weights to choose from"
            )
            for place, share in enumerate(shares):
                text = "< 0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"
                axes.annotate(
                    text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=7.5, color=COLOURS[0]
                )
            name_bars(axes, labels, range(len(labels)))
            axes.set_xlim(0, 1.03 * max(float(shares.max()), float(reference.max())))
        legend_above(upper)
        lower.set_xlabel("share, %")


def overlap_heat_map(atlases: Mapping[str, Atlas], path: Path, caption: str = "") -> None:
    """Jaccard index of every two tasks' selections (PIECE, figure 5), later tasks down, earlier ones across.

    Args:
        atlases: label -> selections for two tasks or more; a panel each, on one scale.
        caption: below it.
    """
    scale = Normalize(0, max(*(float(np.nanmax(atlas.overlap)) for atlas in atlases.values()), 1e-3))
    count = max(len(atlas.tasks) for atlas in atlases.values()) - 1
    width, height, size = heat_map_size(count, count)
    down, across = grid_shape(len(atlases), 2)
    notes = "Jaccard index of the selected weights", "Jaccard index"
    with drawing(path, width * across, (height + 0.4 * any(atlases)) * down, caption=caption) as figure:
        for axes, (label, atlas) in zip(panels(figure, len(atlases), 2), atlases.items(), strict=True):
            texts = [[_jaccard_text(value) for value in row] for row in atlas.overlap[1:, :-1]]
            names = [short(task) for task in atlas.tasks[1:]], atlas.tasks[:-1]
            heat_map(axes, atlas.overlap[1:, :-1], texts, names, SHADES, scale, notes, size)
            if label:
                axes.set_title(label, loc="left")


def _jaccard_text(value: float) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def overlap_lines(atlas: Atlas, path: Path) -> None:
    """Jaccard index by layer: mean and range over the pairs of tasks, and that of random masks as large per layer."""
    later, earlier = map(list, zip(*atlas.pairs, strict=True))
    found = np.ma.masked_invalid(atlas.overlap_by_layer[later, earlier])
    inside = atlas.parameters.sum(axis=2)
    shares = atlas.selected.sum(axis=2) / np.where(inside > 0, inside, 1)
    a, b = shares[later], shares[earlier]
    expected = np.ma.masked_invalid(np.divide(a * b, a + b - a * b, out=np.full_like(a, np.nan), where=a + b > 0))
    places = np.arange(len(atlas.layers))
    with drawing(path, max(6.4, 0.27 * len(places) + 1.4), 3.8) as figure:
        axes = figure.add_subplot()
        label = f"mean over {len(found)} pairs of tasks, and their range" if len(found) > 1 else "measured"
        axes.plot(places, found.mean(axis=0), "o-", color=COLOURS[0], markersize=4, label=label)
        if len(found) > 1:
            axes.fill_between(places, found.min(axis=0), found.max(axis=0), color=COLOURS[0], alpha=0.15, linewidth=0)
        axes.plot(places, expected.mean(axis=0), "--", color=COLOURS[1], label="random masks as large in each layer")
        axes.set_xticks(places, layer_names(atlas.layers), rotation=60, ha="right", rotation_mode="anchor")
        axes.set_ylim(0, 1.08 * max(float(found.max()), float(expected.max()), 1e-3))
        axes.set_ylabel("Jaccard index")
        axes.margins(x=0.02)
        legend_above(axes)
