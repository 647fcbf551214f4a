"""The first task is trained once for runs that train it alike, and each ends with the bits that it would have alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import EVERY_FAMILY, run_command, tiny, without_report

from cl_runner.compose import compose

FEW = ("pe", "[ewc,lwf,replay]", "frozen")
ALL = (*FEW, "ewc", "lwf", "pe_rand", "gem", "agem", "mas", "ogd", "ewc_online", "replay_trace", "opr")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where plain fine-tuning has trained a first task."""
    root = tmp_path_factory.mktemp("shared")
    finished(root, "method=seq_ft", "reuse=first_task")
    return root


def finished(root: Path, *overrides: str) -> Path:
    line = tiny(root, "task_order=reviews", *overrides)
    with without_report():
        assert run_command(line) == 0
    return compose(line).folder


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def losses(folder: Path) -> list[tuple[str, int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["task"], line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("choice", ALL if EVERY_FAMILY else FEW)
def test_a_run_that_takes_the_first_task_ends_with_the_same_bits(choice: str, root: Path, tmp_path: Path) -> None:
    alone = finished(tmp_path, f"method={choice}")
    sharing = finished(root, f"method={choice}", "reuse=first_task")
    assert sharing.name == alone.name, "where its first task comes from is no part of a run"
    own, other = summary(alone), summary(sharing)
    plain = choice != "opr"  # which plays back in the first task as well
    assert ("trained_by" in other["tasks_detail"][0]) is plain
    if plain:
        assert "/seq_ft/" in other["tasks_detail"][0]["trained_by"]
    assert own["weights_sha256"] == other["weights_sha256"] and own["metrics"] == other["metrics"]
    assert losses(alone) == losses(sharing)
    for name in ("steps", "tokens", "loss_last", "changed", "trainable"):
        assert own["tasks_detail"][0][name] == other["tasks_detail"][0][name], name


@pytest.mark.parametrize(
    "other",
    [
        ("method=seq_ft", "seed=1"),
        ("method=seq_ft", "training.base.learning_rate=1e-3"),
        ("method=seq_ft", "training.clip=0.5"),
        ("method=seq_ft", "task_order.data_seed=1"),
        ("method=si",),  # which needs the path that training takes
        ("method=piece_s",),  # which trains a selection from the first task on
    ],
)
def test_what_is_trained_otherwise_is_trained_anew(other: tuple[str, ...], root: Path) -> None:
    assert "trained_by" not in summary(finished(root, *other, "reuse=first_task"))["tasks_detail"][0]


def test_without_asking_nothing_is_taken(root: Path, tmp_path: Path) -> None:
    folder = finished(root, "method=seq_ft", "training.incremental.learning_rate=1e-3")
    assert "trained_by" not in summary(folder)["tasks_detail"][0]


def test_a_damaged_file_is_no_first_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path, "method=seq_ft", "reuse=first_task")
    (path,) = (tmp_path / "cache" / "trained").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    folder = finished(tmp_path, "method=frozen", "reuse=first_task")
    assert "trained_by" not in summary(folder)["tasks_detail"][0]
    assert path.is_file(), "it is trained, and kept, again"
