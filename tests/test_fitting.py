"""A run that does not fit sets what changes memory and no result by itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import EVERY_FAMILY, run_command, tiny, tiny_config, tiny_learner, without_report

from cl_runner.build import prepare_hardware, recompute_activations
from cl_runner.compose import compose
from cl_runner.identity import config_hash
from cl_runner.importance import importance
from cl_runner.planning.command import planned_run
from cl_runner.planning.fitting import applied, drops_out, fitted, options_of
from cl_runner.planning.numbers import skeleton
from cl_runner.sparse.measured import Measured

LLAMA = ("backbone=tiny_llama", "method=piece_s", "task_order=reviews")


def test_only_what_changes_no_result_is_set_and_typed_values_stay(tmp_path: Path) -> None:
    request = compose(tiny(tmp_path, *LLAMA, "importance.batch_size=16"))
    planner, s, _ = planned_run(request)
    peaks = planner.memory(s)
    assert options_of(request, planner, s) == {}, "it fits"
    least = fitted(planner, s, 1, (), passes=True)[0]
    assert set(least) == {
        "importance.batch_size",
        "hardware.gradient_checkpointing",
        "training.base.micro_batch",
        "training.incremental.micro_batch",
        "evaluation.batch_size",
    }
    assert "importance.batch_size" not in fitted(planner, s, 1, {"importance.batch_size"}, passes=True)[0]
    assert not any(key.endswith("micro_batch") for key in fitted(planner, s, 1, (), passes=False)[0])
    # The least that does: what one phase needs is not asked of another one.
    largest = max(peaks, key=lambda phase: peaks[phase])
    options, too_large = fitted(planner, s, max(size for phase, size in peaks.items() if phase != largest), (), True)
    assert not too_large and options
    changed = applied(request, options).config
    assert changed.model_dump() != request.config.model_dump() and changed.method == request.config.method


@pytest.mark.parametrize(("backbone", "draws"), [("bert", True), ("llama", False), ("gpt2", True)])
def test_a_model_with_dropout_keeps_its_passes(backbone: str, draws: bool, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, f"backbone=tiny_{backbone}", "task_order=reviews")
    assert drops_out(skeleton(config.backbone, 2)) is draws


def test_a_run_that_is_made_to_fit_learns_the_same_in_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = tiny(tmp_path / "whole", *LLAMA)
    with without_report():
        assert run_command(line) == 0
    planner, s, _ = planned_run(compose(line))
    peaks = planner.memory(s)
    room = (min(peaks.values()) + max(peaks.values())) // 2
    monkeypatch.setattr("cl_runner.planning.fitting.free_bytes", lambda device, most: room)
    line = tiny(tmp_path / "fitted", *LLAMA)
    capsys.readouterr()
    with without_report():
        assert run_command(line) == 0
    folders = [compose(tiny(tmp_path / name, *LLAMA)).folder for name in ("whole", "fitted")]
    assert folders[0].name == folders[1].name
    told = json.loads((folders[1] / "plan.json").read_text())["fitted"]
    assert told and f"{next(iter(told))}=" in capsys.readouterr().out
    losses = [
        [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
        for folder in folders
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert (folders[0] / "accuracy.csv").read_text() == (folders[1] / "accuracy.csv").read_text()
    assert (folders[0] / "config.yaml").read_text() == (folders[1] / "config.yaml").read_text().replace(
        str(tmp_path / "fitted"), str(tmp_path / "whole")
    )


def test_no_run_is_made_to_fit_that_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = compose(tiny(tmp_path, *LLAMA, "hardware.fit=false"))
    planner, s, _ = planned_run(request)
    monkeypatch.setattr("cl_runner.planning.fitting.free_bytes", lambda device, most: 1)
    assert options_of(request, planner, s) == {}


def test_memory_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    hashes = {
        config_hash(compose(tiny(tmp_path, *more)).resolved)
        for more in ((), ("hardware.memory_gb=24",), ("hardware.fit=false",), ("hardware=cpu",), ("hardware=auto",))
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("backbone", ["llama", "gpt2", "bert", "t5"])
def test_importance_without_activations_is_the_same_bit_for_bit(backbone: str, tmp_path: Path) -> None:
    """Layers that compute again in backward do so in the importance pass too, without dropout."""
    found = []
    for recompute in (False, True):
        config = tiny_config(tmp_path, f"backbone=tiny_{backbone}", "method=pe", "task_order=reviews")
        learner, _, tasks = tiny_learner(config)
        if recompute:
            recompute_activations(learner.model)  # type: ignore[arg-type]
        options = config.importance.model_copy(update={"batch_size": 1})
        learner.measured = Measured(options)
        found.append(importance(learner, tasks[0].train[:6], gradient=True))
    assert found[0].gradient is not None and found[1].gradient is not None
    for name, total in found[0].fisher.items():
        assert torch.equal(total, found[1].fisher[name]), name
        assert torch.equal(found[0].gradient[name], found[1].gradient[name]), name


def test_importance_of_layers_that_recompute_keeps_fewer_activations(tmp_path: Path) -> None:
    """What the pass of one example keeps between forward and backward, in elements of saved tensors."""
    kept = []
    for recompute in (False, True):
        config = tiny_config(tmp_path, "backbone=tiny_llama", "method=pe", "task_order=reviews")
        learner, _, tasks = tiny_learner(config)
        if recompute:
            recompute_activations(learner.model)  # type: ignore[arg-type]
        learner.measured = Measured(config.importance.model_copy(update={"batch_size": 1}))
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            importance(learner, tasks[0].train[:1])
        kept.append(sum(sizes))
    assert kept[1] < kept[0]


def test_a_gpu_gives_no_more_than_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 141 GB on the card 20, with what CUDA takes."""
    given: list[float] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=141_000_000_000))
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", given.append)
    for overrides in ((), ("hardware.memory_gb=20",), ("hardware.memory_gb=200",)):
        prepare_hardware(compose(["hardware=auto", "hardware.deterministic=false", *overrides]).config.hardware)
    assert given == [pytest.approx(19.5 / 141), 1.0]


@pytest.mark.skipif(not EVERY_FAMILY, reason="prices a large model: CL_RUNNER_EVERY_FAMILY=1")
def test_the_line_of_the_first_page_fits_twenty_gigabytes(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "method=piece_s", "backbone=llama2_7b", "hardware=gpu", "hardware.memory_gb=20"]
    assert run_command(line) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Smallest GPU: 20 GB" in said and "To fit 19.5 GB: importance.batch_size=1" in said
    assert "importance.passes=16" in said
