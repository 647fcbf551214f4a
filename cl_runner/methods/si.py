"""Synaptic intelligence (Zenke et al. 2017, arXiv:1703.04200)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.config import NonNegative, Positive
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.penalty import pull_back
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said


@dataclass
class SI(Method):
    """L_SI = strength * sum_i Omega_i (theta_i - theta_i_old)^2 over the weights that train (eq. 4).

    Each task adds omega_i / (Delta_i^2 + damping) to Omega_i (eq. 5), where omega_i is how much of the loss's fall the
    weight's path brought, the sum of -g_i * dtheta_i over the steps (eq. 3), and Delta_i how far it went. g is the
    gradient before this penalty and before clipping. What is negative counts as 0, as in the authors' code.
    """

    strength: NonNegative
    damping: Positive

    state: ClassVar[tuple[str, ...]] = ("importance", "path", "moved", "positions")
    protects: ClassVar[bool] = True
    recalls: ClassVar[Said] = "its importance"
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = (
        "the importance: 4 bytes per weight of the model; in a task what it adds: 16 bytes per trained weight"
    )
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    watches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.importance: dict[str, Tensor] = {}  # of whole tensors
        self.path: dict[str, Tensor] = {}  # of what trains in the task under way
        self.moved: dict[str, Tensor] = {}
        self.positions: Mapping[str, Tensor] = {}
        self._step: dict[str, tuple[Tensor, Tensor]] = {}  # gradient and values before the optimizer's step

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(weight_bytes=4, task_bytes=16)

    def before_task(self, learner: Learner, task: Task) -> None:
        self.path, self.moved, self.positions = {}, {}, dict(learner.selected)

    def grads(self, learner: Learner) -> None:
        assert learner.task is not None
        self._step = {
            name: (values.grad.clone(), values.detach().clone())
            for name, values in learner.trained.items()
            if values.grad is not None
        }
        if learner.has_old_tasks(learner.task):
            learner.log("si", pull_back(learner, self.strength, self.importance))

    @torch.no_grad()
    def after_step(self, learner: Learner) -> None:
        for name, (gradient, before) in self._step.items():
            step = learner.trained[name].detach() - before
            self.moved[name] = step if name not in self.moved else self.moved[name].add_(step)
            fall = -gradient * step
            self.path[name] = fall if name not in self.path else self.path[name].add_(fall)

    def after_task(self, learner: Learner, task: Task) -> None:
        for name, parameter in learner.parameters().items():
            old = self.importance.setdefault(name, torch.zeros_like(parameter, dtype=torch.float32))
            if name not in self.path:
                continue
            new = (self.path[name] / (self.moved[name].square() + self.damping)).clamp_min(0)
            if name in self.positions:
                old.view(-1)[self.positions[name].to(old.device)] += new
            else:
                old += new
        self.path, self.moved, self._step = {}, {}, {}
