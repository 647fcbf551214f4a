"""Sequential fine-tuning: the lower bound of every paper (PE table 1, "Lower")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from cl_runner.config import Sharded
from cl_runner.methods.base import Method
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said


@dataclass
class SeqFT(Method):
    """Trains all weights on each task in turn; no hook of training is needed."""

    sharded: ClassVar[Sharded] = "always"
    chooses: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    learns: ClassVar[Said] = "all weights"
    keeps: ClassVar[Said] = ""
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def plain_at_first(self) -> bool:
        return True

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(first="all", later="all")
