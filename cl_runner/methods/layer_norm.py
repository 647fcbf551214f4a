"""Tuning of the normalisation weights alone: a control of PIECE (arXiv:2511.15375, figure 1, "LayerNorm")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from cl_runner.config import Positive, Sharded
from cl_runner.data.task import Task
from cl_runner.families.freezing import frozen
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.needs import Needs, Outline
from cl_runner.patterns import module_types
from cl_runner.said import Said
from cl_runner.trained import Trained


@dataclass
class LayerNorm(Method):
    """Scales and biases of LayerNorm, RMSNorm and the like learn every task, one after the other."""

    first_task: Literal["whole", "selected"]
    learning_rate: Positive | None

    sharded: ClassVar[Sharded] = "always"
    chooses: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    learns: ClassVar[Said] = {
        "first_task": {
            "selected": "normalisation weights",
            "whole": "all weights in the first task, then normalisation weights",
        }
    }
    keeps: ClassVar[Said] = ""
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def check(self, skeleton: nn.Module, longest: int) -> None:
        if not self.candidates(skeleton):
            raise ValueError("method=layer_norm: this backbone has no normalisation weights. Type: method=seq_ft")

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        first: Literal["listed", "all"] = "listed" if self.first_task == "selected" else "all"
        return Needs(first=first, later="listed", listed=self.candidates(skeleton))

    def candidates(self, model: nn.Module) -> dict[str, int]:
        """Entries of the normalisations' tensors, by name."""
        sizes = {name: p.numel() for name, p in model.named_parameters() if name not in frozen(model)}
        types = module_types(model)
        return {name: size for name, size in sizes.items() if any("norm" in kind.lower() for kind in types[name])}

    def trains(self, learner: Learner, task: Task) -> Trained:
        if task.index == 0 and self.first_task == "whole":
            return Trained()
        return Trained(names=self.candidates(learner.model).keys(), learning_rate=self.learning_rate)
