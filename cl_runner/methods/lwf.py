"""Learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282) as in PE (2022.naacl-industry.35)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import NonNegative
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.needs import Needs, Outline


@dataclass
class LwF(Method):
    """L_LwF = strength * mean over the batch of sum_k (y_k - y'_k)^2 (PE eq. 3, 5).

    y' are the outputs of the old snapshot on the NEW task's inputs, without dropout: recorded once before training if
    an example has one target. Of a language model, with a row of the vocabulary's size for every answer token, they
    are computed again for each batch, at what trains as it was before the task. Replayed examples count in the mean
    with a distance of 0, so that the ratio to the loss of the new ones stays, whatever is mixed in.
    """

    strength: NonNegative
    outputs: Literal["logits", "probabilities"]

    state: ClassVar[tuple[str, ...]] = ("recorded",)
    protects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.recorded: Tensor | None = None  # [training examples, labels]
        self.rows: dict[Example, int] = {}  # where the new task's examples stand in it

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(example_bytes=outline.logits_bytes) if outline.one_target else Needs(teacher=self.outputs)

    def before_task(self, learner: Learner, task: Task) -> None:
        if learner.has_old_tasks(task) and learner.family.one_target:
            self.recorded = self._of(learner.record_logits(task.train))

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        self.rows = {example: row for row, example in enumerate(task.train)} if learner.has_old_tasks(task) else {}
        return epochs

    def prepare(self, learner: Learner, part: Part, batch: Batch) -> Batch:
        if part.kind != "new" or not self.rows:
            return batch
        rows = torch.tensor([self.rows.get(example, -1) for example in batch.examples], device=learner.device)
        if self.recorded is not None:
            return batch | {"lwf": self.recorded.to(learner.device)[rows], "lwf_new": rows >= 0}
        training = learner.model.training
        learner.model.eval()
        with torch.no_grad(), learner.at(learner.before):
            logits = learner.forward(batch).logits
        learner.model.train(training)
        return batch | {"lwf": self._of(logits), "lwf_new": rows >= 0}

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        if "lwf" not in batch:
            return 0.0
        distances = (self._of(output.logits) - batch["lwf"]).square().sum(-1)
        new = batch["lwf_new"][output.rows]
        if not bool(new.all()):
            distances = distances * new
        term = self.strength * distances.mean()  # eq. 5
        learner.log("lwf", float(term.detach()))
        return term

    def _of(self, logits: Tensor) -> Tensor:
        return logits if self.outputs == "logits" else logits.softmax(-1)
