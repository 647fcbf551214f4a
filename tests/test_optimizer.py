"""Optimizers and their options against plain formulas; rates by name; stopping at the best epoch; epochs by task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Death, Losses, run_command, tiny, tiny_config, tiny_learner
from torch import nn

from cl_runner.config import Training
from cl_runner.learn import learn_task
from cl_runner.optimizer import build_optimizer, step

STEPS = 6


def training(tmp_path: Path, *overrides: str) -> Training:
    return tiny_config(tmp_path, *(f"training.{override}" for override in overrides)).training


def moved(
    options: Training, rate: float, rates: dict[str, float] | None = None, name: Any = None
) -> dict[str, torch.Tensor]:
    """Two tensors after some steps on gradients of a seed, in fp64."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        "layer.weight": nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64)),
        "classifier.bias": nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64)),
    }
    optimizer = build_optimizer(weights, options, rate, rates, name)
    for number in range(STEPS):
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        step(optimizer, 1.0 - number / 10)
    return {key: weight.detach() for key, weight in weights.items()}


def by_hand(update: Any, decay: float, rate: float = 1e-2) -> dict[str, torch.Tensor]:
    """The same with `update(state, gradient, number)` as the direction; decoupled decay, none on the bias."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        "layer.weight": torch.randn(3, 2, generator=generator, dtype=torch.float64),
        "classifier.bias": torch.randn(3, generator=generator, dtype=torch.float64),
    }
    states: dict[str, dict[str, torch.Tensor]] = {key: {} for key in weights}
    for number in range(STEPS):
        now = rate * (1.0 - number / 10)
        for key, weight in weights.items():
            gradient = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            if key == "layer.weight":
                weight *= 1 - now * decay
            weight -= now * update(states[key], gradient, number + 1)
    return weights


def adam(corrected: bool, epsilon: float) -> Any:
    def update(state: dict[str, torch.Tensor], gradient: torch.Tensor, number: int) -> torch.Tensor:
        first = state["m"] = 0.9 * state.get("m", torch.zeros_like(gradient)) + 0.1 * gradient
        second = state["v"] = 0.99 * state.get("v", torch.zeros_like(gradient)) + 0.01 * gradient**2
        if corrected:
            first, second = first / (1 - 0.9**number), second / (1 - 0.99**number)
        return first / (second.sqrt() + epsilon)

    return update


@pytest.mark.parametrize("corrected", [True, False])
def test_adamw_with_and_without_bias_correction(corrected: bool, tmp_path: Path) -> None:
    """Without: m / (sqrt(v) + eps), as in UER and the first BERT."""
    options = training(
        tmp_path,
        "betas=[0.9,0.99]",
        "epsilon=1e-3",
        f"bias_correction={str(corrected).lower()}",
        "weight_decay=0.3",
    )
    found, wanted = moved(options, 1e-2), by_hand(adam(corrected, 1e-3), 0.3)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)


def test_sgd_with_momentum(tmp_path: Path) -> None:
    def update(state: dict[str, torch.Tensor], gradient: torch.Tensor, number: int) -> torch.Tensor:
        state["b"] = 0.5 * state["b"] + gradient if "b" in state else gradient
        return state["b"]

    options = training(tmp_path, "optimizer=sgd", "momentum=0.5", "weight_decay=0.0")
    found, wanted = moved(options, 1e-2), by_hand(update, 0.0)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)


def test_adafactor_is_the_one_of_lfpt5(tmp_path: Path) -> None:
    """transformers' with a rate of its own: the first step divides by the factored root of the squares, clipped."""
    options = training(tmp_path, "optimizer=adafactor", "weight_decay=0.0")
    weight = nn.Parameter(torch.zeros(4, 3))
    gradient = torch.arange(1.0, 13.0).view(4, 3)
    weight.grad = gradient.clone()
    step(build_optimizer({"layer.weight": weight}, options, 0.5), 1.0)
    squares = gradient**2 + 1e-30
    root = (squares.mean(1, keepdim=True) * squares.mean(0, keepdim=True) / squares.mean()).sqrt()
    update = gradient / root
    update = update / max(1.0, float(update.square().mean().sqrt()))
    torch.testing.assert_close(weight.detach(), -0.5 * update, rtol=1e-4, atol=1e-6)


def test_rates_by_name_the_users_before_the_methods(tmp_path: Path) -> None:
    plain = training(tmp_path, "optimizer=sgd", "weight_decay=0.0")
    own = training(tmp_path, "optimizer=sgd", "weight_decay=0.0", "rates={classifier.*: 1.0}")
    assert own.rates == {"classifier.*": 1.0}
    start = moved(plain, 1e-9)
    slow, fast = moved(plain, 1e-2, {"classifier.*": 5.0}), moved(own, 1e-2, {"classifier.*": 5.0})
    assert torch.equal(slow["layer.weight"], fast["layer.weight"])
    ratio = (slow["classifier.bias"] - start["classifier.bias"]) / (fast["classifier.bias"] - start["classifier.bias"])
    torch.testing.assert_close(ratio, torch.full_like(ratio, 5.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        ("training.optimizer=adafactor",),
        ("training.optimizer=sgd", "training.momentum=0.9"),
        ("training.bias_correction=false", "training.epsilon=1e-6", "training.clip=null"),
        ("training.select=best_validation", "task_order.base.validation=10", "task_order.incremental.validation=6"),
    ],
    ids=lambda options: options[0],
)
def test_a_run_ends_with_the_same_bits_after_an_interruption(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cl_runner import checkpoint

    monkeypatch.setattr("cl_runner.report.page.write_run_report", lambda folder: folder / "report.html")

    def run(root: str) -> dict[str, Any]:
        command = tiny(tmp_path / root, "method=seq_ft", *options, "training.base.learning_rate=1e-3")
        assert run_command([*command, "checkpoint.every_seconds=0"]) == 0
        (path,) = (tmp_path / root).rglob("summary.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    whole = run("whole")
    real, calls = checkpoint.save, []

    def save(folder: Path, state: dict[str, Any]) -> None:
        real(folder, state)
        calls.append(state["stage"])
        if len(calls) == 9:  # in the middle of the base task
            assert state["stage"] == "training"
            raise Death

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save)
        with pytest.raises(Death):
            run("cut")
    cut = run("cut")
    assert cut["weights_sha256"] == whole["weights_sha256"]
    assert cut["metrics"] == whole["metrics"]


class Scored(Losses):
    """Validation scores as they are given."""

    def __init__(self, scores: list[float]):
        super().__init__()
        self.scores = scores
        self.seen: list[dict[str, torch.Tensor]] = []
        self.learner: Any = None

    def validate(self, task: Any) -> float:
        self.seen.append(self.learner.weights())
        return self.scores[len(self.seen) - 1]


def test_the_best_epoch_stays_the_first_of_equals(tmp_path: Path) -> None:
    options = ("method=piece_s", "training.select=best_validation", "training.incremental.epochs=4")
    config = tiny_config(tmp_path, *options, "training.base.epochs=1")
    learner, method, tasks = tiny_learner(config)
    base, later = Scored([1.0]), Scored([20.0, 50.0, 50.0, 30.0])
    for task, watch in ((tasks[0], base), (tasks[1], later)):
        watch.learner = learner
        learn_task(learner, method, task, config.training, watch)
    now = learner.weights()
    assert all(torch.equal(now[name], later.seen[1][name]) for name in now)
    assert any(not torch.equal(now[name], later.seen[2][name]) for name in now)


def test_selection_costs_are_in_the_summary(tmp_path: Path) -> None:
    options = (
        "training.select=best_validation",
        "task_order.base.validation=10",
        "task_order.incremental.validation=6",
    )
    assert run_command(tiny(tmp_path, "method=seq_ft", *options)) == 0
    (path,) = tmp_path.rglob("summary.json")
    summary = json.loads(path.read_text())
    assert [task["selected_epoch"]["evaluations"] for task in summary["tasks_detail"]] == [2, 2, 2]
    assert all(task["phases"]["select"] > 0 for task in summary["tasks_detail"])
    assert summary["tasks_detail"][1]["online_seconds"] >= summary["tasks_detail"][1]["phases"]["select"]


def test_the_selected_epoch_is_the_tasks_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told if the run dies after a task's last batch, and not of a later task in which nothing trains."""
    from cl_runner import checkpoint

    monkeypatch.setattr("cl_runner.report.page.write_run_report", lambda folder: folder / "report.html")
    held_out = ("task_order.base.validation=10", "task_order.incremental.validation=6")
    typed = tiny(tmp_path, "method=frozen", "training.select=best_validation", *held_out)
    real = checkpoint.save

    def save(folder: Path, state: dict[str, Any]) -> None:
        real(folder, state)
        if state["stage"] == "training" and state["training"]["step"] == 12:
            raise Death

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save)
        with pytest.raises(Death):
            run_command(typed)
    assert run_command(typed) == 0
    (path,) = tmp_path.rglob("summary.json")
    base, *later = json.loads(path.read_text())["tasks_detail"]
    assert base["selected_epoch"]["evaluations"] == 2 and base["selected_epoch"]["step"] in (6, 12)
    assert not any("selected_epoch" in task for task in later)


def test_epochs_rates_and_batches_by_task(tmp_path: Path) -> None:
    order = (
        "task_order.tasks=[{name: base, domains: [novels, films]}, "
        "{name: kettles, training: {epochs: 3, batch_size: 6}}, "
        "{name: software, training: {learning_rate: 0.25, micro_batch: 4}}]"
    )
    assert run_command(tiny(tmp_path, "method=seq_ft", order, "training.warmup=0.0")) == 0
    (path,) = tmp_path.rglob("metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines() if '"train"' in line]
    steps = {name: [line for line in lines if line["task"] == name] for name in ("base", "kettles", "software")}
    assert {name: len(found) for name, found in steps.items()} == {"base": 12, "kettles": 12, "software": 6}
    assert {line["examples"] for line in steps["kettles"]} == {6}
    assert steps["software"][0]["learning_rate"] == pytest.approx(0.25)
    assert steps["kettles"][0]["learning_rate"] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["task_order.tasks=[{name: kettles, training: {epoch: 3}}]"], "task_order.tasks.0.training.epoch"),
        (["training.rates={klassifier.*: 1e-3}"], r"no parameter's name fits 'klassifier.*Type: 'training\.rates="),
        (["training.bias_correction=false", "training.optimizer=sgd"], r"Type: training\.bias_correction=true"),
        (["training.momentum=0.9"], r"Type: training\.momentum=0"),
        (["training.select=best_validation"], r"Type: task_order\.base\.validation=100"),
        (["training.optimizer=adam"], "training.optimizer must be 'adamw', 'adafactor' or 'sgd'"),
    ],
)
def test_mistakes(options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert run_command(tiny(tmp_path, "method=seq_ft", *options)) == 2
    assert re.search(said, capsys.readouterr().err, re.DOTALL), said
