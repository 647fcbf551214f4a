"""Training until a budget is spent: steps and tokens exactly, also after an interruption, epochs as often as needed."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import TINY, Losses, tiny_config, tiny_learner, weights_of

from cl_runner.budget import course_of
from cl_runner.compose import compose
from cl_runner.config import Budget
from cl_runner.data.task import Task
from cl_runner.identity import config_hash
from cl_runner.learn import learn_task
from cl_runner.planning.tasks import _candidates, _passed
from cl_runner.train import Progress

NONE: dict[str, Any] = {"steps": None, "tokens": None, "seconds": None, "flops": None}


class Stops(Losses):
    """Stands for an interruption after a step, of which it keeps what a checkpoint would."""

    def __init__(self, after: int | None = None, at: Callable[[], Any] | None = None):
        super().__init__()
        self.after, self.at = after, at
        self.kept: Any = None
        self.steps: list[tuple[int, int, bool]] = []

    def on_step(self, task: Task, progress: Progress, numbers: dict[str, float]) -> None:
        super().on_step(task, progress, numbers)
        self.steps.append((progress.step, progress.steps, progress.done))
        if progress.step == self.after:
            assert self.at is not None
            self.kept = copy.deepcopy((progress.state_dict(), self.at()))
            raise InterruptedError


def trained(root: Path, *more: str, flops: float | None = None) -> tuple[Stops, dict[str, torch.Tensor]]:
    """The base task, learned under these options: what was said of its steps, and the weights."""
    config = tiny_config(root, "method=seq_ft", *more)
    learner, method, tasks = tiny_learner(config)
    watch = Stops()
    learn_task(learner, method, tasks[0], config.training, watch, flops_per_token=flops)
    return watch, weights_of(learner)


def test_as_many_steps_as_the_epochs_have_is_the_same_training(tmp_path: Path) -> None:
    plain, weights = trained(tmp_path)
    assert len(plain.losses) == 12 and "budget_spent" not in plain.numbers[0]  # 2 epochs of 48 examples by 8
    budget, same = trained(tmp_path, "training.budget.steps=12")
    assert budget.losses == plain.losses and budget.numbers[-1]["budget_spent"] == 12
    assert all(torch.equal(same[name], weights[name]) for name in weights)


def test_epochs_come_again_in_other_orders(tmp_path: Path) -> None:
    watch, _ = trained(tmp_path, "training.budget.steps=15", "training.base.epochs=1", "training.schedule=constant")
    assert watch.steps[0] == (1, 15, False) and watch.steps[-1] == (15, 15, True)
    assert [numbers["epoch"] for numbers in watch.numbers[5:13:6]] == [1.0, 2.0]
    whole, _ = trained(tmp_path, "training.base.epochs=3", "training.schedule=constant", "training.max_steps=15")
    # The same orders and seeds as with three epochs; warm-ups are a share of all steps, 15 in both.
    assert watch.losses == whole.losses


@pytest.mark.parametrize(("kind", "unit"), [("tokens", 1.0), ("flops", 2.5)])
def test_the_step_that_reaches_the_budget_is_the_last(kind: str, unit: float, tmp_path: Path) -> None:
    asked = "training.budget.tokens=2000" if kind == "tokens" else f"training.budget.flops={2000 * unit}"
    watch, _ = trained(tmp_path, asked, "training.base.epochs=1", flops=unit)
    tokens = [int(numbers["tokens"]) for numbers in watch.numbers]
    assert sum(tokens[:-1]) < 2000 <= sum(tokens) and len(tokens) > 6
    assert watch.numbers[-1]["budget_spent"] == pytest.approx(unit * sum(tokens))
    assert watch.steps[-1] == (len(tokens), len(tokens), True)
    assert not any(done for _, _, done in watch.steps[:-1])
    rates = [numbers["learning_rate"] for numbers in watch.numbers]
    peak = rates.index(max(rates))
    assert 0 < peak < len(rates) - 2 and rates[peak:] == sorted(rates[peak:], reverse=True) and rates[-1] > 0
    # Linear in what was spent, not in steps: after all but the last step.
    assert rates[-1] / max(rates) == pytest.approx((1 - sum(tokens[:-1]) / 2000) / 0.9, rel=0.2)


def test_an_interrupted_budget_ends_with_the_same_bits(tmp_path: Path) -> None:
    options = ("training.budget.tokens=2000", "training.base.epochs=1")
    whole, weights = trained(tmp_path, *options)
    config = tiny_config(tmp_path, "method=seq_ft", *options)
    learner, method, tasks = tiny_learner(config)
    stopped = Stops(8, lambda: weights_of(learner))  # in the second round
    with pytest.raises(InterruptedError):
        learn_task(learner, method, tasks[0], config.training, stopped)
    state, there = stopped.kept
    again, method, tasks = tiny_learner(config)
    again.put(there)
    rest = Stops()
    learn_task(again, method, tasks[0], config.training, rest, resume=state, fresh=False)
    assert stopped.losses + rest.losses == whole.losses
    assert all(torch.equal(weights_of(again)[name], weights[name]) for name in weights)


def test_seconds_are_those_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0.0, 0.01)
    monkeypatch.setattr("cl_runner.tracking.clock.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    config = tiny_config(tmp_path, "method=seq_ft", "training.budget.seconds=1.0")
    learner, method, tasks = tiny_learner(config)
    learner.clock.current = 0
    learner.clock.tasks[0] = {"importance": 0.6, "evaluate": 99.0}  # what was done for it before counts, asking not
    watch = Stops()
    learn_task(learner, method, tasks[0], config.training, watch)
    spent = [numbers["budget_spent"] for numbers in watch.numbers]
    assert spent == sorted(spent) and spent[0] > 0.6 and spent[-1] >= 1.0
    assert all(value < 1.0 for value in spent[:-1]) and watch.steps[-1][2]
    learner.clock.current = 1
    learner.clock.tasks[1] = {"importance": 1.5}
    rest = Stops()
    learn_task(learner, method, tasks[1], config.training, rest)
    assert rest.losses == []  # nothing is left for training


def test_nothing_is_repeated_where_there_is_nothing() -> None:
    budget = Budget(**{**NONE, "tokens": 100})
    assert course_of(budget, 0, 0, None).over(0.0)
    assert course_of(Budget(**NONE), 5, 50, None).over(5)
    with pytest.raises(ValueError, match=r"there is no plan of this.*training\.budget\.tokens"):
        course_of(Budget(**{**NONE, "flops": 1e6}), 5, 50, None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.budget.steps=3", "training.budget.tokens=5"], r"counted in one of them. Type: training.budget"),
        (["training.budget.steps=3", "training.max_steps=5"], r"Type: training\.max_steps=null"),
        (["training.budget.steps=0"], r"training\.budget\.steps"),
        (["training.budget.second=3"], r"training\.budget\.seconds"),
        (["training.budget=tokens"], r"training\.budget"),
    ],
)
def test_budgets_that_say_nothing_clear_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose([*TINY, *overrides])


def test_a_budget_is_part_of_a_run_and_none_leaves_it_what_it_was() -> None:
    request = compose([*TINY])
    older = json.loads(json.dumps(request.resolved))
    del older["training"]["budget"], older["backbone"]["gguf"], older["backbone"]["head"]
    for key in ("answers_until", "balanced", "fixed"):
        del older["task_order"][key]
    assert config_hash(older) == config_hash(request.resolved)
    assert compose([*TINY, "training.budget.steps=3"]).hash != request.hash


def test_plans_count_repeated_epochs() -> None:
    # Epochs of 10 and 7 examples by 4: 3 + 2 batches, of which the last ones hold 2 and 3.
    epochs = [10, 7]
    assert [_passed(epochs, 4, steps) for steps in range(13)] == [0, 4, 8, 10, 14, 17, 21, 25, 27, 31, 34, 38, 42]
    assert [_candidates(epochs, 4, steps, 0) for steps in range(11)] == [0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4]
