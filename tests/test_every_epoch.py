"""evaluation.every_epoch: what is asked when, that nothing else changes, deaths, plans, curves, mistakes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import words
from tiny import Death, run_command, some, tiny, tiny_config, without_report

from cl_runner import checkpoint, journal
from cl_runner.compose import compose
from cl_runner.planning.numbers import counts_of
from cl_runner.planning.tasks import ask, task_numbers
from cl_runner.report.epochs import course
from cl_runner.report.folder import read_run

FAST = ("method=seq_ft", "training.base.learning_rate=0.01", "training.incremental.learning_rate=0.01")
CURVE = "evaluation.every_epoch=true"
HELD_OUT = ("training.select=best_validation", "task_order.base.validation=10", "task_order.incremental.validation=6")


def folder_of(root: Path) -> Path:
    (path,) = root.rglob("summary.json")
    return path.parent


def lines(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in found if line["kind"] in kinds]


@pytest.mark.parametrize("options", [(), HELD_OUT], ids=["last", "best"])
def test_tasks_so_far_are_asked_at_every_epochs_end_and_nothing_else_changes(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    typed = (*FAST, "training.base.epochs=3", *options)
    with without_report():
        assert (
            run_command(tiny(tmp_path / "plain", *typed)) == run_command(tiny(tmp_path / "curve", *typed, CURVE)) == 0
        )
    plain, curve = folder_of(tmp_path / "plain"), folder_of(tmp_path / "curve")
    assert plain.name != curve.name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (plain, curve)]
    assert summaries[0]["weights_sha256"] == summaries[1]["weights_sha256"]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert lines(plain, "train", "evaluation") == lines(curve, "train", "evaluation") and not lines(plain, "epoch")
    found = [(line["task"], line["epoch"], line["step"]) for line in lines(curve, "epoch")]
    # 48 and 24 examples in batches of 8; the last epoch of a task is its row, unless another one was selected.
    whole = [("base", e, 6 * e) for e in (1, 2, 3)]
    whole += [(task, e, 18 + 6 * place + 3 * e) for place, task in enumerate(("kettles", "software")) for e in (1, 2)]
    last = {("base", 3), ("kettles", 2), ("software", 2)}
    assert found == (whole if options else [one for one in whole if one[:2] not in last])
    scored = [list(line["epoch_scores"]) for line in lines(curve, "epoch")]
    assert scored[0] == ["base"] and scored[-1] == ["base", "kettles", "software"]
    if options:  # the best epoch's scores are the row's
        best = summaries[1]["tasks_detail"][0]["selected_epoch"]["step"]
        (row,) = [line for line in lines(curve, "evaluation") if line["after"] == "base"]
        (own,) = [line for line in lines(curve, "epoch") if line["step"] == best]
        assert own["epoch_scores"]["base"] == row["accuracy"]["base"]


EVERY = ("train", "epoch", "evaluation")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All lines of a run with curves."""
    root = tmp_path_factory.mktemp("whole")
    with without_report():
        assert run_command(tiny(root, *FAST, CURVE)) == 0
    return lines(folder_of(root), *EVERY)


@pytest.mark.parametrize("dies", [3, 7, 8])
def test_a_run_that_died_has_each_line_once(
    dies: int, undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = tiny(tmp_path, *FAST, CURVE, "checkpoint.every_seconds=0")
    real, calls = checkpoint.save, iter(range(10**6))

    def save(folder: Path, state: dict[str, Any]) -> None:
        if next(calls) == dies:
            raise Death
        real(folder, state)

    with without_report():
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "save", save)
            with pytest.raises(Death):
                run_command(typed)
        assert run_command(typed) == 0
    assert lines(folder_of(tmp_path), *EVERY) == undisturbed


@pytest.mark.parametrize(
    ("end", "every"),  # seconds between checkpoints: 0 = the batch before it is saved, 60 = the task's beginning is
    [("dies in it", 60), ("dies after its line", 0), ("is told to stop in it", 60)],
)
def test_an_end_in_an_epochs_evaluation_writes_its_scores_once(
    end: str, every: int, undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = tiny(tmp_path, *FAST, CURVE, f"checkpoint.every_seconds={every}")
    real, line = journal.first_scores, journal.Journal.on_epoch

    def scored(*asked: Any) -> dict[str, list[float]]:
        *others, after, progress = asked

        def answered(*numbers: Any) -> None:
            if end == "dies in it":
                raise Death
            os.kill(os.getpid(), signal.SIGTERM)
            progress(*numbers)

        # In the second task, between its test set's answers and the base's.
        return real(
            *others, after, answered if after == "kettles/epoch 1" and end != "dies after its line" else progress
        )

    def on_epoch(self: journal.Journal, task: Any, epoch: int) -> None:
        line(self, task, epoch)
        if task.name == "kettles" and end == "dies after its line":
            raise Death

    with without_report():
        with monkeypatch.context() as patched:
            patched.setattr(journal, "first_scores", scored)
            patched.setattr(journal.Journal, "on_epoch", on_epoch)
            if end == "is told to stop in it":
                assert run_command(typed) == 75
            else:
                with pytest.raises(Death):
                    run_command(typed)
        assert run_command(typed) == 0
    assert lines(folder_of(tmp_path), *EVERY) == undisturbed


@pytest.mark.parametrize("backbone", some(["tiny_llama", "tiny_bert", "tiny_t5"], 3))
def test_curves_of_each_family_and_of_several_runs(backbone: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        typed = (*FAST, CURVE, f"backbone={backbone}", f"seed={seed}", "task_order.base.train=16")
        assert run_command(tiny(tmp_path, *typed, "task_order.incremental.train=8")) == 0
    folders = [path.parent for path in sorted(tmp_path.rglob("summary.json"))]
    run = read_run(folders[0])
    found = course(run)
    assert found is not None and found.places.tolist() == [1, 2, 3, 4, 5, 6] and found.ends == [2, 4, 6]
    assert found.within[2:4] == [("kettles", 1.0), ("kettles", 2.0)]
    np.testing.assert_array_equal(found.scores[[1, 3, 5]], np.where(np.tri(3) > 0, run.rows[1:], np.nan))
    kept = lines(folders[0], "epoch")[1]["epoch_scores"]
    assert found.scores[2].tolist()[:2] == [kept["base"], kept["kettles"]] and np.isnan(found.scores[2, 2])
    assert found.mean[2] == np.mean([kept["base"], kept["kettles"]])
    text = words(folders[0] / "report.html")
    assert "Every epoch" in text and (folders[0] / "plots" / "epochs.png").is_file()
    assert run_command(["report", str(tmp_path)]) == 0
    assert "Every epoch over" in words(tmp_path / "report.html")


def test_a_plan_counts_them(tmp_path: Path) -> None:
    def curves(*options: str) -> list[tuple[int, int]]:
        from transformers import AutoModelForSequenceClassification, BertConfig

        from cl_runner.build import build_method
        from cl_runner.data.task import build_tasks

        config = tiny_config(tmp_path, "method=seq_ft", "training.base.epochs=3", *options)
        tasks = build_tasks(config.task_order, config.task)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        model = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=9, **sizes))
        numbers = task_numbers(config, ask(build_method(config.method), config, model), counts_of(config, tasks))
        return [task.curve for task in numbers]

    assert curves() == [(0, 0)] * 3
    # 20, 10 and 10 test examples.
    assert curves(CURVE) == [(2, 40), (1, 30), (1, 40)]
    assert curves(CURVE, *HELD_OUT) == [(3, 60), (2, 60), (2, 80)]
    assert curves(CURVE, "training.max_steps=7") == [(1, 20), (1, 30), (1, 40)]
    assert curves(CURVE, "task_order=[reviews,single_task]")[1:2] == [(1, 10)]


def test_what_a_run_is_called_and_what_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compose(tiny(tmp_path)).hash == compose(tiny(tmp_path, "evaluation.every_epoch=false")).hash
    resolved = dict(compose(tiny(tmp_path)).resolved)
    resolved["evaluation"] = {key: value for key, value in resolved["evaluation"].items() if key != "every_epoch"}
    from cl_runner.identity import config_hash

    assert config_hash(resolved) == compose(tiny(tmp_path)).hash, "as before there was such an option"
    assert compose(tiny(tmp_path, CURVE)).hash != compose(tiny(tmp_path)).hash
    assert run_command(tiny(tmp_path, CURVE, "reuse=prefix")) == 2
    assert "Type: reuse=none (or evaluation.every_epoch=false)" in capsys.readouterr().err
