"""Two spaces between an encoder and its labels, a general one and one of tasks (IDBR, arXiv:2104.05489)."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cl_runner.layers.heads import find_head


class Found(NamedTuple):
    """What the last pass found of each text, in fp32."""

    general: Tensor  # [B, size]
    specific: Tensor  # [B, size]
    tasks: Tensor  # [B, tasks], logits
    order: Tensor  # [B, 2], logits: whether its halves stand as they were, or swapped


class Spaces(nn.Module):
    """In place of a classifier's last layer: G = tanh(W_g h), S = tanh(W_s h), labels from both (section 3.2).

    h is the first token's last hidden state: what stands between it and the last layer (a pooler) is passed by. Which
    task a text is of is told from S, the order of its halves from G.

    Args:
        width: of a hidden state.
        size: of each space.
    """

    def __init__(self, width: int, size: int, labels: int, tasks: int):
        super().__init__()
        self.out_features = labels
        self.general, self.specific = nn.Linear(width, size), nn.Linear(width, size)
        self.labels, self.tasks, self.order = nn.Linear(2 * size, labels), nn.Linear(size, tasks), nn.Linear(size, 2)
        self.names: list[str] = []  # of the model's parameters that are read: not those passed by
        self.types: Tensor | None = None  # [B, L]: of the next pass, which half a token is of
        self.states: Tensor | None = None  # [B, width]: of the pass under way
        self.found: Found | None = None

    def forward(self, ignored: Tensor) -> Tensor:
        """Logits [B, labels]."""
        assert self.states is not None, "the encoder ran before its head"
        general, specific = torch.tanh(self.general(self.states)), torch.tanh(self.specific(self.states))
        told = (general, specific, self.tasks(specific), self.order(general))
        self.found, self.states = Found(*(one.float() for one in told)), None
        logits: Tensor = self.labels(torch.cat([general, specific], 1))
        return logits

    def attach(self, model: PreTrainedModel) -> str:
        """Take the place of the model's last layer, and read its encoder; returns the layer's name."""
        name, linear = find_head(model)
        model.set_submodule(name, self.to(linear.weight.dtype))
        encoder = model.base_model
        types = getattr(model.config, "type_vocab_size", 1) or 1
        reads_types = types > 1 and "token_type_ids" in inspect.signature(encoder.forward).parameters

        def before(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
            given, self.types = self.types, None
            return (positional, named | {"token_type_ids": given}) if reads_types and given is not None else None

        def after(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            self.states = output[0][:, 0]

        read = {id(p) for name, p in encoder.named_parameters() if not name.startswith("pooler.")}
        read |= {id(p) for p in self.parameters()}
        self.names = [name for name, p in model.named_parameters() if id(p) in read]
        encoder.register_forward_pre_hook(before, with_kwargs=True)
        encoder.register_forward_hook(after, with_kwargs=True)
        return name


def content(attention_mask: Tensor) -> list[int]:
    """Tokens of each text between the one that begins it and the one that ends it."""
    return [max(0, length - 2) for length in attention_mask.sum(1).tolist()]


def in_halves(
    input_ids: Tensor, attention_mask: Tensor, cuts: list[int], swapped: bool, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """[CLS] a [SEP] b [SEP] of texts [CLS] ab [SEP], padded on the right; swapped, [CLS] b [SEP] a [SEP].

    Args:
        cuts: tokens of a, of each text.

    Returns:
        Ids, attention mask, and which half a token is of: 0 up to the separator, 1 behind it, padding included.
    """
    length = input_ids.shape[1] + 1
    ids = input_ids.new_full((len(input_ids), length), pad)
    mask, types = attention_mask.new_zeros(ids.shape), torch.ones_like(ids)
    for row, (read, tokens, cut) in enumerate(zip(input_ids, attention_mask.sum(1).tolist(), cuts, strict=True)):
        first, text, end = read[:1], read[1 : tokens - 1], read[tokens - 1 : tokens]
        left, right = (text[cut:], text[:cut]) if swapped else (text[:cut], text[cut:])
        ids[row, : tokens + 1] = torch.cat([first, left, end, right, end])
        mask[row, : tokens + 1] = 1
        types[row, : len(left) + 2] = 0
    return ids, mask, types
