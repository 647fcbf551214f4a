"""Orthogonal gradient descent (Farajtabar et al. 2020, arXiv:1910.07104), on the gradients of the right logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.batch import Output
from cl_runner.config import Count
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.projection import add, now, product
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said
from cl_runner.sparse.importance import cap


def right_logit(output: Output) -> Tensor:
    """The logit of the ground truth (OGD-GTL, section 3), of a language model the mean over the answer's tokens."""
    return output.logits.float().gather(1, output.targets[:, None]).mean()


def extend(basis: list[dict[str, Tensor]], found: Mapping[str, Tensor]) -> None:
    """Add a gradient's direction to an orthonormal basis, unless it lies in the others' span."""
    new = {name: value.double() for name, value in found.items()}
    for _ in range(2):  # once is not orthogonal in floating point
        for old in basis:
            share = product(new, old)
            for name, direction in old.items():
                if name in new:
                    new[name] -= share * direction
    length = product(new, new) ** 0.5
    if length > 1e-6 * product(found, found) ** 0.5:
        basis.append({name: (value / length).float() for name, value in new.items()})


@dataclass
class OGD(Method):
    """g~ = g - sum_v <g, v> v (algorithm 1): outputs for the old tasks' examples do not move, to first order.

    The v are the gradients of the right logits of `examples` of each task, at its end, made orthonormal. Each is as
    large as what trains: this is for adapters and other parts of the weights.
    """

    examples: Count  # of each task

    state: ClassVar[tuple[str, ...]] = ("basis", "names")
    protects: ClassVar[bool] = True
    recalls: ClassVar[Said] = "directions of its gradients"
    directs: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = "{examples} gradients of each task: 4 bytes per trained weight each"
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.basis: list[dict[str, Tensor]] = []
        self.names: list[str] = []  # of what trained
        self._here: list[dict[str, Tensor]] = []  # of the task under way

    def plain_at_first(self) -> bool:
        return True

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(directions=self.examples, sized_by=("examples", self.examples))

    def before_task(self, learner: Learner, task: Task) -> None:
        self.names = list(learner.params())

    def after_task(self, learner: Learner, task: Task) -> None:
        if task.index == len(learner.tasks) - 1:
            return
        learner.model.eval()
        chosen = cap(task.train, self.examples, learner.seed_of("ogd", task.index))
        with learner.clock.phase("importance"):
            for done, example in enumerate(chosen, start=1):
                extend(self.basis, learner.gradient([example], 1, of=right_logit, names=self.names))
                learner.progress("importance", done, len(chosen))

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        self._here = []
        return epochs

    def grads(self, learner: Learner) -> None:
        assert learner.task is not None
        if learner.has_old_tasks(learner.task) and self.basis:
            self._here = self._here or self._of_what_trains(learner)
            gradient = now(learner)
            shares = [product(gradient, old) for old in self._here]
            add(learner, self._here, [-share for share in shares])
            learner.log("ogd/removed", torch.tensor(shares).norm().item())

    def _of_what_trains(self, learner: Learner) -> list[dict[str, Tensor]]:
        """An orthonormal basis of what the directions are on the entries that train now."""
        if not learner.selected and all(learner.trained.keys() >= old.keys() for old in self.basis):
            return self.basis
        found: list[dict[str, Tensor]] = []
        for old in self.basis:
            extend(found, {n: learner.part(n, v) for n, v in old.items() if n in learner.trained})
        return found
