"""Orthogonal low-rank adaptation (O-LoRA, Wang et al. 2023, Findings of EMNLP, arXiv:2310.14152)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.config import NonNegative
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.inc_lora import IncLoRA
from cl_runner.methods.low_rank import name_of, save_unwrapped, sizes_beneath
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said
from cl_runner.trained import Trained


@dataclass
class OLoRA(IncLoRA):
    """L = L_t + orthogonal_strength * sum |A_old A_t^T| + norm_strength * sum (||A_t|| + ||B_t||) (eq. 8).

    A_old has the rows of all earlier A of a layer, so that it takes one product; norms of whole matrices, as released.
    Finished adapters go on being added up, or with `merge` join the weights beneath, of which A alone is kept then.
    """

    orthogonal_strength: NonNegative
    norm_strength: NonNegative
    merge: bool

    state: ClassVar[tuple[str, ...]] = ("rows",)
    protects: ClassVar[bool] = True
    keeps: ClassVar[Said] = {
        "merge": {False: "the adapters of all tasks: 4 bytes per number", True: "A of all tasks: 4 bytes per number"}
    }

    def __post_init__(self) -> None:
        self.rows: dict[str, Tensor] = {}  # [all earlier ranks, width in], by the layer's name

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        super().build(model, tasks, seed, restart)
        if self.merge:
            self.adapters.remove(name_of(0))
        return model

    def grow(self, model: nn.Module, index: int, seed: int) -> None:
        if not self.merge:
            super().grow(model, index, seed)

    def trains(self, learner: Learner, task: Task) -> Trained:
        name = self.adapter_of(learner, task)
        if self.merge and name not in self.adapters.names:
            self.add(int(name), learner.seed)
            self.adapters.use([name])
        found = super().trains(learner, task)
        return dataclasses.replace(found, merged=self.adapters.beneath()) if self.merge else found

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        said = super().needs(skeleton, outline)
        return dataclasses.replace(said, merged=sizes_beneath(self.targeted(skeleton))) if self.merge else said

    def count(self, outline: Outline) -> int:
        return 1 if self.merge else super().count(outline)

    def grads(self, learner: Learner) -> None:
        penalty = 0.0
        for name, values in learner.trained.items():
            layer, _, rest = name.partition(".lora_")
            if not rest:  # of a classifier's head
                continue
            new, gradient = values.detach(), torch.zeros_like(values)
            if self.norm_strength:
                size = new.norm()
                penalty += self.norm_strength * float(size)
                gradient += self.norm_strength * new / size.clamp_min(torch.finfo(size.dtype).tiny)
            if rest.startswith("A.") and layer in self.rows:
                product = self.rows[layer].to(new) @ new.T  # [all earlier ranks, rank]
                penalty += self.orthogonal_strength * float(product.abs().sum())
                gradient += self.orthogonal_strength * product.sign().T @ self.rows[layer].to(new)
            values.grad = gradient if values.grad is None else values.grad.add_(gradient)
        learner.log("o_lora", penalty)

    def export(self, model: nn.Module, tasks: Sequence[Task], folder: Path, base: str) -> str | None:
        if self.merge:
            return save_unwrapped(model, self.adapters, folder)
        return super().export(model, tasks, folder, base)

    def conclude(self, learner: Learner, task: Task) -> None:
        name, weights = self.adapter_of(learner, task), learner.parameters()
        for layer, _ in [] if learner.restart else self.adapters.layers():
            new = weights[f"{layer}.lora_A.{name}.weight"].detach().clone()
            self.rows[layer] = torch.cat([self.rows[layer], new]) if layer in self.rows else new
        if self.merge:
            learner.merge(self.adapters.merged(name))
            self.adapters.remove(name)
