"""Averaged gradient episodic memory (Chaudhry et al. 2019, arXiv:1812.00420)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from cl_runner.batch import Part
from cl_runner.config import Count
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.memory import kept_examples
from cl_runner.methods.projection import add, now, product
from cl_runner.needs import Added, Needs, Outline
from cl_runner.said import Said


@dataclass
class AGEM(Method):
    """g~ = g - (<g, g_ref> / <g_ref, g_ref>) g_ref where <g, g_ref> < 0 (eq. 11): the memories' mean loss may not rise.

    g_ref is the gradient of examples that are drawn for each step from all memories together.
    """

    size: Count
    batch_size: Count
    kept: Literal["random", "first"]

    protects: ClassVar[bool] = True
    directs: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = (
        "{size} examples of each task, as numbers of rows; in a step the gradient of those drawn: "
        "4 bytes per trained weight"
    )
    old_data: ClassVar[Said] = "gradients"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self._memory: list[Example] = []  # of the tasks before the one under way
        self._drawn: Sequence[Example] = ()  # for the step under way

    def plain_at_first(self) -> bool:
        return True

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        def adds(earlier: Sequence[int], batches: int, examples: int) -> Added:
            return Added(batches * min(self.batch_size, sum(min(self.size, kept) for kept in earlier)))

        return Needs(entry_bytes=4, adds=adds)

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        before = learner.old_tasks(task)
        seeds = {one.index: learner.seed_of("agem", one.index) for one in before}
        self._memory = [e for one in before for e in kept_examples(one, self.size, self.kept, seeds[one.index])]
        return epochs

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        chance = random.Random(learner.seed_of("agem", task.index, step))
        self._drawn = chance.sample(self._memory, min(self.batch_size, len(self._memory)))
        return steps

    def grads(self, learner: Learner) -> None:
        if not self._drawn:
            return
        reference = learner.gradient(self._drawn, learner.pass_size)
        against = product(reference, now(learner))
        learner.log("agem/violated", float(against < 0))
        if against < 0:
            add(learner, [reference], [-against / product(reference, reference)])
