"""Out of memory: what it is, and what to type then."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from plans import TASKS, meta, setting
from tiny import TINY

from cl_runner.compose import compose
from cl_runner.planning.memory import advice, is_out_of_memory, smallest_change
from cl_runner.planning.planner import Planner
from cl_runner.planning.setting import Setting


def test_errors_that_mean_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    outer = ValueError("the step failed")
    outer.__cause__ = MemoryError()
    assert is_out_of_memory(outer)
    assert not is_out_of_memory(ValueError("out of luck"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(None)


class Formula(Planner):
    """Peaks by a formula in place of passes: gigabytes that grow with what the options say."""

    def __init__(self) -> None:
        super().__init__(lambda: meta("bert"), 0)

    def peak(self, s: Setting, phase: str) -> int:
        weights = 4 * s.dtype.itemsize
        if phase == "load":
            size = weights
        elif phase == "importance":
            size = (
                weights + s.importance_batch * s.max_length // 32 + (32 // s.passes if s.accumulate == "device" else 1)
            )
        elif phase == "evaluate":
            size = weights + s.evaluation_batch * s.max_length // 64
        else:
            size = weights + s.micro_batch[phase.split()[1]] * s.max_length // (128 if s.gradient_checkpointing else 32)
        return size * 10**9


@pytest.mark.parametrize(
    ("gigabytes", "changes", "expected"),
    [
        (64, {}, {}),
        (50, {}, {"importance.batch_size": "2"}),
        (40, {}, {"importance.batch_size": "1", "importance.passes": "2"}),
        (
            20,
            {},
            {
                "importance.batch_size": "1",
                "importance.passes": "16",
                "training.base.micro_batch": "4",
                "training.incremental.micro_batch": "4",
            },
        ),
        (64, {"micro_batch": {"base": 96, "incremental": 8}}, {"training.base.micro_batch": "48"}),
        (
            19,
            {"max_length": 128, "tasks": tuple(dataclasses.replace(task, measured=0) for task in TASKS)},
            {
                "hardware.gradient_checkpointing": "true",
                "training.base.micro_batch": "2",
                "training.incremental.micro_batch": "2",
                "evaluation.batch_size": "1",
            },
        ),
        (
            18,  # importance on a CPU fits with shorter texts only, and with those the rest needs less
            {"max_length": 128, "device": "cpu", "importance_batch": 1, "accumulate": "cpu"},
            {
                "hardware.gradient_checkpointing": "true",
                "backbone.max_length": "32",
                "evaluation.batch_size": "4",
            },
        ),
    ],
)
def test_smallest_change_of_options(gigabytes: int, changes: dict[str, Any], expected: dict[str, str]) -> None:
    s = setting(**{"device": "cuda", **changes})
    options, hopeless = smallest_change(Formula(), s, gigabytes * 10**9)
    assert (options, hopeless) == (expected, {})


def test_options_that_shorter_texts_make_needless_are_dropped() -> None:
    """Phases come in the order of the run: a smaller batch for importance, then shorter texts for training."""

    class Long(Formula):
        def peak(self, s: Setting, phase: str) -> int:
            if phase == "importance":
                return s.importance_batch * s.max_length
            return 10 * s.max_length if phase.startswith("train") else 0

    s = setting(device="cpu", importance_batch=4, max_length=64)
    options, hopeless = smallest_change(Long(), s, 200)
    assert not hopeless
    assert options["backbone.max_length"] == "16"
    assert "importance.batch_size" not in options


def test_advice_is_a_line_to_type() -> None:
    request = compose([*TINY, "method=pe", "importance.batch_size=4"])
    planner = Formula()
    text = advice(planner, setting(device="cuda"), 40 * 10**9, request.command_with)
    line = text.splitlines()[-1]
    assert line.startswith("python -m cl_runner ") and "importance.batch_size=1 importance.passes=2" in line
    assert "importance.batch_size=4" not in line and "method=pe" in line
    assert "the results stay" in text
    assert advice(planner, setting(), 60 * 10**9, request.command_with).startswith("It fits")
    shorter = advice(planner, setting(max_length=128), 50 * 10**9, request.command_with)
    assert "backbone.max_length changes the results" in shorter


def test_advice_after_a_failure_asks_for_less_than_the_plan_said() -> None:
    command = compose([*TINY, "method=pe"]).command_with
    # Importance needs 52: the next try must need at most 80 % of it, although there is room for more.
    text = advice(Formula(), setting(device="cuda"), 100 * 10**9, command, failed="importance")
    assert text.endswith("importance.batch_size=1 importance.passes=2")
    # Training needs 24, and 80 % of it is 19: a micro-batch of 2 needs 18.
    text = advice(Formula(), setting(device="cuda"), 100 * 10**9, command, failed="train incremental")
    assert text.endswith("method=pe training.incremental.micro_batch=2")
    # The phase is not known: the largest.
    text = advice(Formula(), setting(device="cuda"), 100 * 10**9, command, failed="checkpoint")
    assert text.endswith("importance.batch_size=1 importance.passes=2")


def test_advice_without_hope_says_by_how_much() -> None:
    s = setting(device="cuda", dtype=torch.bfloat16)
    text = advice(Formula(), s, 4 * 10**9, compose([*TINY, "method=pe"]).command_with)
    # The least that importance can need: weights of 8 and sums of one tensor of 1 GB, texts cut to 16.
    assert "importance fit: it needs 9 GB at least, 5 GB more than the 4 GB" in text
    assert f"at most about {4 / 9 * 0.156547:,.0f} M parameters" in text
