"""The loss on every task's answers: learning and forgetting where a small model's scores are all zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cl_runner.config import Count
from cl_runner.data.example import Example
from cl_runner.data.task import Task
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
        """The loss of each task that has such examples."""
        chosen = {task.name: self._of(task) for task in learner.tasks}
        everything = sum(len(examples) for examples in chosen.values())
        found, done = {}, 0
        with at_rest(learner.model):
            for name, examples in chosen.items():
                total, targets = 0.0, 0
                for positions in learner.by_length(examples, self.batch_size):
                    output = learner.forward(learner.collate([examples[i] for i in positions]))
                    total += output.loss.item() * len(output.targets)
                    targets += len(output.targets)
                    done += len(positions)
                    learner.progress("task loss", done, everything)
                if targets:
                    found[name] = total / targets
        return found

    def _of(self, task: Task) -> Sequence[Example]:
        return (task.test if self.split == "test" else task.validation)[: self.examples]
