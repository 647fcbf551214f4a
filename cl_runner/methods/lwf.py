"""Learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282) as in PE (2022.naacl-industry.35) and PIECE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import NonNegative, Positive, Sharded, Share
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.recorded import record_logits
from cl_runner.methods.teacher import output_at
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said


@dataclass
class LwF(Method):
    """L = label_weight * L_labels + strength * mean over the batch of D(y, y').

    D is sum_k (y_k - y'_k)^2 (PE eq. 3, 5), or of outputs as distributions at a temperature T the Kullback-Leibler
    divergence T^2 KL(softmax(y' / T) || softmax(y / T)) (Hinton et al. 2015, arXiv:1503.02531, section 2.1).
    y' are the outputs of the old snapshot on the NEW task's inputs, without dropout: recorded once before training if
    an example has one target. Of a language model, with a row of the vocabulary's size for every answer token, they
    are computed again for each batch, at what trains as it was before the task. Replayed examples count in the mean
    with a distance of 0, so that the ratio to the loss of the new ones stays, whatever is mixed in.
    """

    strength: NonNegative
    outputs: Literal["logits", "probabilities"]
    distance: Literal["squared", "kullback_leibler"]
    temperature: Positive | None
    label_weight: Share
    first_task: bool

    sharded: ClassVar[Sharded] = "always"
    state: ClassVar[tuple[str, ...]] = ("recorded",)
    protects: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = (
        "the old outputs: 4 bytes per label of each example of the task; a language model computes them again"
    )
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.recorded: Tensor | None = None  # [training examples, labels]
        self.rows: dict[Example, int] = {}  # where the new task's examples stand in it

    def plain_at_first(self) -> bool:
        return not self.first_task

    def check(self, skeleton: nn.Module, longest: int) -> None:
        node, divergence = f"method.{self.node}", self.distance == "kullback_leibler"
        if divergence and self.outputs != "logits":
            raise ValueError(
                f"{node}.distance=kullback_leibler makes distributions of logits itself, and {node}.outputs="
                f"{self.outputs}. Type: {node}.outputs=logits"
            )
        if divergence and self.temperature is None:
            raise ValueError(
                f"{node}.distance=kullback_leibler compares distributions at a temperature. "
                f"Type: {node}.temperature=2.0"
            )
        if not divergence and self.temperature is not None:
            raise ValueError(
                f"{node}.temperature={self.temperature:g} belongs to kullback_leibler, and {node}.distance=squared. "
                f"Type: {node}.temperature=null (or {node}.distance=kullback_leibler)"
            )

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return (
            Needs(example_bytes=outline.logits_bytes)
            if outline.one_target
            else Needs(teacher=self.outputs, teaches_first=self.first_task)
        )

    def before_task(self, learner: Learner, task: Task) -> None:
        if self._acts(learner, task) and learner.family.one_target:
            self.recorded = self._of(record_logits(learner, task.train))

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        self.rows = {example: row for row, example in enumerate(task.train)} if self._acts(learner, task) else {}
        return epochs

    def _acts(self, learner: Learner, task: Task) -> bool:
        return self.first_task or learner.has_old_tasks(task)

    def prepare(self, learner: Learner, part: Part, batch: Batch) -> Batch:
        if part.kind != "new" or not self.rows:
            return batch
        rows = torch.tensor([self.rows.get(example, -1) for example in batch.examples], device=learner.device)
        if self.recorded is not None:
            return batch | {"lwf": self.recorded.to(learner.device)[rows], "lwf_new": rows >= 0}
        return batch | {"lwf": self._of(output_at(learner, batch, learner.before).logits), "lwf_new": rows >= 0}

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        if "lwf" not in batch:
            return 0.0
        distances = self._distances(self._of(output.logits), batch["lwf"])
        new = batch["lwf_new"][output.rows]
        if not bool(new.all()):
            distances = distances * new
        term = self.strength * distances.mean()
        learner.log("lwf", float(term.detach()))
        return term - (1 - self.label_weight) * output.loss if part.labels and self.label_weight < 1 else term

    def _distances(self, new: Tensor, old: Tensor) -> Tensor:
        """[N] of outputs [N, V]."""
        if self.temperature is None:
            return (new - old).square().sum(-1)
        found, wanted = ((outputs / self.temperature).log_softmax(-1) for outputs in (new, old))
        divergence = functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
        return self.temperature**2 * divergence

    def _of(self, logits: Tensor) -> Tensor:
        return logits if self.outputs == "logits" else logits.softmax(-1)
