"""Replay: a share of every old task's examples is learned again (TRACE, arXiv:2310.06762; naive replay of IDBR)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cl_runner.batch import Part
from cl_runner.config import Count, Fraction
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.methods.base import Method
from cl_runner.methods.memory import own_examples

if TYPE_CHECKING:
    from cl_runner.learner import Learner


@dataclass
class Replay(Method):
    """`mix`: the kept examples join every epoch. `extra_epoch`: one more epoch, over them alone, ends the task (TRACE).
    `periodic`: every so many batches an optimizer step on a batch of each old task (IDBR, naive replay).
    """

    share: Fraction
    kept: Literal["random", "first"]
    way: Literal["mix", "extra_epoch", "periodic"]
    every: Count
    batch_size: Count

    protects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.memory: list[list[Example]] = []  # of each task before the one under way

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        before = learner.tasks[: task.index] if learner.has_old_tasks(task) else []
        self.memory = [self._kept(own_examples(one), learner.seed_of("replay", one.index)) for one in before]
        old = [example for kept in self.memory for example in kept]
        if not old or self.way == "periodic":
            return epochs
        return [*epochs, old] if self.way == "extra_epoch" else [[*epoch, *old] for epoch in epochs]

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        if self.way != "periodic" or (step + 1) % self.every:
            return steps
        chance = random.Random(learner.seed_of("replay", task.index, step))
        drawn = [chance.choices(kept, k=self.batch_size) for kept in self.memory]
        return [*steps, *([Part(examples, kind="replay")] for examples in drawn)]

    def _kept(self, examples: Sequence[Example], seed: int) -> list[Example]:
        count = max(1, round(self.share * len(examples)))
        if self.kept == "first":
            return list(examples[:count])
        return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), count))]
