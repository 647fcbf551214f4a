"""Run folders that are made up, small and with numbers one can check by hand, and how to read pages of them."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf

from cl_runner.matrix import MatrixTexts, derived
from cl_runner.papers import protocol
from cl_runner.papers.published import table
from cl_runner.papers.settings import configuration

PARAMETERS = 1000
SIZES = [20, 10, 10, 10, 10, 10, 10, 10]
EWC = {"strength": 0.35, "fisher_data": "old_tasks"}
NODES: dict[str, dict[str, Any]] = {
    "seq_ft": {"seq_ft": {}},
    "ewc": {"ewc": EWC},
    "pe": {"ewc": EWC, "pe": {"fraction": 0.005, "score": "fisher", "score_data": "old_tasks"}},
    "piece_s": {"piece": {"score_data": "new_task", "compat": []}},
    "released": {"piece": {"score_data": "new_task", "compat": ["missing_mask", "count_excluded"]}},
}


def make_run(
    root: Path,
    method: str = "pe",
    seed: int = 0,
    *,
    order: str = "fdu_mtl",
    last: float = 70.0,
    fraction: float = 0.005,
    joint: bool = False,
    epochs: int = 3,
    tasks: Sequence[str] = ("base", "b", "c"),
    done: int | None = None,
    marker: str = "COMPLETED",
    metrics: Sequence[str] = (),
    evaluation: dict[str, Any] | None = None,
    ability: dict[str, Sequence[float]] | None = None,
    seen: bool = False,
) -> Path:
    """A run folder whose last row is `last` everywhere; `done` tasks of an unfinished one.

    Args:
        metrics: the first one of each task; none: accuracy everywhere.
        evaluation: the node `evaluation` of the configuration.
        ability: number -> its values at the start and after each task.
        seen: leave cells of tasks that are still to come empty.
    """
    count = len(tasks)
    rows = np.full((count + 1, count), 50.0)
    rows[1:] = 80.0
    rows[-1] = last
    if seen:
        rows[np.arange(count + 1)[:, None] <= np.arange(count)] = np.nan
    scored_by = {task: [metric] for task, metric in zip(tasks, metrics or ["accuracy"] * count, strict=True)}
    node = {name: dict(values) for name, values in NODES[method].items()}
    if "pe" in node:
        node["pe"]["fraction"] = fraction
    config = {
        "seed": seed,
        "root": str(root),
        "data_root": "/somewhere/data",
        "backbone": {"name": "minilm", "max_length": 64},
        "task": {"reviews": {"source": "files", "path": "/somewhere/data/{domain}.csv"}},
        "task_order": {"tasks": [{"name": t} for t in tasks], "task": "reviews", "joint": joint, "restart": False},
        "training": {"incremental": {"epochs": epochs}},
        "evaluation": evaluation or {},
        "method": node,
        "hardware": {"device": "cpu", "slurm": None},
        "wandb": {"mode": "disabled"},
        "checkpoint": {"every_seconds": 60.0},
        "snapshots": {"save": "all"},
    }
    name = order + ("+joint" if joint else "")
    digest = f"{zlib.crc32(repr((method, fraction, joint, epochs, evaluation)).encode()):08x}"
    folder = root / name / "minilm" / method / f"seed{seed}-{digest}"
    (folder / "predictions").mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "data.json").write_text('{"labels": ["bad", "good"], "fingerprints": {}, "files": []}')
    (folder / "overrides.txt").write_text(f"method={method}\nseed={seed}\ndata_root=/somewhere/data\n")
    environment: dict[str, Any] = {
        "command": "python -m cl_runner method=<pe>",
        "python": "3.12.1",
        "packages": {"torch": "2.9"},
    }
    environment |= {"git": None, "hardware": {"cpu": "a cpu", "cores": 2, "memory_gib": 8.0, "device": "cpu"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    finished = count if done is None else done
    for file, text in MatrixTexts(tasks).texts(rows[: finished + 1].tolist()).items():
        (folder / file).write_text(text, encoding="utf-8")
    for row in range(finished + 1):
        lines = []
        for task, size, accuracy in zip(tasks, SIZES, rows[row], strict=False):
            for index in range(0 if np.isnan(accuracy) else size):
                right = index < size * accuracy / 100
                line = {"task": task, "index": index, "answer": "good", "prediction": "good" if right else "bad"}
                lines.append(json.dumps(line | {"confidence": 0.5, "score": 100.0 * right}))
        (folder / "predictions" / f"{row:02d}_{['start', *tasks][row]}.jsonl").write_text(
            "".join(f"{line}\n" for line in lines)
        )
    steps = [
        {"kind": "train", "task": task, "task_index": index, "step": 10 * index + step, "loss": 0.5 + 0.01 * step}
        for index, task in enumerate(tasks[:finished])
        for step in range(1, 11)
    ]
    scores = {task: {name: last, "f1": last / 2} for task, (name,) in scored_by.items()} if metrics else {}
    text = "".join(json.dumps(step) + "\n" for step in steps)
    text += json.dumps({"kind": "evaluation", "after": tasks[-1], "step": 30, "accuracy": {}, "scores": scores}) + "\n"
    (folder / "metrics.jsonl").write_text(text + ("" if done is None else '{"kind": "tr'))
    if ability:
        lines = [",".join(["after", *ability])]
        lines += [
            ",".join([name, *(repr(v[row]) for v in ability.values())]) for row, name in enumerate(["start", *tasks])
        ]
        (folder / "ability.csv").write_text("\n".join(lines) + "\n")
    if method == "pe":
        (folder / "fisher.json").write_text(json.dumps({"after": tasks[-1], "layers": fisher_cells()}))
    if done is None:
        summary = {
            "status": "completed",
            "tasks": list(tasks),
            "test_examples": dict(zip(tasks, SIZES, strict=False)),
            "scored_by": scored_by,
            "metrics": derived(rows, SIZES[:count] if len({*metrics}) < 2 else None),
            "intervals": {"average_accuracy": [60.5, 75.25], "forgetting/chaudhry18": [-1.0, 2.0]},
            "tasks_detail": [detail(task, index, method == "pe") for index, task in enumerate(tasks)],
            "peak_memory_mib": {"train": 512.0},
            "run": {"task_order": name, "backbone": "minilm", "method": method, "seed": seed, "hash": digest},
            "wall_seconds": 9.0,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    if marker:
        (folder / marker).write_text("" if marker == "COMPLETED" else "ValueError: loss <b>nan</b>\n")
    return folder


def as_published(folder: Path, name: str, row: str, column: str) -> Path:
    """Make a made-up run one of a cell's own setting, with as many examples."""
    cell = table(name).cells[row, column]
    assert cell.overrides is not None
    config = dict(configuration(cell.overrides))
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    summary = json.loads((folder / "summary.json").read_text())
    counts = {
        split: protocol._counts(config, split, getattr(cell.protocol, split), summary["tasks"])
        for split in ("train", "test")
    }
    summary["test_examples"] = counts["test"]
    for task in summary["tasks_detail"]:
        task["train_examples"] = counts["train"][task["name"]]
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def detail(name: str, index: int, sparse: bool) -> dict[str, Any]:
    """Costs of one task: 5 of 1000 values trained and 40 bytes stored by a sparse method after the first task."""
    few = sparse and index > 0
    return {
        "name": name,
        "phases": {"importance": 1.0, "selection": 1.0, "prepare": 0.5, "train": 1.5 + index, "evaluate": 1.0},
        "online_seconds": 2.0 + index,
        "offline_seconds": 2.0,
        "trainable": 5 if few else PARAMETERS,
        "changed": 5 if few else PARAMETERS,
        "stored": 5 if few else PARAMETERS,
        "stored_bytes": 40 if few else 4 * PARAMETERS,
        "model_parameters": PARAMETERS,
        "model_bytes": 4 * PARAMETERS,
        "stored_share_percent": 1.0 if few else 100.0,
        "zero_fisher_fraction": {"encoder.layer.0": 0.25} if few else None,
        "train_examples": 30,
        "steps": 10,
    }


def fisher_cells() -> list[dict[str, Any]]:
    def cell(layer: str, module: str, log10: float | None, zero: float) -> dict[str, Any]:
        mean = 0.0 if log10 is None else 10.0**log10
        values = {"mean": mean, "log10_mean": log10, "zero_fraction": zero, "parameters": 100}
        return {"layer": layer, "module": module, **values}

    return [
        cell("classifier", "classifier", -4.0, 0.0),
        cell("bert.encoder.layer.10", "query", -8.0, 0.0),
        cell("bert.encoder.layer.2", "query", None, 1.0),
        cell("bert.embeddings", "embeddings", -11.0, 0.5),
    ]


def mask(task: str, counts: Sequence[int], **overlap: tuple[float, dict[str, float]]) -> dict[str, Any]:
    """An entry of masks.json: entries selected of 100 each of two blocks and a head, and overlaps with others."""
    places = [("h.0", "query"), ("h.1", "query"), ("h.1", "layer_norm"), ("score", "classifier")]
    return {
        "task": task,
        "cells": [
            {"layer": layer, "module": module, "selected": count, "parameters": 100}
            for (layer, module), count in zip(places, counts, strict=True)
        ],
        "overlap": {other: {"all": every, "layers": layers} for other, (every, layers) in overlap.items()},
    }


MASKS = [
    mask("b", [10, 0, 10, 0]),
    mask("c", [10, 5, 5, 0], b=(0.25, {"h.0": 0.5, "h.1": 0.0})),
]


class Links(HTMLParser):
    """Everything a page would fetch, and its tags in order."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]


def assert_self_contained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert all(link.startswith("data:image/png;base64,") for link in links.fetched)
    assert not {"link", "iframe"} & set(links.tags)
    assert "url(" not in text and "@import" not in text
    assert not any(word in text for word in ("fetch(", "XMLHttpRequest", "WebSocket", "import("))


SAMPLED = {"sampling": {"temperature": 0.3, "top_k": 10, "top_p": None}, "scoring": "piece", "answer_slice": "prefix"}
MARK = (
    "sampled decoding (temperature 0.3, top-k 10), scored as released with piece, answers cut out by the prompt's text"
)


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of every table of a page, without the definitions of their words."""
    plain = re.sub(r"</?abbr[^>]*>", "", text)
    return [re.findall(r"<td[^>]*>([^<>]*)</td>", line) for line in re.findall("<tr>.*?</tr>", plain)]


def words(page: Path) -> str:
    """A page in one line, with apostrophes as people type them and without places where names may break."""
    text = page.read_text(encoding="utf-8").replace("&#39;", "'").replace("<wbr>", "")
    return " ".join(text.split())
