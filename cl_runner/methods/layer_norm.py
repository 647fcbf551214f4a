"""Tuning of the normalisation weights alone: a control of PIECE (arXiv:2511.15375, figure 1, "LayerNorm")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from cl_runner.config import Positive
from cl_runner.data.task import Task
from cl_runner.families.freezing import frozen
from cl_runner.methods.base import Method
from cl_runner.sparse.selection import module_types

if TYPE_CHECKING:
    from cl_runner.learner import Learner


@dataclass
class LayerNorm(Method):
    """Scales and biases of LayerNorm, RMSNorm and the like learn every task, one after the other."""

    first_task: Literal["whole", "selected"]
    learning_rate: Positive | None

    chooses: ClassVar[bool] = True

    def check(self, skeleton: nn.Module, longest: int) -> None:
        if not self.candidates(skeleton):
            raise ValueError("method=layer_norm: this backbone has no normalisation weights. Type: method=seq_ft")

    def candidates(self, model: nn.Module) -> dict[str, int]:
        """Entries of the normalisations' tensors, by name."""
        sizes = {name: p.numel() for name, p in model.named_parameters() if name not in frozen(model)}
        types = module_types(model)
        return {name: size for name, size in sizes.items() if any("norm" in kind.lower() for kind in types[name])}

    def activate(self, learner: Learner, task: Task) -> None:
        self.whole = task.index == 0 and self.first_task == "whole"
        learner.train_all(self.whole)
        for name in self.candidates(learner.model):
            learner.parameters()[name].requires_grad_(True)

    def peak_learning_rate(self, task: Task, rate: float) -> float:
        return rate if self.whole or self.learning_rate is None else self.learning_rate
