"""The only evaluation loop: the union of test sets, in one pass sorted by length, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Batch, Prediction
from cl_runner.learner import Learner
from cl_runner.methods.base import Method


def evaluation_examples(task: Task, split: Literal["test", "validation"]) -> tuple[Example, ...]:
    """The examples a task is scored on."""
    return task.test if split == "test" else task.validation


@torch.no_grad()
def evaluate(
    learner: Learner,
    method: Method,
    tasks: Sequence[Task],
    split: Literal["test", "validation"],
    batch_size: int,
) -> dict[str, list[Prediction]]:
    """Predictions for every example of every task, in the order of the examples.

    All tasks are evaluated together, sorted by length: little padding, and the cost of one pass.
    """
    learner.model.eval()
    union = [example for task in tasks for example in evaluation_examples(task, split)]
    found: list[Prediction | None] = [None] * len(union)
    done = 0

    def answer(batch: Batch) -> list[Prediction]:
        return learner.family.predict(learner.forward(batch))

    for batch in learner.sorted_batches(union, batch_size):
        positions = batch["index"].tolist()
        for position, prediction in zip(positions, method.predict(learner, batch, answer), strict=True):
            found[position] = prediction
        done += len(positions)
        learner.progress("evaluate", done, len(union))

    predictions, start = {}, 0
    for task in tasks:
        end = start + len(evaluation_examples(task, split))
        predictions[task.name] = [p for p in found[start:end] if p is not None]
        start = end
    return predictions


def accuracy(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """Percent of examples whose answer is predicted exactly."""
    hits = sum(e.answer == p.text for e, p in zip(examples, predictions, strict=True))
    return 100.0 * hits / len(examples)
