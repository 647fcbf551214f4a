"""A low-rank adapter for each task, those of earlier tasks fixed, all added up (IncLoRA of arXiv:2310.14152)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from cl_runner.methods.low_rank import LowRank
from cl_runner.said import Said


@dataclass
class IncLoRA(LowRank):
    """A task's adapter is there from the task's beginning on."""

    renews: ClassVar[bool] = True
    learns: ClassVar[Said] = "an adapter of rank {rank} for each task, and a classifier's head"
    keeps: ClassVar[Said] = "the adapters of all tasks: 4 bytes per number"

    def grow(self, model: nn.Module, index: int, seed: int) -> None:
        self.add(index, seed)
        self.adapters.use(list(self.adapters.names))
