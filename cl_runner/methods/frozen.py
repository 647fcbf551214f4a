"""The control that papers lack: the base task is learned, and later tasks change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from cl_runner.config import Sharded
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said
from cl_runner.trained import Trained


@dataclass
class Frozen(Method):
    """At 0.1 % trained weights a method's accuracy has to be read beside this one's (specs of PE, section 6)."""

    sharded: ClassVar[Sharded] = "always"
    chooses: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    isolates: ClassVar[bool] = True
    learns: ClassVar[Said] = "all weights in the first task, then none"
    keeps: ClassVar[Said] = ""
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def plain_at_first(self) -> bool:
        return True

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(first="all", later="nothing")

    def trains(self, learner: Learner, task: Task) -> Trained:
        return Trained(names=() if learner.has_old_tasks(task) else None)
