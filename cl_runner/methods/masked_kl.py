"""Target-masked KL (Xu et al. 2026, arXiv:2605.29498): what the starting model thought of all wrong answers stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import NonNegative
from cl_runner.data.task import Task
from cl_runner.layers.heads import classifies
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.teacher import output_at
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said


def of_the_others(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities [N, V] among all outputs but the right one, whose place holds 0."""
    right = targets[:, None]
    return logits.float().scatter(1, right, -torch.inf).log_softmax(-1).scatter(1, right, 0.0)


@dataclass
class MaskedKL(Method):
    """L = L_labels + strength * mean over targets of KL(p_0 || p), or of KL(p || p_0).

    p_0 and p are the starting and the present model's distributions over all tokens (of a classifier: labels) but the
    right one, each divided by its sum. Neither opposes the loss on labels, from the first task on. The starting
    model is the present one at the values with which everything began that trained so far: none is kept beside it.
    """

    strength: NonNegative
    direction: Literal["from_start", "to_start"]

    state: ClassVar[tuple[str, ...]] = ("values", "positions")
    measures: ClassVar[bool] = False
    goes_back: ClassVar[bool] = True
    by_answers: ClassVar[bool] = True
    keeps: ClassVar[Said] = "the starting values of what trained so far: 4 bytes per weight that did"
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.values: dict[str, Tensor] = {}  # of what trained so far, as it was before the first task
        self.positions: dict[str, Tensor] = {}  # flat, of tensors of which some entries trained

    def check(self, skeleton: nn.Module, longest: int) -> None:
        assert isinstance(skeleton, PreTrainedModel)
        if classifies(skeleton) and (skeleton.config.num_labels or 0) < 3:
            raise ValueError(
                f"method.{self.node} compares the labels beside the right one, and of two labels only one is left: "
                "it needs three at least. Type: method=lwf (in a chain: lwf in its place)"
            )

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(teacher="logits", teaches_first=True, start_values=True)

    def before_task(self, learner: Learner, task: Task) -> None:
        parameters = learner.parameters()
        for name in [*learner.params(), *learner.what.written, *learner.what.merged]:
            whole, known = parameters[name].detach(), self.positions.get(name)
            if name in self.values and known is None:
                continue
            if name in learner.selected:
                new = learner.selected[name].to(learner.device)
                new = new if known is None else new[~torch.isin(new, known)]
                added = whole.view(-1)[new]
                self.positions[name] = new if known is None else torch.cat([known, new])
                self.values[name] = added if known is None else torch.cat([self.values[name], added])
                continue
            start = whole.clone()
            if known is not None:
                start.view(-1)[self.positions.pop(name)] = self.values[name]
            self.values[name] = start

    def prepare(self, learner: Learner, part: Part, batch: Batch) -> Batch:
        if not part.labels:
            return batch
        output = output_at(learner, batch, self.values, self.positions)
        return batch | {"masked_kl": of_the_others(output.logits, output.targets)}

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        if "masked_kl" not in batch:
            return 0.0
        pair = [of_the_others(output.logits, output.targets), batch["masked_kl"]]
        found, wanted = pair if self.direction == "from_start" else reversed(pair)
        term = self.strength * functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1).mean()
        learner.log("masked_kl", float(term.detach()))
        return term
