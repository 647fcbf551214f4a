"""The loss on every task's answers: learning and forgetting where a small model's scores are all zero."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from cl_runner.batch import Output
from cl_runner.config import Count
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.digests import write
from cl_runner.learner import Learner
from cl_runner.needs import ProbePass
from cl_runner.probes.base import Probe, at_rest


@dataclass
class TaskLoss(Probe):
    """Mean of -log p over the tokens of a task's answers, their end included, in nats."""

    families: ClassVar[tuple[str, ...]] = ("classifier", "causal", "seq2seq", "image_text")
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats per token"
    split: Literal["test", "validation"]
    examples: Count | None
    batch_size: Count

    def passes(self, evaluated: Sequence[int]) -> Sequence[ProbePass]:
        """Every example is read with its answer; of a validation split as many as of the one that is evaluated."""
        texts = sum(number if self.examples is None else min(number, self.examples) for number in evaluated)
        return [ProbePass("task loss", texts, None, 0, self.batch_size)]

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """The loss of each task that has such examples; losses_<after>.json keeps that of each example.

        The file has task -> the mean over the tokens of each example's answer, in the order of the examples: what tells
        an answer that is no longer likely from one that is only no longer written (the report, "What is forgotten").
        """
        chosen = {task.name: self._of(task) for task in learner.tasks}
        everything = sum(len(examples) for examples in chosen.values())
        found, done = {}, 0
        kept: dict[str, list[float]] = {}
        with at_rest(learner.model):
            for name, examples in chosen.items():
                total, targets = 0.0, 0
                losses = [0.0] * len(examples)
                for positions in learner.by_length(examples, self.batch_size):
                    output = learner.forward(learner.collate([examples[i] for i in positions]))
                    total += output.loss.item() * len(output.targets)
                    targets += len(output.targets)
                    for position, loss in zip(positions, _of_each(output, len(positions)), strict=True):
                        losses[position] = loss
                    done += len(positions)
                    learner.progress("task loss", done, everything)
                if targets:
                    found[name], kept[name] = total / targets, losses
        write(folder / f"losses_{after}.json", json.dumps(kept))
        return found

    def _of(self, task: Task) -> Sequence[Example]:
        return (task.test if self.split == "test" else task.validation)[: self.examples]


def _of_each(output: Output, examples: int) -> list[float]:
    """The mean loss over the targets of each example of a batch."""
    losses = functional.cross_entropy(output.logits.float(), output.targets, reduction="none")
    sums = losses.new_zeros(examples).index_add(0, output.rows, losses)
    counts: Tensor = torch.bincount(output.rows, minlength=examples)
    return [float(each) for each in (sums / counts).tolist()]
