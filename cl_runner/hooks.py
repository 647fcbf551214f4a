"""What the learner itself asks of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import nn

from cl_runner.batch import Batch
from cl_runner.data.task import Task
from cl_runner.families.base import Prediction

if TYPE_CHECKING:
    from cl_runner.learner import Learner

#: Answers a batch without answers.
Predict = Callable[[Batch], list[Prediction]]


class Hooks(Protocol):
    """cl_runner/methods/base.py says what each does."""

    @property
    def answering(self) -> Sequence[str]: ...

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module: ...

    def grow(self, model: nn.Module, index: int, seed: int) -> None: ...

    def before_forward(self, learner: Learner, batch: Batch) -> Batch: ...

    def predict(self, learner: Learner, batch: Batch, inner: Predict) -> list[Prediction]: ...
