"""Learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282) as in PE (2022.naacl-industry.35)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
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

    y' are the outputs of the old snapshot on the NEW task's inputs, without dropout: recorded once before training if
    an example has one target. Of a language model, with a row of the vocabulary's size for every answer token, the old
    weights of what trains are kept instead, and the outputs computed again for each batch.
    """

    strength: NonNegative
    outputs: Literal["logits", "probabilities"]

    state: ClassVar[tuple[str, ...]] = ("recorded",)
    protects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.recorded: Tensor | None = None  # [training examples, labels]
        self.old: dict[str, Tensor] = {}  # weights of what trains, before the task

    def before_task(self, learner: Learner, task: Task) -> None:
        if learner.has_old_tasks(task) and learner.family.one_target:
            self.recorded = self._of(learner.record_logits(task.train))

    def activate(self, learner: Learner, task: Task) -> None:
        # A resumed task activates at the weights it began with, so they need not be saved.
        if learner.has_old_tasks(task) and not learner.family.one_target:
            trains = (
                learner.params() if not learner.selected else {n: learner.parameters()[n] for n in learner.selected}
            )
            self.old = {name: learner.part(name, weight.detach()).clone() for name, weight in trains.items()}

    def prepare(self, learner: Learner, batch: Batch) -> Batch:
        if self.recorded is not None:
            return {**batch, "lwf": self.recorded.to(batch["index"].device)[batch["index"]]}
        if not self.old:
            return batch
        training = learner.model.training
        learner.model.eval()
        with torch.no_grad(), learner.at(self.old):
            logits = learner.forward(batch).logits
        learner.model.train(training)
        return {**batch, "lwf": self._of(logits)}

    def loss(self, learner: Learner, batch: Batch, output: Output) -> Tensor | float:
        if "lwf" not in batch:
            return 0.0
        term = self.strength * (self._of(output.logits) - batch["lwf"]).square().sum(-1).mean()  # eq. 5
        learner.log("lwf", float(term.detach()))
        return term

    def _of(self, logits: Tensor) -> Tensor:
        return logits if self.outputs == "logits" else logits.softmax(-1)
