"""Texts inside the model: states that probe=representations kept, as pictures (PIECE, figure 4), and their CKA."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from safetensors import SafetensorError, safe_open

from cl_runner.digests import Damaged, read
from cl_runner.matrix import START, Floats
from cl_runner.report.ability import APART
from cl_runner.report.drawing import COLOURS, drawing, heat_map, heat_map_size, short
from cl_runner.report.folder import Run
from cl_runner.report.plots import draw_lines, legend_columns, name_steps
from cl_runner.report.retrieval import task_colours, tsne
from cl_runner.report.text_table import Table

FOLDER = Path("probes") / "representations"
CKA = f"{APART}cka/"
#: States that are drawn side by side, at most.
COLUMNS = 6
UNTOUCHED = "untouched model"
Projection = Literal["pca", "tsne"]
NEEDED = "pictures of representations need scikit-learn. Type: pip install 'cl-runner[retrieval]'"


@dataclass(frozen=True)
class States:
    """States of the same texts in some blocks.

    Attributes:
        texts: their digest.
        tasks: that each text is of, [N].
        blocks: name of a block -> [N, width].
    """

    texts: str
    tasks: tuple[str, ...]
    blocks: Mapping[str, Floats]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What states that can be drawn together share."""
        return (self.texts, *((name, values.shape[1]) for name, values in self.blocks.items()))


@dataclass(frozen=True)
class Maps:
    """Places of texts in two dimensions, columns side by side.

    Attributes:
        columns: names.
        tasks: that each text is of, [N].
        places: name of a block -> [N, 2] of each column, of one projection.
        shares: name of a block -> percent of the variance that its two dimensions have; empty where there is no such.
        cka: name of a column -> that of a block -> how like the untouched model's its states are; of some or none.
    """

    columns: list[str]
    tasks: tuple[str, ...]
    places: Mapping[str, Sequence[Floats]]
    shares: Mapping[str, float]
    cka: Mapping[str, Mapping[str, float]]


def kept_after(run: Run) -> list[str]:
    """After which tasks a run kept states, `start` first."""
    return [after for after in (START, *run.tasks) if _path(run, after).is_file()]


def _path(run: Run, after: str) -> Path:
    return run.folder / FOLDER / f"states_{after}.safetensors"


def read_states(run: Run, after: str) -> States:
    """What a run kept after a task, or at its start.

    Raises:
        Damaged: the file is not what it was, or does not hold what a run writes.
    """
    path = _path(run, after)
    read(path)  # its digest
    try:
        with safe_open(path, "numpy") as file:
            said = file.metadata() or {}
            blocks = {name: file.get_tensor(name).astype(np.float64) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise Damaged(path, f"cannot be read ({error})") from None
    tasks = tuple(name for name, number in json.loads(said["tasks"]) for _ in range(number))
    if not blocks or any(b.shape != (len(tasks), b.shape[-1]) or not np.isfinite(b).all() for b in blocks.values()):
        raise Damaged(path, "cannot be read (its states are not of its texts, or not finite)")
    return States(said["texts"], tasks, blocks)


def maps(
    columns: Mapping[str, States], how: Projection = "pca", cka: Mapping[str, Mapping[str, float]] | None = None
) -> Maps:
    """Every block by itself, in one projection of all columns together.

    Args:
        columns: name -> states of one `shape`.
        cka: as `Maps` has it.

    Raises:
        ImportError: scikit-learn is missing.
    """
    first = next(iter(columns.values()))
    assert all(each.shape == first.shape for each in columns.values()), "states of the same texts and blocks"
    places, shares = {}, {}
    for name in first.blocks:
        found, share = _projected(np.concatenate([each.blocks[name] for each in columns.values()]), how)
        places[name] = np.split(found, len(columns))
        if share is not None:
            shares[name] = share
    return Maps(list(columns), first.tasks, places, shares, cka or {})


def _projected(vectors: Floats, how: Projection) -> tuple[Floats, float | None]:
    """[M, 2], and the percent of the variance that is in it, if that means something."""
    if how == "tsne":
        return tsne(vectors), None
    from sklearn.decomposition import PCA

    components = PCA(n_components=min(2, *vectors.shape), svd_solver="full").fit(vectors)
    found = np.zeros((len(vectors), 2))
    found[:, : components.n_components_] = components.transform(vectors)
    whole = vectors.var(axis=0, ddof=1).sum()
    return found, 100 * float(components.explained_variance_.sum() / whole) if whole else 100.0


def block_name(name: str) -> str:
    """As people read it: block 3."""
    return f"block {int(name.rpartition('_')[2])}"


def draw_maps(shown: Maps, path: Path, caption: str = "") -> None:
    """A row of panels per block, of one scale in both directions, a colour per task; grey: the first column's texts.

    A panel says its states' CKA, as its dots show how far texts moved before they show how they lie to each other.
    """
    names = list(dict.fromkeys(shown.tasks))
    colours = task_colours(len(names))
    of_text = [colours[names.index(task)] for task in shown.tasks]
    down, across = len(shown.places), len(shown.columns)
    tall = max(2.3 * down + 0.5, 0.19 * len(names) + 0.7)
    with drawing(path, 2.3 * across + 1.9, tall, caption=caption) as figure:
        grid = figure.subplots(down, across, squeeze=False)
        for axes, column in zip(grid[0], shown.columns, strict=True):
            axes.set_title(short(column))
        for line, (block, places) in zip(grid, shown.places.items(), strict=True):
            low, high = (edge(np.concatenate(places), axis=0) for edge in (np.min, np.max))
            middle, reach = (low + high) / 2, 0.55 * float((high - low).max()) or 1.0
            for place, (axes, own) in enumerate(zip(line, places, strict=True)):
                if place:
                    axes.scatter(*places[0].T, s=5, color="#c4c4c4", linewidths=0, zorder=1)
                axes.scatter(*own.T, s=13, c=of_text, linewidths=0, alpha=0.8, zorder=2)
                x, y = ((centre - reach, centre + reach) for centre in middle)
                axes.set(xticks=[], yticks=[], xlim=x, ylim=y, aspect="equal")
                like = shown.cka.get(shown.columns[place], {}).get(block)
                if like is not None:
                    axes.set_xlabel(f"CKA {like:.2f}", fontsize=8, labelpad=3)
            share = f"\n{shown.shares[block]:.0f} % of the variance" if block in shown.shares else ""
            line[0].set_ylabel(block_name(block) + share)
        handles = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours]
        figure.legend(handles, [short(name) for name in names], title="texts of", loc="outside right upper")


# one run
def representations(run: Run) -> dict[str, Any] | None:
    """What the page of a run shows; None without the probe.

    Returns:
        `picture`: path, or None without scikit-learn; `columns`: how many of how many `kept` are drawn; `cka`: picture;
        `table`: CKA of each block after each task.
    """
    after = kept_after(run)
    names, rows = run.ability
    places = [place for place, name in enumerate(names) if name.startswith(CKA)]
    if not after or not places or not len(rows):
        return None
    folder, chosen = run.folder / "plots", thinned_steps(after)
    states = {step if step == START else f"after {step}": read_states(run, step) for step in chosen}
    blocks = [names[place].removeprefix(CKA) for place in places]
    values, steps = rows[:, places], [START, *run.tasks][: len(rows)]
    like = {
        f"after {step}": dict(zip(blocks, map(float, row), strict=True))
        for step, row in zip(steps, values, strict=True)
    }
    picture: Path | None = folder / "representations.png"
    try:
        assert picture is not None
        draw_maps(maps(states, cka=like), picture)
    except ImportError:
        picture = None  # the page says what to type
    cells = [[step, *(f"{value:.4f}" for value in row)] for step, row in zip(steps, values, strict=True)]
    shown = {"picture": picture, "columns": len(chosen), "kept": len(after), "cka": folder / "cka.png"}
    if len(rows) > 1:
        cka_map([f"after {short(step)}" for step in steps[1:]], blocks, values[1:], folder / "cka.png")
    else:
        shown["cka"] = None
    header = [name if name == "mean" else block_name(name) for name in blocks]
    return {**shown, "table": Table(["after", *header], cells)}


def thinned_steps(after: Sequence[str]) -> list[str]:
    """The first, the last and some in between, evenly: as many as there is room for."""
    if len(after) <= COLUMNS:
        return list(after)
    return [after[round(place)] for place in np.linspace(0, len(after) - 1, COLUMNS)]


def cka_map(steps: Sequence[str], blocks: Sequence[str], values: Floats, path: Path) -> None:
    """Linear CKA with the untouched model by block (columns) after each task (rows), [steps, blocks]."""
    width, height, size = heat_map_size(len(steps), len(blocks))
    low = min(float(np.floor(10 * values.min()) / 10), 0.9)
    texts = [[f"{value:.3f}" for value in row] for row in values]
    columns = [name if name == "mean" else str(int(name.rpartition("_")[2])) for name in blocks]
    notes = "block", "linear CKA, 1 = as at the start"
    with drawing(path, width, height) as figure:
        scale = Normalize(low, 1.0, clip=True)
        heat_map(figure.add_subplot(), values, texts, (steps, columns), colormaps["viridis"], scale, notes, size)


# several runs
@dataclass(frozen=True)
class Compared:
    """Runs whose states lie in one picture, and the first one's untouched model.

    Attributes:
        runs: label -> run.
        states: name of a column -> states at the end.
        notes: what is not as it looks.
    """

    runs: Mapping[str, Run]
    states: Mapping[str, States]
    notes: list[str]

    def maps(self, how: Projection = "pca") -> Maps:
        """As `maps`, with the CKA that the runs measured."""
        ends = {label: cka_at_end(self.runs[label]) for label in self.states if label in self.runs}
        cka = {
            label: dict(zip(blocks, map(float, row), strict=True)) for label, (blocks, row) in ends.items() if len(row)
        }
        return maps(self.states, how, cka)


def compared(labelled: Mapping[str, Run]) -> list[Compared]:
    """Runs of one backbone that kept states of the same texts and blocks, together.

    Args:
        labelled: what a run is called -> one completed run.
    """
    alike: dict[tuple[Any, ...], dict[str, Run]] = {}
    for label, run in labelled.items():
        if kept_after(run) == [START, *run.tasks]:
            alike.setdefault((run.backbone, *read_states(run, START).shape), {})[label] = run
    return [_compared(runs) for runs in alike.values()]


def _compared(runs: Mapping[str, Run]) -> Compared:
    start = read_states(next(iter(runs.values())), START)
    states, notes = {UNTOUCHED: start}, []
    for label, run in list(runs.items())[: COLUMNS - 1]:
        states[label] = read_states(run, run.tasks[-1])
        moved = [_distance(own, start.blocks[name]) for name, own in read_states(run, START).blocks.items()]
        if max(moved) > 1e-3:  # a method's prompts or adapters; rounding of another machine is less
            notes.append(f"{label} began with other states, {max(moved):.2g} of their norm apart")
    if len(runs) >= COLUMNS:
        notes.append(f"the first {COLUMNS - 1} of {len(runs)} are drawn")
    return Compared(runs, states, notes)


def _distance(one: Floats, other: Floats) -> float:
    return float(np.linalg.norm(one - other) / max(float(np.linalg.norm(other)), 1e-12))


def cka_at_end(run: Run) -> tuple[list[str], Floats]:
    """Blocks, and the CKA of each with the untouched model after the last task."""
    names, rows = run.ability
    places = [place for place, name in enumerate(names) if name.startswith(f"{CKA}layer_")]
    return [names[place].removeprefix(CKA) for place in places], rows[-1, places] if len(rows) else np.empty(0)


def draw_cka(curves: Mapping[str, Floats], blocks: Sequence[str], path: Path, caption: str = "") -> None:
    """CKA by block after the last task: a line per setting, its mean over seeds and one deviation [n seeds, blocks]."""
    labels = list(curves)
    columns = legend_columns(labels)
    height = 3.6 + 0.2 * -(-len(labels) // columns)
    with drawing(path, max(6.4, 0.34 * len(blocks) + 2.4), height, caption=caption) as figure:
        axes = figure.add_subplot()
        axes.axhline(1, color=COLOURS[6], linewidth=0.8)
        draw_lines(axes, curves, labels)
        name_steps(axes, [str(int(name.rpartition("_")[2])) for name in blocks])
        axes.tick_params(axis="x", rotation=0)
        axes.set_xlabel("block")
        axes.set_ylabel(f"linear CKA with the {UNTOUCHED}")
        figure.legend(loc="outside upper center", ncols=columns)


def compared_values(labelled: Mapping[str, Sequence[Run]], folder: Path, name: str) -> list[dict[str, Any]]:
    """What the page of several runs shows of each picture: `notes`, `picture` (None without scikit-learn), `cka`.

    Args:
        labelled: what runs are called -> one per seed, of which the first one's states are drawn.
        folder: for the pictures.
        name: a part of their names.
    """
    shown = []
    for number, each in enumerate(compared({label: runs[0] for label, runs in labelled.items()})):
        stem = f"{name}_{number + 1}" if number else name
        picture: Path | None = folder / f"representations_{stem}.png"
        try:
            assert picture is not None
            draw_maps(each.maps(), picture)
        except ImportError:
            picture = None
        found = {label: [cka_at_end(run) for run in labelled[label]] for label in each.runs}
        blocks = next(iter(found.values()))[0][0]
        curves = {
            label: np.stack([values for _, values in several])
            for label, several in found.items()
            if all(own == blocks for own, _ in several)
        }
        draw_cka(curves, blocks, folder / f"cka_{stem}.png")
        shown.append({"notes": each.notes, "picture": picture, "cka": folder / f"cka_{stem}.png"})
    return shown
