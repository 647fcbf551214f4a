"""Replay: a share of every old task's examples is learned again (TRACE, arXiv:2310.06762; naive replay of IDBR)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

from torch import nn

from cl_runner.batch import Part
from cl_runner.config import Count, Fraction, Sharded
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.memory import kept_examples, own_examples
from cl_runner.needs import Added, Needs, Outline
from cl_runner.read_if import ReadIf
from cl_runner.said import Said

Item = TypeVar("Item")


@dataclass
class Replay(Method):
    """`mix`: the kept examples join every epoch. `extra_epoch`: one more epoch, over them alone, ends the task (TRACE);
    `after_every_epoch`: one follows each of the task's (PIECE's release). `periodic`: every so many batches an
    optimizer step on a batch of each old task (IDBR, naive replay).
    """

    share: Fraction
    kept: Literal["random", "first"]
    way: Literal["mix", "extra_epoch", "after_every_epoch", "periodic"]
    every: Annotated[Count, ReadIf("way", ("periodic",))]
    batch_size: Annotated[Count, ReadIf("way", ("periodic",))]

    sharded: ClassVar[Sharded] = "always"
    protects: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = "{share} of the examples of each task, as numbers of rows"
    old_data: ClassVar[Said] = "learned"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.memory: list[list[Example]] = []  # of each task before the one under way

    def plain_at_first(self) -> bool:
        return True

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        if self.way == "periodic":
            return Needs(adds=self._adds, largest_part=lambda batch: max(batch, self.batch_size))
        return Needs(epochs=self._epochs)

    def _adds(self, earlier: Sequence[int], batches: int, examples: int) -> Added:
        steps = batches // self.every * len(earlier)
        return Added(steps * self.batch_size, steps)

    def _epochs(self, earlier: Sequence[int], epochs: Sequence[int]) -> Sequence[int]:
        old = sum(self._count(examples) for examples in earlier)
        return [len(epoch) for epoch in self._joined([range(examples) for examples in epochs], range(old))]

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        before = learner.old_tasks(task)
        self.memory = [
            kept_examples(one, self._count(len(own_examples(one))), self.kept, learner.seed_of("replay", one.index))
            for one in before
        ]
        old = [example for kept in self.memory for example in kept]
        return epochs if self.way == "periodic" else self._joined(epochs, old)

    def _joined(self, epochs: Sequence[Sequence[Item]], old: Sequence[Item]) -> list[Sequence[Item]]:
        if not old:
            return list(epochs)
        if self.way == "after_every_epoch":
            return [each for epoch in epochs for each in (epoch, old)]
        return [*epochs, old] if self.way == "extra_epoch" else [[*epoch, *old] for epoch in epochs]

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        if self.way != "periodic" or (step + 1) % self.every:
            return steps
        chance = random.Random(learner.seed_of("replay", task.index, step))
        drawn = [chance.choices(kept, k=self.batch_size) for kept in self.memory]
        return [*steps, *([Part(examples, kind="replay")] for examples in drawn)]

    def _count(self, examples: int) -> int:
        return max(1, round(self.share * examples))
