"""Gradient episodic memory (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.optimize import nnls
from torch import nn

from cl_runner.batch import Part
from cl_runner.config import Count, NonNegative, Positive
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.memory import kept_examples
from cl_runner.methods.projection import add, now, product
from cl_runner.needs import Added, Needs, Outline
from cl_runner.said import Said


def multipliers(products: np.ndarray, against: np.ndarray, margin: float, damping: float) -> np.ndarray:
    """The v that minimises 1/2 v'(GG' + damping)v + (Gg)'v over v >= margin (eq. 11), in fp64.

    Args:
        products: GG' [tasks, tasks], of the memories' gradients G.
        against: Gg [tasks], of the step's gradient g.
        margin: the least value of each, in units of v.
        damping: times the mean of the diagonal of GG', so that gradients of any size are damped alike; it keeps
            the problem solvable where memories' gradients are alike.
    """
    # With u = v - margin >= 0 and the factor L of the quadratic form: least squares |L'u + L^-1 (Gg + L L' margin)|.
    quadratic = products + damping * products.diagonal().mean() * np.eye(len(against))
    factor = np.linalg.cholesky(quadratic)
    target = -np.linalg.solve(factor, against + quadratic.sum(1) * margin)
    return nnls(factor.T, target)[0] + margin


@dataclass
class GEM(Method):
    """Where a step's gradient g would raise an old task's loss on its memory, the nearest one that raises none.

    g~ = g + G'v (eq. 12), v from the dual problem over all old tasks, if some <g, g_k> < 0 (eq. 7).
    """

    size: Count
    batch_size: Count | None
    kept: Literal["random", "first"]
    margin: NonNegative
    damping: Positive

    protects: ClassVar[bool] = True
    directs: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = (
        "{size} examples of each task, as numbers of rows; in a step the gradient of each memory: "
        "4 bytes per trained weight and old task"
    )
    old_data: ClassVar[Said] = "gradients"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self._memory: list[list[Example]] = []  # of each task before the one under way
        self._drawn: list[Sequence[Example]] = []  # for the step under way

    def plain_at_first(self) -> bool:
        return True

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        drawn = self.size if self.batch_size is None else min(self.batch_size, self.size)

        def adds(earlier: Sequence[int], batches: int, examples: int) -> Added:
            return Added(batches * sum(min(drawn, kept) for kept in earlier))

        return Needs(entry_bytes=4 * (len(outline.tasks) - 1), adds=adds)

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        before = learner.old_tasks(task)
        self._memory = [kept_examples(one, self.size, self.kept, learner.seed_of("gem", one.index)) for one in before]
        return epochs

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        chance = random.Random(learner.seed_of("gem", task.index, step))
        few = self.batch_size
        self._drawn = [m if few is None or few >= len(m) else chance.sample(m, few) for m in self._memory]
        return steps

    def grads(self, learner: Learner) -> None:
        if not self._drawn:
            return
        assert learner.task is not None
        gradient = now(learner)
        memories = [learner.gradient(examples, learner.pass_size) for examples in self._drawn]
        against = np.array([product(one, gradient) for one in memories])
        learner.log("gem/violated", float((against < 0).sum()))
        if (against < 0).any():
            products = np.array([[product(one, other) for other in memories] for one in memories])
            add(learner, memories, multipliers(products, against, self.margin, self.damping).tolist())
