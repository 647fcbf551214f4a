"""Prompts as values (DTKR + Prompt). SLM (ICLR 2024), table 8 and appendix: eq. 9 and 12.

The slots of a text are put side by side, without weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cl_runner.batch import Batch
from cl_runner.layers.before import Before
from cl_runner.layers.values import Retrieved, Values


class Prompts(Values):
    """Vectors put before the text, or behind an encoder's first token, whose state a classifier reads.

    A slot begins with the embeddings of tokens drawn at random (eq. 12).

    Args:
        length: vectors of a slot.
        first: tokens that stay in front of them.
    """

    def __init__(self, model: PreTrainedModel, length: int, first: int):
        self.length, self.before = length, Before(model, first)
        self.width = length * self.before.columns

    def initial(self, slots: int, generator: torch.Generator) -> Tensor:
        """Rows of the embedding."""
        return self.before.random_rows(slots * self.length, generator).view(slots, self.width)

    def attach(self, model: nn.Module) -> None:
        """Before the stack of layers that reads the text."""
        assert isinstance(model, PreTrainedModel)
        self.before.attach(model)

    def use(self, rows: Tensor, retrieved: Retrieved, batch: Batch) -> Batch:
        """Room for the vectors in ids, mask and positions."""
        examples, count = retrieved.slots.shape
        return self.before.put(batch, rows.reshape(examples, count * self.length, self.before.columns))

    def stop(self) -> None:
        self.before.stop()
