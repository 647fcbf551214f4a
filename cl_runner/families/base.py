"""What every family of models offers: after `forward` no method knows if it is a classifier or a language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cl_runner.data.example import Example

Batch = dict[str, Tensor]


@dataclass
class Output:
    """The positions that count, flattened: one per example for a classifier, one per answer token otherwise."""

    loss: Tensor  # scalar, mean over the targets
    logits: Tensor  # [N, V]
    targets: Tensor  # [N]


class Prediction(NamedTuple):
    """What the model answers to one example."""

    text: str  # label name, or generated text
    confidence: float  # probability of the answer


class Family(ABC):
    """Abstract or final: subclasses implement everything and are not subclassed again."""

    @abstractmethod
    def build(self, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The untrained starting model; its new weights (a head) depend on `seed` only."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """The same architecture without weights, on the meta device: names and shapes of parameters."""

    @abstractmethod
    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example after truncation."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as padded tensors, first dimension = examples."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Output:
        """One forward pass."""

    @abstractmethod
    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the batch's examples of -log p(answer | text): the Fisher's loss (PE eq. 1)."""

    @abstractmethod
    def relabel(self, batch: Batch, targets: Tensor) -> Batch:
        """The batch with other targets, as many and in the order of `Output.targets`."""

    @abstractmethod
    def identity(self) -> str:
        """JSON of what turns examples into batches and losses: tells results of two configurations apart."""

    @abstractmethod
    def predict(self, output: Output) -> list[Prediction]:
        """The answers of a forward pass, one per example; greedy."""
