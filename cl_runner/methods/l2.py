"""The plainest control of the regularisers: all weights are pulled to what they were before the task, equally."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cl_runner.config import NonNegative, Sharded
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.penalty import pull_back
from cl_runner.needs import Needs
from cl_runner.said import Said


@dataclass
class L2(Method):
    """L_L2 = strength * sum_i (theta_i - theta_i_old)^2 over the weights that train: EWC with a Fisher of 1."""

    strength: NonNegative

    sharded: ClassVar[Sharded] = "always"
    protects: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = ""
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def needs(self, skeleton: object, outline: object) -> Needs:
        return Needs()

    def grads(self, learner: Learner) -> None:
        assert learner.task is not None
        if learner.has_old_tasks(learner.task):
            learner.log("l2", pull_back(learner, self.strength))
