"""Retrieval of a run (SLM, ICLR 2024): how often it is right, what it costs, and where its keys lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

from cl_runner.matrix import Floats
from cl_runner.report.costs import bytes_text
from cl_runner.report.drawing import COLOURS, MARKERS, cells, drawing, grid_shape, panels, short
from cl_runner.report.folder import Run
from cl_runner.report.text_table import Table

#: Groups whose similarities are drawn.
DRAWN = 12
#: t-SNE's own default; fewer points take less.
PERPLEXITY = 30.0


#: Of a run whose retrieval cannot be shown.
NO_RETRIEVAL: dict[str, Any] = {
    **dict.fromkeys(("served", "accuracy", "notes", "costs")),
    **{"vectors": 0, "groups": 0, "most": DRAWN, "drawn": {}},
}


def retrieval_values(run: Run) -> dict[str, Any]:
    """What templates/retrieval.html.j2 shows, its pictures drawn into the folder plots of the run."""
    return {
        "served": _served(run),
        "accuracy": _accuracy(run),
        "notes": _notes(run),
        "costs": _costs(run),
        **_keys(run),
    }


def _served(run: Run) -> Table | None:
    """Texts of every task learned that were served rightly, and their own task's weight, a row after each task."""
    found = {
        str(task["name"]): {one: (each["served_percent"], each["own_weight_percent"]) for one, each in served.items()}
        for task, noted in zip(run.details, run.retrieval, strict=True)
        if (served := noted.get("served"))
    }
    if not found:
        return None
    rows = [
        [after, *(_pair(each.get(task)) for task in run.tasks), _pair(np.mean(list(each.values()), axis=0))]
        for after, each in found.items()
    ]
    return Table(["after", *run.tasks, "mean"], rows)


def _pair(numbers: Sequence[float] | Floats | None) -> str:
    return "" if numbers is None else f"{numbers[0]:.1f} ({numbers[1]:.1f})"


def _accuracy(run: Run) -> Table | None:
    """Retrieval accuracy of every task learned (eq. 13), a row after each task."""
    found = [noted.get("retrieval_accuracy") for noted in run.retrieval]
    measured = [(str(task["name"]), percent) for task, percent in zip(run.details, found, strict=True) if percent]
    if not measured:
        return None
    cells = []
    for after, percent in measured:
        values = [f"{percent[task]:.1f}" if task in percent else "" for task in run.tasks]
        cells.append([after, *values, f"{np.mean(list(percent.values())):.1f}"])
    return Table(["after", *run.tasks, "mean"], cells)


def _notes(run: Run) -> Table | None:
    """What did not go as it looks: keys that stayed, heads that did not learn, texts that were cut."""
    rows = []
    for task, noted in zip(run.details, run.retrieval, strict=True):
        if "keys_unmoved" in noted:
            cut = [noted["cut_by_encoder"][kind]["texts"] for kind in ("training", "scored")]
            texts = [f"{noted['keys_unmoved']} of {noted['keys']}", str(noted.get("head_rows", "-")), *map(str, cut)]
            rows.append([str(task["name"]), *texts])
    header = ["task", "keys that did not move", "rows of the head trained", "training texts cut by the encoder"]
    return Table([*header, "scored texts cut"], rows) if rows else None


def _costs(run: Run) -> Table | None:
    """Seconds, storage and milliseconds of every task, and their means."""
    if not any(run.retrieval):
        return None
    timing: Mapping[str, Mapping[str, float]] = run.retrieval[-1].get("timing", {})

    def seconds(phase: str) -> Callable[[Mapping[str, Any]], float | None]:
        return lambda task: task["phases"].get(phase, 0.0)

    def timed(name: str) -> Callable[[Mapping[str, Any]], float | None]:
        return lambda task: timing.get(str(task["name"]), {}).get(name)

    columns: dict[str, tuple[Callable[[Mapping[str, Any]], float | None], Callable[[float], str]]] = {
        "queries, s": (seconds("queries"), "{:.2f}".format),
        "keys, s": (seconds("keys"), "{:.2f}".format),
        "training, s": (seconds("train"), "{:.2f}".format),
        "stored numbers": (lambda task: task["stored"], "{:,.0f}".format),
        "stored": (lambda task: task["stored_bytes"], bytes_text),
        "% of the model": (lambda task: task["stored_share_percent"], "{:.3g}".format),
        "encoder, ms": (timed("encoder_ms"), "{:.1f}".format),
        "retrieval, ms": (timed("retrieval_ms"), "{:.1f}".format),
        "answer, ms": (timed("answer_ms"), "{:.1f}".format),
        "encoder, %": (timed("encoder_share_percent"), "{:.1f}".format),
        "retrieval, %": (timed("retrieval_share_percent"), "{:.1f}".format),
    }
    rows = [[str(task["name"]) for task in run.details]]
    if len(run.details) > 1:
        rows[0].append("mean")
    for value, form in columns.values():
        values = [value(task) for task in run.details]
        known = [value for value in values if value is not None]
        if len(values) > 1:
            values.append(float(np.mean(known)) if known else None)
        rows.append(["-" if value is None else form(value) for value in values])
    return Table(["task", *columns], [list(row) for row in zip(*rows, strict=True)])


def _keys(run: Run) -> dict[str, Any]:
    """How many keys of how many groups there are after the tasks learned so far, and their pictures."""
    drawn: dict[str, Path] = {}
    if not run.keys:
        return {"vectors": 0, "groups": 0, "most": DRAWN, "drawn": drawn}
    order = [*(task for task in run.tasks if task in run.keys), *(task for task in run.keys if task not in run.tasks)]
    keys = {task: run.keys[task] for task in order}
    vectors = np.concatenate([each.reshape(-1, each.shape[-1]) for each in keys.values()])
    if len(vectors) > 2:
        try:
            places = embed(vectors)
        except ImportError:
            pass  # the page says what to type
        else:
            drawn["keys_tsne"] = run.folder / "plots" / "keys_tsne.png"
            keys_map(list(keys), [each.shape[:2] for each in keys.values()], places, drawn["keys_tsne"])
            if keys.keys() <= run.queries.keys():
                together, texts = embed_both(keys, run.queries)
                drawn["keys_queries"] = run.folder / "plots" / "keys_queries.png"
                keys_map(
                    list(keys),
                    [each.shape[:2] for each in keys.values()],
                    together,
                    drawn["keys_queries"],
                    queries=texts,
                )
    drawn["keys_similarity"] = run.folder / "plots" / "keys_similarity.png"
    similarity_maps(keys, drawn["keys_similarity"])
    return {"vectors": len(vectors), "groups": len(next(iter(keys.values()))), "most": DRAWN, "drawn": drawn}


def unit_range(values: Floats) -> Floats:
    """Values from -1 to 1: the least and the greatest number of the whole array, as the release scales its figure 4."""
    low, high = values.min(), values.max()
    return np.zeros_like(values) if high == low else 2 * (values - low) / (high - low) - 1


def embed(vectors: Floats) -> Floats:
    """t-SNE of scaled vectors in two dimensions with the release's options (figure 4), scaled as well.

    Args:
        vectors: [M, c], M > 2.

    Returns:
        [M, 2], from -1 to 1.

    Raises:
        ImportError: scikit-learn is missing.
    """
    return unit_range(tsne(unit_range(vectors)))


def tsne(vectors: Floats) -> Floats:
    """t-SNE of [M, c], M > 2, in two dimensions with the options of SLM's release, the same each time.

    Raises:
        ImportError: scikit-learn is missing.
    """
    from sklearn.manifold import TSNE

    # A third of the neighbours there are, where those are few: the perplexity must be below the number of points.
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    start = "pca" if vectors.shape[1] > 1 else "random"
    method = TSNE(n_components=2, random_state=42, perplexity=perplexity, init=start, n_jobs=1)
    found: Floats = method.fit_transform(vectors).astype(np.float64)
    return found


def embed_both(keys: Mapping[str, Floats], queries: Mapping[str, Floats]) -> tuple[Floats, list[Floats]]:
    """The same of unit keys and unit queries together, whose cosines retrieval goes by: keys are longer, or shorter.

    Args:
        keys: [g, n, c] of each task.
        queries: [texts, g, c] of each task of `keys`, and maybe of others.

    Returns:
        Places of all keys as `embed` has them, and those of each task's queries [texts * g, 2].
    """
    chosen = [queries[task].reshape(-1, queries[task].shape[-1]) for task in keys]
    parts = [np.concatenate([each.reshape(-1, each.shape[-1]) for each in keys.values()]), *chosen]
    vectors = np.concatenate(parts)
    places = embed(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))
    own, *of_texts = np.split(places, np.cumsum([len(part) for part in parts])[:-1])
    return own, of_texts


def task_colours(count: int) -> list[Any]:
    """A colour for each of so many tasks, all different."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    if count <= 20:  # ten colours, dark and pale: first all the dark ones
        return [colormaps["tab20"](place) for place in (*range(0, 20, 2), *range(1, 20, 2))][:count]
    return [colormaps["turbo"](place) for place in np.linspace(0.03, 0.97, count)]


def keys_map(
    tasks: Sequence[str],
    shapes: Sequence[Sequence[int]],
    places: Floats,
    path: Path,
    caption: str = "",
    queries: Sequence[Floats] = (),
) -> None:
    """Where keys lie, a colour per task and a marker per group, those of a task in a group joined (SLM, figure 4).

    Args:
        shapes: groups and slots of each task's keys.
        places: [M, 2], task after task, in a task group after group.
        caption: below it.
        queries: places [M, 2] of each task's queries, drawn as dots beneath.
    """
    colours = task_colours(len(tasks))
    groups = max(shape[0] for shape in shapes)
    with drawing(path, 8.6, max(5.2, 0.19 * (len(tasks) + min(groups, len(MARKERS))) + 1.6), caption=caption) as figure:
        axes = figure.add_subplot()
        begin = 0
        for colour, dots in zip(colours, queries, strict=bool(len(queries))):
            axes.plot(*dots.T, ".", color=colour, markersize=3.5, alpha=0.45, markeredgewidth=0, zorder=0)
        for colour, (own, slots) in zip(colours, shapes, strict=True):
            for group in range(own):
                x, y = places[begin : begin + slots].T
                marker = MARKERS[group % len(MARKERS)]
                axes.plot(x, y, "-", color=colour, linewidth=0.8, alpha=0.35, zorder=1)
                axes.plot(x, y, marker, color=colour, markersize=6.5, markeredgecolor="white", markeredgewidth=0.4)
                begin += slots
        assert begin == len(places), f"{begin} keys, {len(places)} places"
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel("t-SNE, scaled; axes have no unit")
        shown = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours]
        figure.legend(shown, [short(task) for task in tasks], title="task", loc="outside right upper")
        shown = [Line2D([], [], marker=marker, linestyle="", color="#555555") for marker in MARKERS[:groups]]
        names = [_group_name(number, groups) for number in range(len(shown))]
        figure.legend(shown, names, title="group", loc="outside right lower")


def _group_name(number: int, groups: int) -> str:
    """The groups that share a marker, counted from 1."""
    same = [str(group + 1) for group in range(number, groups, len(MARKERS))]
    return ", ".join(same) if len(same) <= 3 else f"{same[0]}, {same[1]}, … {same[-1]}"


def cosines(keys: Sequence[Floats]) -> Floats:
    """Cosines [g, N, N] of the keys of all tasks, in each group by itself.

    Args:
        keys: [g, n, c] of each task, N of them in all in a group.
    """
    joined = np.concatenate(keys, axis=1)
    units = joined / np.maximum(np.linalg.norm(joined, axis=-1, keepdims=True), 1e-12)
    found: Floats = units @ units.transpose(0, 2, 1)
    return found


def similarity_maps(keys: Mapping[str, Floats], path: Path, caption: str = "") -> None:
    """Cosine similarity of all keys, a panel per group (SLM, figure 10), tasks apart by lines.

    Args:
        keys: [g, n, c] of each task.
        caption: below it.
    """
    values = cosines(list(keys.values()))[:DRAWN]
    ends = np.cumsum([each.shape[1] for each in keys.values()])
    middles = ends - np.array([each.shape[1] for each in keys.values()]) / 2 - 0.5
    names = [short(task) for task in keys]
    turned = len(names) > 8
    room = 0.07 * max(map(len, names))  # for the longest name, inches
    down, across = grid_shape(len(values), 3)
    size = max(2.4, 0.17 * len(names))
    scale, colours = Normalize(-1, 1), colormaps["RdBu_r"]
    height = (size + 0.3) * down + (1.0 if turned else 0.7) * room
    with drawing(path, size * across + room + 1.2, height, caption=caption) as figure:
        for place, (axes, each) in enumerate(zip(panels(figure, len(values), 3), values, strict=True)):
            cells(axes, each, colours, scale)
            for end in ends[:-1]:
                axes.axhline(end - 0.5, color="#333333", linewidth=0.7)
                axes.axvline(end - 0.5, color="#333333", linewidth=0.7)
            axes.set_title(f"group {place + 1}", loc="left")
            axes.grid(False)
            axes.tick_params(length=0, labelsize=8)
            axes.set_yticks(middles, names if place % across == 0 else [])
            lowest = place + across >= len(values)
            axes.set_xticks(middles, names if lowest else [])
            for label in axes.get_xticklabels():
                label.set(rotation=90 if turned else 40, ha="right", rotation_mode="anchor")
                label.set_verticalalignment("center" if turned else "top")
        bar = figure.colorbar(ScalarMappable(scale, colours), ax=figure.axes, aspect=30, shrink=0.8, pad=0.02)
        bar.set_label("cosine")
        bar.outline.set_visible(False)
        bar.ax.grid(False)
