"""Pages and tables from run folders that are made up here, small and with numbers one can check by hand."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from cl_runner.matrix import derived, write_accuracy, write_forgetting
from cl_runner.report import command
from cl_runner.report.ability import change_text, changes, describe
from cl_runner.report.atlas import random_jaccard, read_atlas
from cl_runner.report.costs import bytes_text, costs
from cl_runner.report.drawing import layer_names, layer_order
from cl_runner.report.folder import find_runs, read_run
from cl_runner.report.grouping import group_runs, label_of, varying_keys
from cl_runner.report.page import certificate_text, write_run_report
from cl_runner.report.publish import published
from cl_runner.report.tables import (
    all_tables,
    cell_of,
    exact_csv,
    forgetting_table,
    headline_of,
    long_table,
    paper_tables,
    table_shape,
)
from cl_runner.report.text_table import as_markdown, blocks

PARAMETERS = 1000
SIZES = [20, 10, 10, 10, 10, 10, 10, 10]
NODES: dict[str, dict[str, Any]] = {
    "seq_ft": {"seq_ft": {}},
    "ewc": {"ewc": {"strength": 0.35}},
    "pe": {"ewc": {"strength": 0.35}, "pe": {"fraction": 0.005}},
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
    write_accuracy(folder / "accuracy.csv", tasks, rows[: finished + 1])
    write_forgetting(folder / "forgetting.csv", tasks, rows[: finished + 1])
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
PLAN = {
    "phases": {"load": {"bytes": 100 * 2**20, "seconds": None}, "train": {"bytes": 256 * 2**20, "seconds": 4.0}},
    "disk_bytes": 2000,
    "trainable": [1000, 5, 10],
    "basis": "a past <run>",
}
CERTIFICATE = {"selected": 20, "changed": 18, "untouched": 12380, "untouched_sha256": "ab" * 32, "holds": True}


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
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert "url(" not in text and "@import" not in text


def test_a_finished_run_has_every_section_and_picture(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    page = write_run_report(folder)
    assert page == folder / "report.html"
    assert_self_contained(page)
    text = page.read_text(encoding="utf-8")
    pictures = {"accuracy", "forgetting", "first_task", "learned_so_far", "fisher", "storage", "phases", "loss"}
    assert {path.stem for path in (folder / "plots").glob("*.png")} == pictures
    assert text.count("data:image/png") == len(pictures)
    for expected in ("union_accuracy", "70.00 %", "forgetting/chaudhry18", "+10.00 points", "0.5 %", "40 B"):
        assert expected in text
    assert "python -m cl_runner method=&lt;pe&gt;" in text
    for title in ("Where the trained weights lie", "selections share", "Certificates", "Predicted and measured"):
        assert title not in text, "a run without masks.json, certificates and plan.json"
    assert "95 % interval 60.50 to 75.25 (40 test items, bootstrap)" in text and "-1.00 to +2.00" in text
    again = write_run_report(folder).read_text(encoding="utf-8")
    assert again == text, "the same run folder gives the same page"


def test_masks_certificates_and_the_plan_have_their_sections(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "masks.json").write_text(json.dumps({"tasks": MASKS}))
    (folder / "plan.json").write_text(json.dumps(PLAN))
    summary = json.loads((folder / "summary.json").read_text())
    summary["phases"] = {"load": 0.5, "train": 5.0}
    for detail_of_task in summary["tasks_detail"][1:]:
        detail_of_task["certificate"] = CERTIFICATE
    (folder / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(folder / "predictions")
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / "00_base.safetensors").write_bytes(bytes(1000))
    page = write_run_report(folder)
    assert_self_contained(page)
    text = page.read_text(encoding="utf-8")
    drawn = {path.stem for path in (folder / "plots").glob("[mo]*.png")}
    assert drawn == {"masks", "masks_tasks", "masks_shares", "overlap", "overlap_layers"}
    assert text.count("data:image/png") == len(list((folder / "plots").glob("*.png")))
    # Both select 20 of 400, f = 0.05: f / (2 - f) = 0.02564.
    assert "Its mean is 0.25;" in text and "f / (2 - f) = 0.026." in text
    assert text.count("18 of 20 selected weights changed; 12,380 others bitwise unchanged, SHA-256 abababab") == 2
    rows = [re.findall(r">([^<>]+)</td>", line) for line in re.findall("<tr>.*?</tr>", text)]
    assert ["b", "20", "400", "5"] in rows
    assert ["load", "100", "-", "-", "-", "0.5", "-"] in rows
    assert ["train", "256", "512", "2.00", "4.0", "5.0", "1.25"] in rows
    assert ["snapshots and predictions on disk", "1.95 KiB", "1000 B", "0.50"] in rows
    assert ["trained weights, base", "1,000", "1,000", "1.00"] in rows
    assert ["trained weights, c", "10", "5", "0.50"] in rows
    assert "a past &lt;run&gt;" in text


def test_one_task_with_a_selection_and_a_plan_without_a_summary(tmp_path: Path) -> None:
    folder = make_run(tmp_path, done=2, marker="")
    (folder / "masks.json").write_text(json.dumps({"tasks": [mask("b", [0, 100, 3, 1])]}))
    (folder / "plan.json").write_text(json.dumps(PLAN | {"trainable": 7}))
    text = write_run_report(folder).read_text(encoding="utf-8")
    assert {path.stem for path in (folder / "plots").glob("[mo]*.png")} == {"masks", "masks_shares"}
    rows = [re.findall(r">([^<>]+)</td>", line) for line in re.findall("<tr>.*?</tr>", text)]
    assert ["train", "256", "-", "-", "4.0", "-", "-"] in rows
    assert ["trained weights, largest task", "7", "-", "-"] in rows


def test_many_tasks_have_no_picture_each(tmp_path: Path) -> None:
    names = [f"task{number}" for number in range(9)]
    masks = []
    for number, name in enumerate(names):
        pairs = {other: (0.0, {"h.0": 0.0}) for other in names[:number]}
        masks.append(mask(name, [1, 0, 0, 0], **pairs))
    folder = make_run(tmp_path, tasks=["base", "b", "c"])
    (folder / "masks.json").write_text(json.dumps({"tasks": masks}))
    text = write_run_report(folder).read_text(encoding="utf-8")
    assert not (folder / "plots" / "masks_tasks.png").exists()
    assert "mean over 9 tasks" in text and "Its mean is 0;" in text


def test_masks_become_arrays_in_the_order_shown() -> None:
    atlas = read_atlas(MASKS)
    assert (atlas.layers, atlas.modules) == (["h.0", "h.1", "score"], ["query", "layer_norm", "classifier"])
    assert atlas.selected[1].tolist() == [[10, 0, 0], [5, 5, 0], [0, 0, 0]]
    np.testing.assert_array_equal(atlas.share[0], [[10, np.nan, np.nan], [0, 10, np.nan], [np.nan, np.nan, 0]])
    assert atlas.pairs == [(1, 0)]
    np.testing.assert_array_equal(atlas.overlap, [[np.nan, np.nan], [0.25, np.nan]])
    np.testing.assert_array_equal(atlas.overlap_by_layer[1, 0], [0.5, 0.0, np.nan])


def test_random_masks_overlap_as_drawn_ones_do() -> None:
    assert random_jaccard(0.1, 0.1) == pytest.approx(0.1 / 1.9)
    draw = np.random.default_rng(0)
    a, b = draw.random(200_000) < 0.3, draw.random(200_000) < 0.1
    assert random_jaccard(0.3, 0.1) == pytest.approx((a & b).sum() / (a | b).sum(), rel=0.03)


def test_a_broken_certificate_says_so() -> None:
    assert "did NOT" in certificate_text(CERTIFICATE | {"holds": False})


def test_layers_keep_their_stacks_apart() -> None:
    layers = ["decoder.final_layer_norm", "encoder.block.0", "encoder.block.10", "encoder.block.2", "decoder.block.0"]
    ordered = layer_order([*layers, "encoder.final_layer_norm", "shared", "decoder.block.0"])
    assert layer_names(ordered) == [
        *("shared", "encoder 0", "encoder 2", "encoder 10", "decoder 0"),
        *("decoder.final_layer_norm", "encoder.final_layer_norm"),
    ]
    bert = ["bert.encoder.layer.1", "bert.embeddings", "classifier", "bert.pooler", "bert.encoder.layer.0"]
    assert layer_names(layer_order(bert)) == ["embeddings", "block 0", "block 1", "pooler", "classifier"]
    llama = ["model.embed_tokens", "model.layers.0", "model.norm", "lm_head"]
    assert layer_names(layer_order(llama)) == ["embed_tokens", "block 0", "norm", "lm_head"]


@pytest.mark.parametrize("done", [0, 2])
def test_an_unfinished_run_shows_what_is_there(tmp_path: Path, done: int) -> None:
    folder = make_run(tmp_path, done=done, marker="")
    text = write_run_report(folder).read_text(encoding="utf-8")
    assert f"not finished: {done} of 3 tasks" in text
    assert (folder / "plots" / "accuracy.png").exists()
    assert (folder / "plots" / "forgetting.png").exists() == (done > 1)
    assert (folder / "plots" / "loss.png").exists() == (done > 0)
    run = read_run(folder)
    assert run.status == "unfinished" and run.done == done
    assert run.metrics.get("union_accuracy") == pytest.approx(80.0) if done else not run.metrics
    if done:  # 16 of 20 and 8 of 10 right
        low, high = run.intervals["union_accuracy"]
        assert 62 < low < 72 and 88 < high < 97
        assert f"95 % interval {low:.2f} to {high:.2f} (30 test items" in text
    assert ("forgetting/chaudhry18" in run.metrics) == (done > 1)


def test_a_run_before_its_first_evaluation_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path, done=0, marker="")
    for name in ("accuracy.csv", "metrics.jsonl", "fisher.json", "environment.json", "overrides.txt"):
        (folder / name).unlink()
    assert "0 of 3 tasks" in write_run_report(folder).read_text(encoding="utf-8")


def test_a_failed_run_says_why_and_escapes_it(tmp_path: Path) -> None:
    text = write_run_report(make_run(tmp_path, "ewc", done=0, marker="FAILED")).read_text(encoding="utf-8")
    assert "failed after 0 of 3 tasks" in text
    assert "loss &lt;b&gt;nan&lt;/b&gt;" in text


def test_one_task_has_no_forgetting(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seq_ft", tasks=["base"])
    text = write_run_report(folder).read_text(encoding="utf-8")
    assert "forgetting" not in text and "bwt" not in text and "later_tasks" not in text
    assert costs(read_run(folder)) == {}


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run folder: it has no config\.yaml"):
        write_run_report(tmp_path)


def test_costs_are_means_over_later_tasks(tmp_path: Path) -> None:
    assert costs(read_run(make_run(tmp_path))) == {
        "trainable_share/later_tasks": 0.5,
        "stored_bytes/later_tasks": 40,
        "online_seconds/later_tasks": 3.5,  # (3 + 4) / 2
        "offline_seconds/later_tasks": 2.0,
    }


def test_bytes_are_read_in_their_largest_unit() -> None:
    assert [bytes_text(size) for size in (0, 1023, 1024, 1.25 * 2**20, 3 * 2**30)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.25 MiB",
        "3 GiB",
    ]


def test_find_runs_searches_below_counts_each_once_and_notes_the_rest(tmp_path: Path) -> None:
    done = make_run(tmp_path, seed=0)
    make_run(tmp_path, seed=1, done=1, marker="FAILED")
    make_run(tmp_path, seed=2, done=1, marker="")
    runs, notes = find_runs([tmp_path, done])
    assert [run.folder for run in runs] == [done]
    assert [note.rpartition(": ")[2] for note in notes] == ["failed", "unfinished"]
    with pytest.raises(ValueError, match="there is no folder"):
        find_runs([tmp_path / "nowhere"])


def test_configurations_that_are_no_runs_are_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path, order="o")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("a: 1\n")
    for place in ("wandb/run-1/files", "state", "snapshots/x"):
        shutil.copytree(run, tmp_path / "kept" / place)
    runs, notes = find_runs([tmp_path])
    assert ([found.folder for found in runs], notes) == ([run], [])
    # A run is looked for below the folder only: where that lies does not matter.
    assert len(find_runs([tmp_path / "kept" / "wandb"])[0]) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: 1\n"),
        ("config.yaml", "- a\n"),
        ("config.yaml", "just text\n"),
        ("config.yaml", "seed: [0\n"),
        ("config.yaml", "seed: \xff\n"),
        ("summary.json", '{"status": "completed", "tas'),
        ("summary.json", "[]"),
        ("environment.json", ""),
        ("accuracy.csv", "after,\xff\n"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    sound, broken = make_run(tmp_path, seed=0), make_run(tmp_path, seed=1)
    (broken / name).write_text(content, encoding="latin-1")
    runs, notes = find_runs([tmp_path])
    assert [run.folder for run in runs] == [sound]
    assert len(notes) == 1 and str(broken / name) in notes[0] and "\n" not in notes[0]
    for flags in ([], ["--metric", "bwt/gem"]):
        assert command.main([str(broken), *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"cl_runner: {broken / name} ") and error.count("\n") == 1


@pytest.mark.parametrize(("name", "content"), [("masks.json", '{"tasks": ['), ("plan.json", "[1]")])
def test_a_damaged_file_of_the_page_alone_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    folder = make_run(tmp_path, tasks=["base"])
    (folder / name).write_text(content)
    assert len(find_runs([tmp_path])[0]) == 1, "tables need neither"
    assert command.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cl_runner: {folder / name} cannot be read") and error.count("\n") == 1


@pytest.mark.parametrize("form", ["csv", "markdown", "html"])
def test_what_cannot_be_written_is_one_message_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    run = make_run(tmp_path / "runs")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    long = "x" * 252  # a name that can be, but not with .tmp added
    for place, reason in (
        ("folder", "it is a folder"),
        ("file/x", f"{tmp_path}/file is not a folder"),
        (long, "File name too long"),
    ):
        before = sorted(tmp_path.rglob("*"))
        assert command.main([str(run), "--format", form, "--output", str(tmp_path / place)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"cl_runner: cannot write {tmp_path / place}: ") and reason in error
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_two_seeds_are_one_group_with_the_sample_deviation(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, last=70.0)
    make_run(tmp_path, seed=1, last=74.0)
    (group,) = group_runs(find_runs([tmp_path])[0])
    assert group.seeds == [0, 1]
    cell = cell_of(group.values("union_accuracy"))
    assert cell is not None
    assert (cell.mean, cell.count) == (72.0, 2)
    assert cell.spread == pytest.approx(8**0.5)  # sqrt((2^2 + 2^2) / (2 - 1)) = 2.83
    table = long_table([group])
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["method"] == "pe" and row["n"] == "2"
    assert row["union_accuracy"] == "72.00 ± 2.83"
    assert row["forgetting/chaudhry18"] == "8.00 ± 2.83"
    assert row["stored_bytes/later_tasks"] == "40 B"
    (line,) = csv.DictReader(exact_csv([group]).splitlines())
    assert float(line["union_accuracy std"]) == cell.spread and line["seeds"] == "0 1"


def test_one_seed_has_no_spread() -> None:
    cell = cell_of([70.0])
    assert cell is not None and cell.spread is None
    assert cell_of([]) is None


def test_a_key_is_a_column_only_where_names_do_not_tell(tmp_path: Path) -> None:
    make_run(tmp_path, "pe")
    make_run(tmp_path, "ewc")
    runs = find_runs([tmp_path])[0]
    assert varying_keys(runs) == []  # method.pe.fraction is there or not, which the method's name says
    make_run(tmp_path, "pe", fraction=0.01)
    make_run(tmp_path, "ewc", epochs=5)
    runs = find_runs([tmp_path])[0]
    assert varying_keys(runs) == ["training.incremental.epochs", "method.pe.fraction"]
    groups = group_runs(runs)
    assert [group.axes["method.pe.fraction"] for group in groups] == [None, None, 0.005, 0.01]
    labels = {label_of(group, groups) for group in groups}
    assert labels == {"pe, epochs 3, fraction 0.005", "pe, epochs 3, fraction 0.01", "ewc, epochs 3", "ewc, epochs 5"}


def test_a_copied_run_does_not_count_twice(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b" / folder.name)
    with pytest.raises(ValueError, match="the same run"):
        group_runs(find_runs([tmp_path])[0])


def test_table_1_has_orders_down_methods_across_and_the_bound_as_a_column(tmp_path: Path) -> None:
    for order, base in (("amazon_1", 50.0), ("amazon_2", 60.0)):
        make_run(tmp_path, "pe", order=order, last=base, seed=0)
        make_run(tmp_path, "pe", order=order, last=base + 2, seed=1)
        make_run(tmp_path, "ewc", order=order, last=base - 4)
        make_run(tmp_path, "seq_ft", order=order, last=base + 10, joint=True, epochs=1)
    (table,) = paper_tables(group_runs(find_runs([tmp_path])[0]), "union_accuracy")
    assert table.title.startswith("PE table 1")
    cells = {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}
    assert cells == {
        "amazon_1": {"ewc": "46.00", "pe": "51.00 ± 1.41", "joint": "60.00"},
        "amazon_2": {"ewc": "56.00", "pe": "61.00 ± 1.41", "joint": "70.00"},
        "mean": {"ewc": "51.00", "pe": "56.00", "joint": "65.00"},
    }
    assert any("training.incremental.epochs" in note and "1 for joint" in note for note in table.notes)


def test_table_2_sorts_the_fractions_as_numbers(tmp_path: Path) -> None:
    for fraction in (0.1, 0.005, 0.05):
        make_run(tmp_path, fraction=fraction, last=60 - 100 * fraction)
    (table,) = paper_tables(group_runs(find_runs([tmp_path])[0]), "union_accuracy")
    assert table.header == ["task_order", "0.005", "0.05", "0.1"]
    assert table.rows == [["fdu_mtl", "59.50", "55.00", "50.00"]]
    assert "| fdu_mtl | 59.50 | 55.00 | 50.00 |" in as_markdown(table)


def test_a_hole_in_a_column_leaves_its_mean_out(tmp_path: Path) -> None:
    make_run(tmp_path, "pe", order="x", last=50)
    make_run(tmp_path, "pe", order="y", last=60)
    make_run(tmp_path, "ewc", order="y", last=40)
    table = table_shape(group_runs(find_runs([tmp_path])[0]), "task_order", "method", "average_accuracy")
    assert table.rows == [["x", "50.00", "-"], ["y", "60.00", "40.00"], ["mean", "55.00", "-"]]


def test_a_cell_never_mixes_settings(tmp_path: Path) -> None:
    make_run(tmp_path, fraction=0.1)
    make_run(tmp_path, fraction=0.2)
    groups = group_runs(find_runs([tmp_path])[0])
    with pytest.raises(ValueError, match=r"differ in method\.pe\.fraction\. Type --columns method\.pe\.fraction"):
        table_shape(groups, "task_order", "method", "union_accuracy")


def test_command_rewrites_the_page_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path, "ewc", tasks=["base", "c"])
    assert command.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert str(folder / "report.html") in out.replace("\n", "")
    assert "after c" in out and "forgetting/chaudhry18 +10.00 points" in out


def test_command_joins_many_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "pe", 0, last=70)
    make_run(tmp_path, "pe", 1, last=74)
    make_run(tmp_path, "ewc", 0)
    make_run(tmp_path, "ewc", 1, done=1, marker="FAILED")
    assert command.main([str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "72.00 ± 2.83" in captured.out
    assert "failed" in captured.err
    assert_self_contained(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "72.00 ± 2.83" in text and "left out" in text
    assert text.count("data:image/png") == 3
    assert "72.00 ± 2.83" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "report.csv").read_text(encoding="utf-8").startswith("task_order,backbone,method,protocol,n,")


def test_command_prints_and_writes_the_format_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fraction in (0.005, 0.1):
        make_run(tmp_path / "runs", fraction=fraction, last=100 * fraction)
    shape = [str(tmp_path / "runs"), "--columns", "method.pe.fraction", "--metric", "average_accuracy"]
    assert command.main([*shape, "--format", "csv"]) == 0
    assert capsys.readouterr().out == "task_order,0.005,0.1\nfdu_mtl,0.50,10.00\n"
    output = tmp_path / "table.md"
    assert command.main([*shape, "--format", "markdown", "--output", str(output)]) == 0
    assert "| fdu_mtl | 0.50 | 10.00 |" in output.read_text(encoding="utf-8")
    assert command.main([*shape, "--output", str(tmp_path / "table.html")]) == 0
    assert_self_contained(tmp_path / "table.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUNS", "--columns", "metod"], "no run has the key 'metod'. Nearest: method."),
        (["RUNS", "--metric", "union_acuracy"], "Nearest: union_accuracy."),
        (["RUNS", "--format", "pdf"], "invalid choice: 'pdf'"),
        (["RUNS", "--publish", "name"], "--publish and --command belong together"),
        (["RUNS", "--output", "x.txt"], "needs --format csv, markdown or html"),
        (["RUNS/nowhere"], "there is no folder"),
        (["RUNS/empty"], "no completed run in"),
        ([], "RUN_OR_FOLDER"),
    ],
)
def test_command_answers_a_mistake_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    make_run(tmp_path)
    (tmp_path / "empty").mkdir()
    assert command.main([text.replace("RUNS", str(tmp_path)) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cl_runner: ") and message in error
    assert "Traceback" not in error and error.count("\n") == 1


def test_published_results_hold_everything_but_paths_of_the_machine(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", seed=0, last=70)
    make_run(tmp_path / "runs", seed=1, last=74)
    runs = find_runs([tmp_path / "runs"])[0]
    line = "python -m cl_runner -m method=pe seed=0,1 data_root=/somewhere/data"
    paths = published(runs, tmp_path / "published" / "small", line)
    results = json.loads(paths[0].read_text(encoding="utf-8"))
    assert results["command"] == "python -m cl_runner -m method=pe seed=0,1 data_root=DATA"
    assert results["seeds"] == [0, 1]
    assert len(results["environments"]) == len(results["data"]) == 1
    assert results["environments"][0]["hardware"]["cores"] == 2
    assert results["data"][0]["test_examples"] == {"base": 20, "b": 10, "c": 10}
    assert results["runs"][1]["accuracy"][-1] == [74, 74, 74]
    assert results["runs"][1]["overrides"] == ["method=pe", "seed=1"]
    markdown = paths[1].read_text(encoding="utf-8")
    assert "72.00 ± 2.83" in markdown and "base 30/20" in markdown and "torch 2.9" in markdown
    assert not [path for path in paths if "/somewhere" in path.read_text(encoding="utf-8")]


def test_a_relative_data_root_replaces_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs")
    config = OmegaConf.load(folder / "config.yaml")
    config.data_root = "data"
    OmegaConf.save(config, folder / "config.yaml")
    runs = find_runs([tmp_path / "runs"])[0]
    paths = published(runs, tmp_path / "small", "python -m cl_runner task_order.data_seed=1")
    assert json.loads(paths[0].read_text(encoding="utf-8"))["command"] == "python -m cl_runner task_order.data_seed=1"


def test_terminal_blocks_repeat_the_names_and_lose_no_column() -> None:
    assert blocks([10, 5, 20, 20, 20], left=1, room=40) == [[0, 1, 2], [0, 3], [0, 4]]
    assert blocks([10, 90], left=1, room=40) == [[0, 1]]


LONG = (
    *("C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"),
    "a_task_with_a_very_long_name_indeed",
)
METRICS = ("first_letter", "first_letter", "rouge_l", "first_letter", "number", "number", "sari", "edit_similarity")
SAMPLED = {"sampling": {"temperature": 0.3, "top_k": 10, "top_p": None}, "scoring": "piece", "answer_slice": "prefix"}
MARK = (
    "sampled decoding (temperature 0.3, top-k 10), scored as released with piece, answers cut out by the prompt's text"
)


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of every table of a page."""
    return [re.findall(r"<td[^>]*>([^<>]*)</td>", line) for line in re.findall("<tr>.*?</tr>", text)]


def test_scores_of_different_metrics_are_named_and_have_no_union(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, tasks=LONG, metrics=METRICS, seen=True)
    assert command.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "completed: score in %" in shown and "union_accuracy" not in shown and "nan" not in shown
    assert "average_accuracy 70.00 % (95 % interval 60.50 to 75.25)" in shown
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h2>Scores</h2>" in text and "union_accuracy" not in text and ">nan<" not in text
    assert "MeetingBank, rouge_l" in text and "Empty cells were not measured." in text
    assert "The metric first_letter on the test set of C-STANCE" in text
    rows = table_rows(text)
    assert ["start", *[""] * 8] in rows and ["after FOMC", "80.00", "80.00", *[""] * 6] in rows
    # All metrics of each task after the last one; the first one fills the matrix.
    assert ["MeetingBank", "rouge_l", "", "35.00", "70.00", "", "", ""] in rows
    assert ["after k tasks"] not in rows and any(row[:1] == ["forgetting/slm_after_8"] for row in rows)


def test_one_metric_that_is_no_accuracy_names_the_scores(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, metrics=["rouge_l"] * 3))
    assert run.measure == "rouge_l" and "union_accuracy" in run.metrics
    text = write_run_report(run.folder).read_text(encoding="utf-8")
    assert "The metric rouge_l, in percent, on every test set" in text


def test_an_unfinished_run_knows_its_metrics_from_the_configuration(tmp_path: Path) -> None:
    folder = make_run(tmp_path, done=2, marker="", evaluation={"scoring": "piece"})
    config = OmegaConf.load(folder / "config.yaml")
    config.task.reviews.metrics = ["first_word", "f1"]
    config.task.other = {"metrics": ["f1"], "released_metrics": {"piece": ["piece_letter"]}}
    config.task_order.tasks[1].task = "other"
    OmegaConf.save(config, folder / "config.yaml")
    run = read_run(folder)
    assert run.scored_by == {"base": "first_word", "b": "piece_letter", "c": "first_word"}
    assert "union_accuracy" not in run.metrics and "average_accuracy" in run.metrics
    assert "union_accuracy" not in run.intervals and "average_accuracy" in run.intervals


def test_another_protocol_is_marked_on_the_page_and_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_run(make_run(tmp_path / "a", evaluation={"scoring": "standard", "sampling": None})).marks == []
    assert read_run(make_run(tmp_path / "b", evaluation={"labels": "likelihood"})).marks == [
        "labels chosen by likelihood"
    ]
    folder = make_run(tmp_path / "c", evaluation=SAMPLED)
    assert command.main([str(folder)]) == 0
    assert f"Not the standard protocol: {MARK}." in capsys.readouterr().out
    text = (folder / "report.html").read_text(encoding="utf-8").replace("&#x27;", "'")
    assert text.count(f"Not the standard protocol: {MARK}.") >= 3  # header, scores, derived numbers


def test_joined_tables_keep_protocols_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "pe", order="x", last=50, evaluation=SAMPLED)
    make_run(tmp_path, "pe", order="y", last=60)
    make_run(tmp_path, "ewc", order="x", last=40)
    make_run(tmp_path, "ewc", order="y", last=42)
    groups = group_runs(find_runs([tmp_path])[0])
    assert varying_keys(find_runs([tmp_path])[0]) == [], "the protocol's name tells its keys"
    table = table_shape(groups, "task_order", "method", "average_accuracy")
    assert table.rows == [["x", "40.00", "50.00 †"], ["y", "42.00", "60.00"], ["mean", "41.00", "-"]]
    assert f"† not the standard protocol: {MARK}" in table.notes
    shown = [row[:2] for row in long_table(groups).rows]
    assert shown == [["x", "ewc"], ["x", "pe †"], ["y", "ewc"], ["y", "pe"]] and MARK in long_table(groups).notes[-1]
    same = [group for group in groups if group.axes["task_order"] == "x"]
    assert {label_of(group, same) for group in same} == {"pe †", "ewc"}
    assert exact_csv(groups).count(MARK) == 1
    make_run(tmp_path, "pe", order="x", last=51)
    with pytest.raises(ValueError, match="differ in protocol. Type --columns protocol"):
        table_shape(group_runs(find_runs([tmp_path])[0]), "task_order", "method", "average_accuracy")
    assert command.main([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8").replace("&#x27;", "'")
    assert f"† not the standard protocol: {MARK}." in page
    capsys.readouterr()


def test_runs_that_all_share_another_protocol_say_so(tmp_path: Path) -> None:
    make_run(tmp_path, "pe", evaluation=SAMPLED)
    make_run(tmp_path, "ewc", evaluation=SAMPLED)
    groups = group_runs(find_runs([tmp_path])[0])
    assert f"not the standard protocol: {MARK}" in long_table(groups).notes
    table = table_shape(groups, "task_order", "method", "average_accuracy")
    assert f"not the standard protocol: {MARK}" in table.notes and "†" not in as_markdown(table)


def test_runs_with_and_without_a_union_are_compared_by_the_average(tmp_path: Path) -> None:
    make_run(tmp_path, "pe", last=50)
    make_run(tmp_path, "ewc", last=40, metrics=["first_letter", "rouge_l", "number"])
    groups = group_runs(find_runs([tmp_path])[0])
    assert headline_of(groups) == "average_accuracy" and headline_of(groups[:1]) != headline_of(groups[1:])
    assert "average_accuracy" in all_tables(groups)[0].header


LOSS, PERPLEXITY = "held_text/loss", "held_text/perplexity"


def test_general_ability_is_drawn_and_its_loss_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pe = make_run(tmp_path, "pe", ability={LOSS: [2.0, 2.25, 2.5, 3.0], PERPLEXITY: [7.4, 9.5, 12.2, 20.1]})
    make_run(tmp_path, "ewc", ability={LOSS: [2.0, 2.0, 2.25, 2.125]})
    run = read_run(pe)
    assert changes(run) == {
        "ability_change/held_text/loss": 1.0,
        "ability_change/held_text/perplexity": pytest.approx(12.7),
    }
    text = write_run_report(pe).read_text(encoding="utf-8")
    assert (pe / "plots" / "ability.png").exists() and "<h2>General ability</h2>" in text
    assert ["after b", "2.5 (+0.5)", "12.2 (+4.80)"] in [["after " + r[0], *r[1:]] for r in table_rows(text) if r]
    assert command.main([str(pe)]) == 0
    assert "ability_change/held_text/loss +1.00" in capsys.readouterr().out
    groups = group_runs(find_runs([tmp_path])[0])
    table = long_table(groups)
    column = table.header.index("ability_change/held_text/loss")
    assert [row[column] for row in table.rows] == ["+0.125", "+1.00"]
    pivot = table_shape(groups, "task_order", "method", "ability_change/held_text/loss")
    assert pivot.rows == [["fdu_mtl", "+0.125", "+1.00"]]
    assert command.main([str(tmp_path)]) == 0
    assert (tmp_path / "plots" / "ability_fdu_mtl.png").exists()
    capsys.readouterr()


def test_units_and_directions_are_those_of_the_probes() -> None:
    assert describe("unknown/number") == "unknown/number"
    assert describe(PERPLEXITY).startswith(PERPLEXITY)
    assert (change_text("ability_change/unknown/x", 0.125), change_text("ability_change/unknown/x", -2)) == (
        "+0.125",
        "-2.00",
    )


def test_throughput_is_shown_where_it_is_known(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    summary["tasks_detail"][0] |= {"tokens": 12345, "tokens_per_second": 678.9, "padding_share": 0.125}
    (folder / "summary.json").write_text(json.dumps(summary))
    text = write_run_report(folder).read_text(encoding="utf-8")
    rows = table_rows(text)
    assert ["base", "30", "10", "2.0", "2.0", "1.0", "12,345", "679", "12.5"] in rows
    assert ["b", "30", "10", "2.0", "3.0", "1.0", "-", "-", "-"] in rows
    assert "model FLOPs" not in text


def test_forgetting_after_k_tasks_has_a_row_per_method(tmp_path: Path) -> None:
    make_run(tmp_path, "pe", last=70)
    make_run(tmp_path, "ewc", last=75)
    table = forgetting_table(group_runs(find_runs([tmp_path])[0]))
    assert table is not None
    assert table.header == ["method", "after 2", "after 3"]
    assert table.rows == [["ewc", "0.00", "5.00"], ["pe", "0.00", "10.00"]]
    make_run(tmp_path / "short", tasks=["base", "b"])
    assert forgetting_table(group_runs(find_runs([tmp_path / "short"])[0])) is None
