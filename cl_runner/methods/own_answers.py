"""Answers that the model writes itself while it learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cl_runner.data.example import Example
from cl_runner.families.base import Answering
from cl_runner.learner import Learner, derive_seed
from cl_runner.methods.teacher import without_dropout


def own_answers(learner: Learner, examples: Sequence[Example], how: Answering, size: int, seed: int) -> list[list[int]]:
    """Token ids of the model's answers at the current weights, without dropout; no other draw of chance changes.

    Args:
        size: prompts of one pass.
        seed: the same seed, weights and examples give the same answers.

    Returns:
        Of each example, up to the token that ends the answer, or all tokens there may be.
    """
    found: list[list[int]] = [[] for _ in examples]
    devices = [] if learner.device.type == "cpu" else [learner.device]
    with without_dropout(learner.model), torch.random.fork_rng(devices=devices):
        for number, positions in enumerate(learner.by_length(examples, size, answers=False)):
            torch.manual_seed(derive_seed(seed, number))
            batch = learner.collate([examples[i] for i in positions], answers=False)
            with learner.in_precision():
                rows = learner.family.write(learner.model, learner.method.before_forward(learner, batch), how)
            for position, row in zip(positions, rows, strict=True):
                found[position] = row
    return found
