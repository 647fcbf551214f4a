"""What a task changed of the answers, by hand, and the logits that answers were chosen by, against plain passes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_learner

from cl_runner.families.base import Answering, Prediction, chosen_by
from cl_runner.outputs import changes, record, text


def answers(*found: tuple[str, list[float]]) -> list[Prediction]:
    return [Prediction(said, None, chosen_by(torch.tensor([logits]))[0]) for said, logits in found]


def test_what_changed_is_counted_of_the_own_test_set_and_of_all() -> None:
    before = {
        "a": record(answers(("good", [1.0, -math.inf]), ("bad", [0.5, 2.0]))),
        "b": record(answers(("good", [3.0, 1.0]))),
    }
    after = {
        "a": record(answers(("good", [1.25, -math.inf]), ("good", [0.5, -1.0]))),
        "b": record(answers(("good", [3.0, 1.5]))),
        "c": record(answers(("bad", [0.0, 0.0]))),  # asked for the first time
    }
    found = changes(before, after, "b")
    assert found == {
        "own": {"examples": 1, "changed": 0, "largest_logit_change": 0.5},
        "all": {"examples": 3, "changed": 1, "largest_logit_change": 3.0},
    }
    assert text(found, "b") == "b: answers changed: 0 of 1 of its own, 1 of 3 in all; largest change of a logit 3"
    assert changes(before, after, "c").keys() == {"all"}
    assert changes({}, after, "a") == {} and "cannot be compared" in text({}, "a")


def test_a_method_that_predicts_without_logits_has_answers_alone() -> None:
    before, after = ({"a": record([Prediction(said, None)])} for said in ("x", "y"))
    assert changes(before, after, "a")["own"] == {"examples": 1, "changed": 1, "largest_logit_change": None}


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@torch.no_grad()
def test_logits_are_those_of_a_plain_pass(family: str, tmp_path: Path) -> None:
    learner, _, tasks = tiny_learner(tiny_config(tmp_path, "method=seq_ft", f"backbone=tiny_{family}"))
    learner.model.eval()
    examples = tasks[0].test[:3]
    found = learner.answer(learner.collate(examples, answers=False), Answering(2))
    output = learner.forward(learner.collate(examples))
    first = [int((output.rows == row).nonzero()[0]) for row in range(3)]  # of an answer's tokens the first
    expected = output.logits[first] if family == "bert" else output.logits[first].amax(-1, keepdim=True)
    got = np.stack([np.frombuffer(prediction.logits, np.float32) for prediction in found])
    np.testing.assert_allclose(got, expected, atol=1e-5)
