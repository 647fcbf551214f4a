"""Learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282) as in PE (2022.naacl-industry.35)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from cl_runner.config import NonNegative
from cl_runner.data.task import Task
from cl_runner.families.base import Batch, Output
from cl_runner.methods.base import Method

if TYPE_CHECKING:
    from cl_runner.learner import Learner


@dataclass
class LwF(Method):
    """L_LwF = strength * mean over the batch of sum_k (y_k - y'_k)^2 (PE eq. 3, 5).

    y' are the outputs of the old snapshot on the NEW task's inputs, recorded once before training, without dropout.
    """

    strength: NonNegative
    outputs: Literal["logits", "probabilities"]

    state: ClassVar[tuple[str, ...]] = ("recorded",)

    def __post_init__(self) -> None:
        self.recorded: Tensor | None = None  # [training examples, labels]

    def before_task(self, learner: Learner, task: Task) -> None:
        if learner.has_old_tasks(task):
            self.recorded = self._of(learner.record_logits(task.train))

    def prepare(self, learner: Learner, batch: Batch) -> Batch:
        if self.recorded is None:
            return batch
        return {**batch, "lwf": self.recorded.to(batch["index"].device)[batch["index"]]}

    def loss(self, learner: Learner, batch: Batch, output: Output) -> Tensor | float:
        if "lwf" not in batch:
            return 0.0
        term = self.strength * (self._of(output.logits) - batch["lwf"]).square().sum(-1).mean()  # eq. 5
        learner.log("lwf", float(term.detach()))
        return term

    def _of(self, logits: Tensor) -> Tensor:
        return logits if self.outputs == "logits" else logits.softmax(-1)
