"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796) as in PE (2022.naacl-industry.35)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from cl_runner.config import NonNegative, Share
from cl_runner.data.task import Task
from cl_runner.methods.base import Method

if TYPE_CHECKING:
    from cl_runner.learner import Learner


@dataclass
class EWC(Method):
    """L_EWC = strength * sum_i F_i (theta_i - theta_i_old)^2 over the weights that train (PE eq. 3, 4; no 1/2).

    The penalty is quadratic, so its gradient is written down, not traced.
    """

    strength: NonNegative
    fisher_data: Literal["old_tasks", "last_task"]
    decay: Share

    state: ClassVar[tuple[str, ...]] = ("fisher",)
    protects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.fisher: dict[str, Tensor] = {}  # of what trains, or of all weights if it is added up
        self.anchor: dict[str, Tensor] = {}  # of what trains

    def reviews_old_data(self) -> bool:
        return self.fisher_data == "old_tasks"

    def before_task(self, learner: Learner, task: Task) -> None:
        if learner.has_old_tasks(task) and self.fisher_data == "old_tasks":
            names = learner.selected or None
            fisher = learner.fisher(learner.old_examples(task), names)  # PE eq. 1: all old data, latest weights
            # Sums may lie in main memory; what trains lies on the device.
            self.fisher = {
                name: learner.part(name, fisher[name]).to(learner.device) for name in learner.selected or fisher
            }

    def activate(self, learner: Learner, task: Task) -> None:
        # A resumed task activates at the weights it began with, so they need not be saved.
        weights = learner.parameters() if learner.has_old_tasks(task) else {}
        # theta_old, of the weights that train
        names = [name for name, weight in weights.items() if weight.requires_grad]
        self.anchor = {name: learner.part(name, weights[name].detach()).to(torch.float32, copy=True) for name in names}

    def after_task(self, learner: Learner, task: Task) -> None:
        if self.fisher_data == "last_task":
            new = {name: fisher.to(learner.device) for name, fisher in learner.fisher(task.train).items()}
            self.fisher = {name: f + self.decay * self.fisher[name] if self.fisher else f for name, f in new.items()}

    def grads(self, learner: Learner) -> None:
        if not self.anchor:
            return
        penalty = 0.0
        for name, values in learner.trained.items():
            fisher = self.fisher[name]
            if fisher.shape != values.shape:
                fisher = learner.part(name, fisher)
            moved = values.detach() - self.anchor[name]
            pull = fisher * moved
            gradient = 2 * self.strength * pull  # d/dtheta of eq. 4
            values.grad = gradient if values.grad is None else values.grad.add_(gradient)
            penalty += float((pull * moved).sum())
        learner.log("ewc", self.strength * penalty)
