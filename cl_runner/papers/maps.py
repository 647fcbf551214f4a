"""Figures of what lies where: importance (PE 4), keys (SLM 4 and 10), selected weights (PIECE 3 and 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.digests import Damaged, read_json
from cl_runner.matrix import Floats
from cl_runner.papers.figures import Figure
from cl_runner.papers.picture import Asked, Drawn, Picture, Selection, by_order, caption
from cl_runner.report.atlas import Atlas, mean_atlas, overlap_heat_map, read_atlas, share_multiples
from cl_runner.report.folder import Run
from cl_runner.report.plots import fisher_map
from cl_runner.report.retrieval import DRAWN, cosines, embed, embed_both, keys_map, similarity_maps
from cl_runner.report.text_table import Table


def importance_of(run: Run) -> Mapping[str, Any]:
    """fisher.json of a run, its numbers checked.

    Raises:
        Damaged: it has no numbers, or none that a mean of squares can be.
    """
    path = run.folder / "fisher.json"
    found = read_json(path)
    for cell in found["layers"]:
        zero, count, mean = (float(cell[key]) for key in ("zero_fraction", "parameters", "mean"))
        if not (0 <= zero <= 1 and count > 0 and 0 <= mean < math.inf):
            raise Damaged(path, f"cannot be read ({cell['layer']} {cell['module']}: no importance)")
    if not found["layers"]:
        raise Damaged(path, "cannot be read (no parameters are in it)")
    return {"after": str(found["after"]), "layers": found["layers"]}


def importance(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """Importance by layer and module: a picture per setting and order, the mean over its seeds."""
    drawn = Drawn()
    for order, settings in by_order(selection):
        for setting in settings:
            runs = list(setting.runs.values())
            found = [importance_of(run) for run in runs]
            rows = [
                [
                    figure.name,
                    order,
                    setting.label,
                    str(run.seed),
                    each["after"],
                    _data(run, each["after"]),
                    str(cell["layer"]),
                    str(cell["module"]),
                    str(cell["parameters"]),
                    repr(float(cell["mean"])),
                    _log(cell["mean"]),
                    repr(float(cell["zero_fraction"])),
                    str(run.folder),
                ]
                for run, each in zip(runs, found, strict=True)
                for cell in each["layers"]
            ]
            header = ["figure", "order", "line", "seed", "before", "data", "layer", "module", "parameters"]
            header += ["mean", "log10_mean", "zero_fraction", "source"]
            layers = mean_importance([each["layers"] for each in found])
            data = ", ".join(dict.fromkeys(_data(run, each["after"]) for run, each in zip(runs, found, strict=True)))
            zero = sum(cell["zero_fraction"] * cell["parameters"] for cell in layers)
            count = sum(cell["parameters"] for cell in layers)
            more = f"{setting.label}, mean over {len(runs)} runs" if len(runs) > 1 else setting.label
            more += f"; on {data}; {100 * zero / count:.1f} % of {count:,.0f} weights are exactly 0"
            said = caption(figure, selection, runs, order, more)
            draw = partial(_importance, found[0]["after"], layers, said)
            table = Table(header, rows, figure.data.title)
            drawn.pictures.append(Picture((order, runs[0].backbone, setting.label), draw, table))
    return drawn


def _importance(after: str, layers: Sequence[Mapping[str, Any]], said: str, path: Path) -> None:
    fisher_map(after, layers, path, said)


def _log(mean: float) -> str:
    return repr(math.log10(mean)) if mean > 0 else ""


def _data(run: Run, task: str) -> str:
    """What the importance before a task was measured on, as the run noted it."""
    noted = next((each.get("measured_on_new_data") for each in run.details if each.get("name") == task), None)
    return "data of the new task" if noted else "data of the old tasks" if noted is False else "data not said"


def mean_importance(several: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The mean over runs of each layer's and module's importance and share of zeros.

    Raises:
        ValueError: they are not of the same layers and modules.
    """
    places = [[(cell["layer"], cell["module"], cell["parameters"]) for cell in layers] for layers in several]
    if any(each != places[0] for each in places):
        raise ValueError("the importance of its seeds is not of the same layers and modules")
    found = []
    for cells in zip(*several, strict=True):
        mean, zero = (float(np.mean([cell[key] for cell in cells])) for key in ("mean", "zero_fraction"))
        found.append({**cells[0], "mean": mean, "log10_mean": math.log10(mean) if mean > 0 else None})
        found[-1]["zero_fraction"] = zero
    return found


def usable_keys(run: Run) -> bool:
    """Whether a run has keys that can be drawn, at least three.

    Raises:
        Damaged: they are not of one shape, or not numbers.
    """
    shapes = {(each.ndim, *each.shape[:1], *each.shape[2:]) for each in run.keys.values()}
    if len(shapes) > 1 or any(each.ndim != 3 or not np.isfinite(each).all() for each in run.keys.values()):
        raise Damaged(run.folder / "keys.safetensors", "cannot be read (its keys are not of one shape, or not finite)")
    return sum(each.shape[0] * each.shape[1] for each in run.keys.values()) > 2


def _keys(run: Run) -> dict[str, Floats]:
    """Keys by task in the order learned."""
    order = [*(task for task in run.tasks if task in run.keys), *(task for task in run.keys if task not in run.tasks)]
    return {task: run.keys[task] for task in order}


def _per_run(
    figure: Figure,
    selection: Selection,
    header: Sequence[str],
    made: Callable[[Run, dict[str, Floats], str], tuple[Callable[[Path], None], list[list[str]]]],
) -> Drawn:
    """A picture for each run: keys of several cannot be averaged."""
    drawn = Drawn()
    for order, settings in by_order(selection):
        for setting in settings:
            for run in setting.runs.values():
                keys = _keys(run)
                said = caption(figure, selection, [run], order, f"{setting.label}, seed {run.seed}: {_sizes(keys)}")
                draw, cells = made(run, keys, said)
                rows = [[figure.name, order, setting.label, str(run.seed), *each, str(run.folder)] for each in cells]
                table = Table(["figure", "order", "line", "seed", *header, "source"], rows, figure.data.title)
                parts = (order, run.backbone, setting.label, f"seed{run.seed}")
                drawn.pictures.append(Picture(parts, draw, table))
    return drawn


def _sizes(keys: Mapping[str, Floats]) -> str:
    first = next(iter(keys.values()))
    return f"{len(keys)} tasks, {first.shape[1]} keys each in {first.shape[0]} groups"


def keys_by_tsne(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """Where keys lie, by t-SNE."""

    def made(run: Run, keys: dict[str, Floats], said: str) -> tuple[Callable[[Path], None], list[list[str]]]:
        texts: list[Floats] = []
        if asked.queries and not keys.keys() <= run.queries.keys():
            raise ValueError(f"{run.folder} has no queries of all its tasks. Leave out --queries, or compute it again")
        try:
            if asked.queries:
                places, texts = embed_both(keys, run.queries)
            else:
                places = embed(np.concatenate([each.reshape(-1, each.shape[-1]) for each in keys.values()]))
        except ImportError:
            raise ValueError("t-SNE needs scikit-learn. Type: pip install 'cl-runner[retrieval]'") from None
        names = [
            [task, "key", str(group + 1), str(slot + 1)]
            for task, each in keys.items()
            for group in range(each.shape[0])
            for slot in range(each.shape[1])
        ]
        names += [
            [task, "query", str(group + 1), str(text + 1)]
            for task in (keys if texts else ())
            for text in range(len(run.queries[task]))
            for group in range(run.queries[task].shape[1])
        ]
        every = np.concatenate([places, *texts])
        cells = [[*name, repr(float(x)), repr(float(y))] for name, (x, y) in zip(names, every, strict=True)]
        shapes = [each.shape[:2] for each in keys.values()]
        return partial(_keys_map, list(keys), shapes, places, said, texts), cells

    return _per_run(figure, selection, ["task", "what", "group", "slot", "x", "y"], made)


def _keys_map(
    tasks: Sequence[str],
    shapes: Sequence[Sequence[int]],
    places: Floats,
    said: str,
    queries: Sequence[Floats],
    path: Path,
) -> None:
    keys_map(tasks, shapes, places, path, said, queries)


def similarity(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """Cosines of all keys, in each group by itself."""

    def made(run: Run, keys: dict[str, Floats], said: str) -> tuple[Callable[[Path], None], list[list[str]]]:
        names = [[task, str(slot + 1)] for task, each in keys.items() for slot in range(each.shape[1])]
        cells = [
            [str(group + 1), *names[row], *names[column], repr(float(value))]
            for group, values in enumerate(cosines(list(keys.values()))[:DRAWN])
            for (row, column), value in np.ndenumerate(values)
        ]
        return partial(_similarity, keys, said), cells

    return _per_run(figure, selection, ["group", "task", "slot", "other_task", "other_slot", "cosine"], made)


def _similarity(keys: Mapping[str, Floats], said: str, path: Path) -> None:
    similarity_maps(keys, path, said)


def _atlases(selection: Selection) -> list[tuple[str, str, dict[str, Atlas], list[tuple[str, Run, Atlas]]]]:
    """Order and backbone with the mean selection of each setting, and those of each run; of equal layers together."""
    found = []
    for order, settings in by_order(selection):
        alike: dict[str, tuple[str, dict[str, Atlas], list[tuple[str, Run, Atlas]]]] = {}
        for setting in settings:
            each = [(setting.label, run, read_atlas(run.masks)) for run in setting.runs.values()]
            first = each[0][2]
            key = repr((each[0][1].backbone, first.layers, first.modules))
            _, means, runs = alike.setdefault(key, (each[0][1].backbone, {}, []))
            means[setting.label] = mean_atlas([atlas for _, _, atlas in each])
            runs += each
        found += [(order, *same) for same in alike.values()]
    return found


def selected(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """Shares of selected weights by layer and module, a panel per task and a block per setting."""
    drawn = Drawn()
    for order, backbone, means, runs in _atlases(selection):
        rows = [
            [
                figure.name,
                order,
                label,
                str(run.seed),
                task,
                layer,
                module,
                f"{count:.0f}",
                f"{among:.0f}",
                repr(float(100 * count / among)),
                str(run.folder),
            ]
            for label, run, atlas in runs
            for t, task in enumerate(atlas.tasks)
            for i, layer in enumerate(atlas.layers)
            for k, module in enumerate(atlas.modules)
            for count, among in [(atlas.selected[t, i, k], atlas.parameters[t, i, k])]
            if among
        ]
        header = ["figure", "order", "line", "seed", "task", "layer", "module", "selected", "parameters"]
        grey = "grey: none of them; white: there are none to select from"
        said = caption(figure, selection, [run for _, run, _ in runs], order, f"{_over(runs, means)}; {grey}")
        table = Table([*header, "selected, %", "source"], rows, figure.data.title)
        drawn.pictures.append(Picture((order, backbone), partial(_selected, means, said), table))
    return drawn


def _selected(means: Mapping[str, Atlas], said: str, path: Path) -> None:
    share_multiples(means, path, said)


def _over(runs: Sequence[tuple[str, Run, Atlas]], means: Mapping[str, Atlas]) -> str:
    return f"Mean over seeds ({len(runs)} runs of {len(means)} settings)" if len(runs) > len(means) else "One run each"


def overlap(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """Jaccard index of every two tasks' selections, a panel per setting, beside that of random ones as large."""
    drawn = Drawn()
    for order, backbone, means, runs in _atlases(selection):
        rows = [
            [
                figure.name,
                order,
                label,
                str(run.seed),
                atlas.tasks[later],
                atlas.tasks[earlier],
                repr(float(atlas.overlap[later, earlier])),
                repr(float(atlas.expected[later, earlier])),
                str(run.folder),
            ]
            for label, run, atlas in runs
            for later, earlier in atlas.pairs
        ]
        header = ["figure", "order", "line", "seed", "task", "earlier_task", "jaccard", "jaccard_of_random", "source"]
        titled = {
            f"{label}: mean {_mean(each.overlap)}, random {_mean(each.expected)}": each for label, each in means.items()
        }
        more = f"{_over(runs, means)}; random: masks as large, drawn from all weights"
        said = caption(figure, selection, [run for _, run, _ in runs], order, more)
        table = Table(header, rows, figure.data.title)
        drawn.pictures.append(Picture((order, backbone), partial(_overlap, titled, said), table))
    return drawn


def _mean(values: Floats) -> str:
    return f"{np.nanmean(values):.2g}"


def _overlap(means: Mapping[str, Atlas], said: str, path: Path) -> None:
    overlap_heat_map(means, path, said)
