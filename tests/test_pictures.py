"""Pictures found, mistakes with them, whole runs of models that see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import SEEING, config, data, seeing
from PIL import Image
from tiny import Death, Losses, run_command, tiny_learner

from cl_runner import checkpoint
from cl_runner.compose import compose
from cl_runner.data.example import Example
from cl_runner.data.task import build_tasks, fingerprint
from cl_runner.importance import _key
from cl_runner.learn import learn_task
from cl_runner.planning import peaks
from cl_runner.planning.imitation import Ledger
from cl_runner.planning.numbers import counts_of, setting_of, skeleton, text_lengths
from cl_runner.planning.planner import Planner


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data(tmp_path_factory.mktemp("data"))


#: A model and tasks without pictures.
WORDS = ("backbone=tiny_llama", "task_order=reviews")


# Data -------------------------------------------------------------------------------------------------------


def test_pictures_are_found_by_the_end_of_their_path(root: Path, tmp_path: Path) -> None:
    chosen = config(root)
    action, _ = build_tasks(chosen.task_order, chosen.task)
    picture = action.train[3].picture
    assert picture is not None and picture.name == "val2014/action_train_3.png"
    assert picture.path == str(root / "coco" / picture.name) and picture.size == Path(picture.path).stat().st_size
    moved = data(tmp_path / "moved")
    elsewhere = config(moved)
    again, _ = build_tasks(elsewhere.task_order, elsewhere.task)
    assert fingerprint(again) == fingerprint(action), "where pictures lie is no part of the data"
    Image.new("RGB", (90, 70), "white").save(moved / "coco" / picture.name)
    other, _ = build_tasks(elsewhere.task_order, elsewhere.task)
    assert fingerprint(other) != fingerprint(action)


def test_importance_of_one_question_about_two_pictures_is_not_shared(root: Path) -> None:
    learner, _, (action, _) = tiny_learner(config(root))
    first, second = action.train[:2]
    keys = {
        _key(learner, [e], False, torch.float32, "w")
        for e in (Example("What?", "x", picture=first.picture), Example("What?", "x", picture=second.picture))
    }
    assert len(keys) == 2


def test_mistakes_with_pictures(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(where: Path, *more: str) -> str:
        assert run_command(seeing(where, f"root={tmp_path / 'out'}", *more)) == 2
        return capsys.readouterr().err

    lost = data(tmp_path / "lost")
    (lost / "coco" / "val2014" / "count_test_1.png").unlink()
    message = said(lost)
    assert "row 2 of" in message and "count_test_1.png, of which no end lies below" in message
    assert "train2014.zip" in message and "data_root=FOLDER" in message
    assert "Nearest: 'pic_path'" in said(root, "task.vqa.picture='${data_root}/coco/{pic_paht}'")
    assert "FOLDER/{COLUMN}" in said(root, "task.vqa.picture=coco")
    assert "reads texts alone. Type: backbone=llava_1_5_7b" in said(root, "backbone=tiny_llama")
    assert "reads pictures, and task action has examples without" in said(root, "task.vqa.picture=null")
    assert "Type: backbone.chat_template=true" in said(root, "backbone.chat_template=false")
    assert "probe oracle needs" in said(root, "probe=oracle")
    assert "probe captioning needs a backbone of the families image_text" in said(root, "probe=captioning", *WORDS)
    assert run_command(["plan", *seeing(root, "backbone=tiny_qwen3_vl")]) == 2
    assert "plans know pictures of one size" in capsys.readouterr().err


def test_a_plan_is_within_a_quarter_of_what_lives(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that sees: its picture's features, eyes that are frozen and keep nothing, its words."""
    for share in ("HEAP_SHARE", "PROMPT_HEAP_SHARE"):
        monkeypatch.setattr(peaks, share, 1.0)  # what the heap keeps beside it is measured on real runs
    sizes = "{text_config: {hidden_size: 96, intermediate_size: 256}}"
    chosen = config(root, "method=seq_ft", f"++backbone.architecture={sizes}")
    learner, method, tasks = tiny_learner(chosen)
    weights = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    with Ledger() as ledger:
        for task in tasks:
            learn_task(learner, method, task, chosen.training, Losses())
    lengths = text_lengths(learner.family, tasks)
    s = setting_of(chosen, counts_of(chosen, tasks), skeleton(chosen.backbone, 0), "cpu", lengths)
    found = Planner(lambda: skeleton(chosen.backbone, 0), 0).memory(s)
    planned = max(size for phase, size in found.items() if phase != "evaluate")
    assert planned == pytest.approx(weights + ledger.peak_bytes, rel=0.25), found


# Runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cl_runner.report.page.write_run_report", lambda folder: folder / "report.html")


def finished(arguments: list[str]) -> dict[str, Any]:
    assert run_command(arguments) == 0
    return content(compose(arguments).folder)


def content(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "weights": summary["weights_sha256"],
        "numbers": summary["metrics"],
        "predictions": [path.read_text() for path in sorted((folder / "predictions").iterdir())],
        "snapshots": [path.read_bytes() for path in sorted((folder / "snapshots").iterdir())],
    }


def test_colours_are_learned_from_pictures(root: Path, tmp_path: Path, no_report: None) -> None:
    """The question is the same for all of them."""
    more = ["training.base.epochs=30", "training.base.learning_rate=0.01", "task_order.tasks=[{name: action}]"]
    done = finished(seeing(root, "method=seq_ft", f"root={tmp_path}", *more))
    assert done["numbers"]["average_accuracy"] == 100


@pytest.mark.parametrize("option", ["llava_1_5_7b", "qwen3_vl_4b"])
def test_presets_run_two_steps(option: str, root: Path, tmp_path: Path, no_report: None) -> None:
    """Their own method, batch and schedule, on the tiny LLaVA."""
    small = [o for o in SEEING if not o.startswith("training")]
    arguments = [f"experiment=piece/{option}", *small, "hardware=cpu", f"data_root={root}", f"root={tmp_path}"]
    assert run_command([*arguments, "training.max_steps=2"]) == 0
    (summary,) = tmp_path.rglob("summary.json")
    assert [d["steps"] for d in json.loads(summary.read_text())["tasks_detail"]] == [2, 2]
    preset = compose([f"experiment=piece/{option}"]).config
    stage = preset.training.incremental
    assert (stage.batch_size, stage.micro_batch, stage.learning_rate, stage.epochs) == (128, 4, 1e-5, 5)
    assert [task.name for task in preset.task_order.tasks] == ["action", "commonsense", "count"]


@pytest.mark.parametrize(("method", "dies_at"), [("piece_s", 11), ("seq_ft", 4)])
def test_interrupted_and_resumed_equals_uninterrupted(
    method: str, dies_at: int, root: Path, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside the second task or the first."""
    real, calls = checkpoint.save, iter(range(10**6))

    def save(folder: Path, state: dict[str, Any]) -> None:
        if next(calls) == dies_at:
            raise Death
        real(folder, state)

    def arguments(place: str) -> list[str]:
        return seeing(root, f"method={method}", "checkpoint.every_seconds=0", f"root={tmp_path / place}")

    whole = finished(arguments("whole"))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save)
        with pytest.raises(Death):
            run_command(arguments("killed"))
    assert finished(arguments("killed")) == whole
