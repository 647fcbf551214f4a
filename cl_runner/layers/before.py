"""Vectors before texts: room for them among the ids that a model is given, and embeddings in it when the model reads.

Each row may have another number of vectors. What it has no vectors for is padding, which the row's mask leaves out, so
that a text is read in a batch as it is alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cl_runner.batch import Batch


def reader_of(model: PreTrainedModel) -> Any:
    """The stack of layers that reads the text."""
    return model.get_encoder() if model.config.is_encoder_decoder else model.base_model


def first_position(model: PreTrainedModel) -> int:
    """The position of a text's first token: RoBERTa counts from behind the position that stands for padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def most_positions(model: PreTrainedModel) -> int | None:
    """Tokens that the stack which reads the text has positions for; None: it has no end."""
    found = getattr(model.config, "max_position_embeddings", None)
    return None if found is None else found - first_position(model)


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether that stack can be told the position of every token."""
    return "position_ids" in inspect.signature(reader_of(model).forward).parameters


class Before:
    """Puts vectors before the text of each row, or behind its first tokens.

    Args:
        first: tokens that stay in front of the vectors.

    Attributes:
        columns: numbers of a vector.
        behind: whether they stand behind the whole text, where it is padded on the right.
        vectors: of the batch under way, [B, R, columns]; None = the model reads what it is given.
    """

    def __init__(self, model: PreTrainedModel, first: int = 0):
        pad = model.config.get_text_config().pad_token_id
        self.pad, self.first = 0 if pad is None else pad, first
        self.embedding = model.get_input_embeddings()
        self.columns = self.embedding.get_parameter("weight").shape[1]
        self.start = first_position(model)
        self.behind = False
        self.vectors: Tensor | None = None
        self._ids = torch.empty(0)  # with the room, [B, L]
        self._places: tuple[Tensor, ...] = ()  # rows and columns of the vectors, and which of `vectors` are meant
        self._positions: Tensor | None = None  # [B, L]; None = as the model counts

    def attach(self, model: PreTrainedModel) -> None:
        """Before the stack of layers that reads the text; as long as nothing is put, it computes what it did."""
        reader_of(model).register_forward_pre_hook(self._replace, with_kwargs=True)

    def random_rows(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, columns], fp32: embeddings of tokens drawn at random."""
        table = self.embedding.get_parameter("weight").detach()
        drawn = torch.randint(len(table), (count,), generator=generator)
        return table.cpu().float()[drawn]

    def put(
        self, batch: Batch, vectors: Tensor, counts: Tensor | None = None, positions: Tensor | None = None
    ) -> Batch:
        """From now on the model's passes over this batch read these vectors.

        Args:
            vectors: [B, R, columns].
            counts: [B], of a row the first so many are meant; None = all of them.
            positions: [B, R], of the vectors, from 0. A row's first vector then stands in the place of its text's first
                token, and the other tokens keep the positions that they have alone.

        Returns:
            The batch with room for them in ids, mask and positions.
        """
        ids, mask = batch["input_ids"], batch["attention_mask"]
        (examples, length), room = ids.shape, vectors.shape[1]
        given = torch.full((examples,), room, device=ids.device) if counts is None else counts
        number = torch.arange(room, device=ids.device).expand(examples, -1)
        column = torch.arange(length, device=ids.device).expand(examples, -1)
        width, meant = length + room, number < given[:, None]
        replaced = (given > 0)[:, None] if positions is not None else torch.zeros_like(meant[:, :1])
        if "position_ids" in batch:  # padded on the left
            place, moved = number + (room - given)[:, None], column + room
        else:
            first = mask.sum(1, keepdim=True) if self.behind else self.first
            place = number + first
            moved = torch.where(column < first, column, column + given[:, None] - replaced.long())
            moved = moved.masked_fill(replaced & (column == 0), width)
        place = place.masked_fill(~meant, width)  # one column too many takes what is nowhere
        seen = mask.new_zeros(examples, width + 1).scatter(1, moved, mask).scatter(1, place, 1)[:, :width]
        self._ids = ids.new_full((examples, width + 1), self.pad).scatter(1, moved, ids)[:, :width]
        rows = torch.arange(examples, device=ids.device)[:, None].expand(-1, room)
        self.vectors, self._places, self._positions = vectors, (rows[meant], place[meant], meant), None
        longer = {"input_ids": self._ids, "attention_mask": seen}
        if "position_ids" in batch:
            longer["position_ids"] = (seen.cumsum(1) - 1).clamp(min=0)
        if positions is not None:
            told = ids.new_zeros(examples, width + 1).scatter(1, moved, column).scatter(1, place, positions)[:, :width]
            self._positions = torch.where(seen > 0, told + self.start, max(0, self.start - 1))
        return batch | longer

    def stop(self) -> None:
        """The model reads what it is given."""
        self.vectors = None

    def _replace(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Embeddings in place of ids, where these begin with what was put; what is decoded after them does not."""
        ids = arguments[0] if arguments else named.get("input_ids")
        if self.vectors is None or ids is None:
            return None
        width = self._ids.shape[1]
        if len(ids) != len(self._ids) or ids.shape[1] < width or not torch.equal(ids[:, :width], self._ids):
            return None
        rows, columns, meant = self._places
        embedded = self.embedding(ids)
        named = {**named, "inputs_embeds": embedded.index_put((rows, columns), self.vectors[meant].to(embedded.dtype))}
        if self._positions is not None:
            named["position_ids"] = self._positions
        return ((None, *arguments[1:]), named) if arguments else ((), {**named, "input_ids": None})


class Imitated:
    """Vectors before every text of a model without weights, whose ids have no content: what a plan's passes cost.

    Args:
        vectors: makes [R, columns], for the first places of whatever is longer.
    """

    def __init__(self, model: PreTrainedModel, vectors: Callable[[], Tensor]):
        self.vectors, self.embedding = vectors, model.get_input_embeddings()
        reader_of(model).register_forward_pre_hook(self._replace, with_kwargs=True)

    def _replace(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        ids = arguments[0] if arguments else named.get("input_ids")
        if ids is None or ids.shape[1] == 1:  # a token that is decoded
            return None
        embedded, vectors = self.embedding(ids), self.vectors()
        room = min(len(vectors), ids.shape[1])
        given = vectors[:room].expand(len(ids), -1, -1).to(embedded.dtype)
        named = {**named, "inputs_embeds": torch.cat([given, embedded[:, room:]], 1)}
        return ((None, *arguments[1:]), named) if arguments else ((), {**named, "input_ids": None})
