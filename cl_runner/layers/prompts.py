"""Prompts as values (DTKR + Prompt). SLM (ICLR 2024), table 8 and appendix: eq. 9 and 12.

The slots of a text are put side by side, without weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cl_runner.batch import Batch
from cl_runner.layers.values import Retrieved, Values


def reader_of(model: PreTrainedModel) -> Any:
    """The stack of layers that reads the text."""
    return model.get_encoder() if model.config.is_encoder_decoder else model.base_model


class Prompts(Values):
    """Vectors put before the text, or behind an encoder's first token, whose state a classifier reads.

    A slot begins with the embeddings of tokens drawn at random (eq. 12).

    Args:
        length: vectors of a slot.
        pad: id of the tokens that hold their place.
    """

    def __init__(self, model: PreTrainedModel, length: int, pad: int, first: int):
        self.length, self.pad, self.first = length, pad, first
        self.embedding = model.get_input_embeddings()
        self.columns = self.embedding.get_parameter("weight").shape[1]
        self.width = length * self.columns
        self.vectors: Tensor | None = None  # [B, K * length, columns]

    def initial(self, slots: int, generator: torch.Generator) -> Tensor:
        """Rows of the embedding."""
        table = self.embedding.get_parameter("weight").detach().cpu().float()
        drawn = torch.randint(len(table), (slots, self.length), generator=generator)
        return table[drawn].flatten(1)

    def attach(self, model: nn.Module) -> None:
        """Before the stack of layers that reads the text."""
        assert isinstance(model, PreTrainedModel)
        reader_of(model).register_forward_pre_hook(self._replace, with_kwargs=True)

    def use(self, rows: Tensor, retrieved: Retrieved, batch: Batch) -> Batch:
        """Room for the vectors in ids, mask and positions."""
        examples, count = retrieved.slots.shape
        self.vectors = rows.reshape(examples, count * self.length, self.columns)
        longer = {}
        for name, value in (("input_ids", self.pad), ("attention_mask", 1)):
            room = batch[name].new_full((examples, count * self.length), value)
            longer[name] = torch.cat([batch[name][:, : self.first], room, batch[name][:, self.first :]], 1)
        if "position_ids" in batch:
            longer["position_ids"] = (longer["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return batch | longer

    def stop(self) -> None:
        self.vectors = None

    def _replace(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Embeddings in place of ids, where these have the room; what is decoded after them has none."""
        ids = arguments[0] if arguments else named.get("input_ids")
        if self.vectors is None or ids is None:
            return None
        room = slice(self.first, self.first + self.vectors.shape[1])
        if ids[:, room].shape != self.vectors.shape[:2] or not bool((ids[:, room] == self.pad).all()):
            return None
        embedded = self.embedding(ids)
        parts = [embedded[:, : self.first], self.vectors.to(embedded.dtype), embedded[:, room.stop :]]
        named = {**named, "inputs_embeds": torch.cat(parts, 1)}
        return ((None, *arguments[1:]), named) if arguments else ((), {**named, "input_ids": None})
