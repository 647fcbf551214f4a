"""Multi-task training by one batch of each task in every step (Progressive Prompts' code, arXiv:2301.12314)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from cl_runner.batch import Part
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.memory import own_examples
from cl_runner.needs import Added, Needs, Outline
from cl_runner.said import Said


@dataclass
class MultiTask(Method):
    """A step's loss sums the mean losses of a batch of each task so far; an epoch goes once through the longest task.

    An upper bound: all data of earlier tasks are there. Beside `task_order=[...,joint]`, whose epochs mix all examples,
    small tasks weigh as much as large ones.
    """

    joins: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = "all examples, as numbers of rows"
    old_data: ClassVar[Said] = "learned"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self._others: list[Sequence[Example]] = []  # all tasks so far but the one that epochs go through

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        def epochs(earlier: Sequence[int], epochs: Sequence[int]) -> Sequence[int]:
            return [max([*earlier, examples]) for examples in epochs]

        def adds(earlier: Sequence[int], batches: int, examples: int) -> Added:
            return Added(examples * len(earlier))

        return Needs(epochs=epochs, adds=adds, several_parts=True)

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        first = task.index if learner.restart else 0
        seen = [own_examples(one) for one in learner.tasks[first : task.index + 1]]
        longest = max(seen, key=len)
        self._others = [own for own in seen if own is not longest]
        return [longest for _ in epochs]

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        size = len(steps[0][0].examples)
        chance = random.Random(learner.seed_of("multi_task", task.index, step))
        more = [Part(chance.sample(own, min(size, len(own))), kind="replay") for own in self._others]
        return [[*steps[0], *more], *steps[1:]]
