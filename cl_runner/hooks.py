"""What the learner itself asks of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from torch import nn

from cl_runner.batch import Batch
from cl_runner.data.task import Task
from cl_runner.families.base import Prediction

#: Stands for `Learner`, whose module needs this one.
AnyLearner = TypeVar("AnyLearner", contravariant=True)
#: Answers a batch without answers.
Predict = Callable[[Batch], list[Prediction]]


class Hooks(Protocol[AnyLearner]):
    """cl_runner/methods/base.py says what each does."""

    @property
    def answering(self) -> Sequence[str]: ...

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module: ...

    def grow(self, model: nn.Module, index: int, seed: int) -> None: ...

    def before_forward(self, learner: AnyLearner, batch: Batch) -> Batch: ...

    def predict(self, learner: AnyLearner, batch: Batch, inner: Predict) -> list[Prediction]: ...
