"""The control that papers lack: the base task is learned, and later tasks change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cl_runner.data.task import Task
from cl_runner.methods.base import Method

if TYPE_CHECKING:
    from cl_runner.learner import Learner


@dataclass
class Frozen(Method):
    """At 0.1 % trained weights a method's accuracy has to be read beside this one's (specs of PE, section 6)."""

    chooses: ClassVar[bool] = True
    isolates: ClassVar[bool] = True

    def activate(self, learner: Learner, task: Task) -> None:
        learner.train_all(not learner.has_old_tasks(task))
