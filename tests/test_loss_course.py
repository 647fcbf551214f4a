"""Whether a task's loss moved: the rule, and what is said where it did not. test_replay.py has a run that says it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from run_folders import make_run, words
from scipy.stats import kendalltau, norm
from tiny import tiny_config

from cl_runner.build import build_method
from cl_runner.config import StageChange
from cl_runner.data.task import Task
from cl_runner.loss_course import _trend, course, courses
from cl_runner.rate_advice import loss_note
from cl_runner.report.page import write_run_report
from cl_runner.trained import Trained


def noisy(level: float, slope: float, steps: int, noise: float = 0.1, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [(level + slope * step) * (1 + draw.gauss(0, noise)) for step in range(steps)]


@pytest.mark.parametrize(
    ("losses", "went"),
    [
        (noisy(2, 0, 26), "nowhere"),
        (noisy(2, 0, 3000), "nowhere"),
        (noisy(2, -0.02, 26), "down"),
        ([2 - 0.001 * step for step in range(26)], "down"),  # slowly, but without noise
        ([2.0, *noisy(1, 0, 30)], "down"),  # at once
        ([2.0, 2.1, 1.9, 1.4, 1.5, 1.45], "down"),  # few steps, a clear fall
        ([2.0, 2.1, 1.9, 2.0, 1.95, 2.05], "nowhere"),
        (noisy(2, 0.03, 26), "up"),
        (noisy(2, 0, 5), None),
        (noisy(0.01, 0, 26), None),  # known from the start
    ],
)
def test_the_rule(losses: list[float], went: str | None) -> None:
    assert course(losses).went == went


def test_of_losses_that_do_not_move_hardly_one_in_ten_is_said_to_fall() -> None:
    found = [course(noisy(2, 0, 26, seed=seed)).went for seed in range(200)]
    assert found.count("down") < 20 and not found.count("up")


def test_the_trend_is_kendalls() -> None:
    losses = noisy(2, -0.004, 60)
    ours = norm.cdf(_trend(pytest.importorskip("numpy").array(losses)))
    assert ours == pytest.approx(kendalltau(range(60), losses, alternative="less").pvalue, abs=0.01)


def test_steps_times_rate_is_the_sum_over_all_steps() -> None:
    lines: list[dict[str, Any]] = [{"kind": "evaluation", "after": "start"}]
    for task, rates in (("a", (1e-3, 5e-4)), ("b", (1e-4,))):
        lines += [
            {"kind": "train", "task": task, "loss": 1.0 + rate, "learning_rate": rate, "optimizer_steps": 2}
            for rate in rates
        ]
    found = courses(lines)
    assert found["a"] == {
        "optimizer_steps": 4,
        "learning_rate": 1e-3,
        "steps_times_rate": pytest.approx(3e-3),
        "loss_first": 1.001,
        "loss_last": 1.0005,
        "loss_went": None,
    }
    assert found["b"]["steps_times_rate"] == pytest.approx(2e-4)


def said(tmp_path: Path, method: str, what: Trained, went: str | None = "nowhere", **given: Any) -> str | None:
    """What is said of the second task of a method, trained with 26 steps."""
    nodes = NODES.get(method) or NODES.setdefault(method, dict(tiny_config(tmp_path, f"method={method}").method))
    task = Task(1, "kettles", (), (), (), (), {}, 1, training=given.get("training"))
    rate = given.get("rate", 1e-5)
    detail = {"steps": 26, "steps_times_rate": 26 * rate, "loss_first": 2.0, "loss_last": 1.99, "loss_went": went}
    return loss_note(detail, task, build_method(nodes), what, rate, nodes)


NODES: dict[str, Any] = {}  # of methods, once composed
SELECTED = Trained(selected={"weight": [0]})  # type: ignore[dict-item]


def test_what_is_said(tmp_path: Path) -> None:
    assert said(tmp_path, "piece_s", SELECTED) == (
        "Note: the loss of kettles did not move: 2 in the first third of 26 steps, 1.99 in the last, "
        "at a rate of 1e-05 (steps x rate 0.00026). Unless the task was known before, "
        "type method.piece.learning_rate=0.0001, or train more steps"
    )
    assert said(tmp_path, "piece_s", SELECTED, "down") is said(tmp_path, "piece_s", SELECTED, None) is None
    # As far as a weight is large: not the rate.
    far = said(tmp_path, "pe", Trained(selected=SELECTED.selected, learning_rate=1e-2), rate=1e-2)
    assert far is not None and far.endswith("type method.pe.fraction=0.05")
    near = said(tmp_path, "pe", Trained(selected=SELECTED.selected, learning_rate=1e-4), rate=1e-4)
    assert near is not None and "type method.pe.learning_rate=0.001, or train more steps" in near
    assert near.endswith(", or a smaller method.ewc.strength or method.lwf.strength")
    # All weights: the training's rate, of later tasks; where the order has one, that.
    dense = said(tmp_path, "seq_ft", Trained())
    assert dense is not None and "type training.incremental.learning_rate=3e-05" in dense
    ordered = said(tmp_path, "seq_ft", Trained(), training=StageChange(learning_rate=1e-5))
    assert ordered is not None and "set learning_rate to about 3e-05 where the order has this task" in ordered
    assert "method.parts.learning_rate=0.0001" in str(said(tmp_path, "bitfit", Trained(names=["bias"])))
    rose = said(tmp_path, "seq_ft", Trained(), "up", rate=1e-2)
    assert rose is not None and "rose" in rose and "type training.incremental.learning_rate=0.003" in rose
    # Nothing trained, so that there are no losses.
    task, method = Task(1, "kettles", (), (), (), (), {}, 1), build_method(NODES["seq_ft"])
    assert loss_note({"steps": 0, "steps_times_rate": 0.0}, task, method, Trained(names=()), 1e-5, {}) is None


def test_pages_of_earlier_versions_have_no_notes(tmp_path: Path) -> None:
    assert "did not move" not in words(write_run_report(make_run(tmp_path, "pe"))).partition("Storage")[0]
