"""What a layer that is given rows of numbers for every text must offer, and what it is told of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_runner.batch import Batch


@dataclass(frozen=True)
class Retrieved:
    """Slots of each text and how much each counts; a row's weights add up to 1, or are all 0."""

    slots: Tensor  # [B, K] int64
    weights: Tensor  # [B, K] fp32


class Values(ABC):
    """How rows of numbers enter a model; subclasses are final.

    Attributes:
        width: numbers of a row.
    """

    width: int

    @abstractmethod
    def initial(self, slots: int, generator: torch.Generator) -> Tensor:
        """[slots, width] to begin with."""

    @abstractmethod
    def attach(self, model: nn.Module) -> None:
        """Hook into the model; as long as nothing is used, it computes what it did."""

    @abstractmethod
    def use(self, rows: Tensor, retrieved: Retrieved, batch: Batch) -> Batch:
        """From now on the model's passes are given these rows.

        Args:
            rows: [B, K, width].
            batch: what the model will read.

        Returns:
            The batch, with room for what is put before its texts.
        """

    @abstractmethod
    def stop(self) -> None:
        """The model computes what it did before."""
