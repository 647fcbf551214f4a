"""Gated prefixes as values (DTKR + Adapter). SLM (ICLR 2024), table 8 and appendix: eq. 9 and 11.

The slots of a text are put side by side, without weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_runner.batch import Batch
from cl_runner.layers.targets import KINDS, Target
from cl_runner.layers.values import Retrieved, Values
from cl_runner.sparse.summary import module_of


class GatedPrefixes(Values):
    """Attention to a slot's vectors in every layer, times a gate that begins with 0 (eq. 11, LLaMA-Adapter).

    The text's own queries look at keys and values that the layer's projections make of the vectors; the result is
    added to what the attention gives its output projection.

    Args:
        layers: (query, key, value, output) projections of each attention.
        heads: of the queries.
        length: vectors of a slot in each layer.
        scaled: whether scores are divided by the root of a head's width (T5's are not).
    """

    def __init__(self, layers: Sequence[tuple[Target, Target, Target, Target]], heads: int, length: int, scaled: bool):
        self.layers, self.heads, self.length, self.scaled = layers, heads, length, scaled
        self.sizes = [size for _, key, _, _ in layers for size in (length * key.width_in, 1)]
        self.width = sum(self.sizes)
        self.prefixes: list[tuple[Tensor, Tensor, Tensor]] = []  # keys, values [B, heads, M, d] and gates [B, M]
        self._queries: list[Tensor | None] = [None] * len(layers)

    def initial(self, slots: int, generator: torch.Generator) -> Tensor:
        """Vectors from N(0, 0.02^2), gates 0."""
        parts = []
        for number, size in enumerate(self.sizes):
            gate = number % 2 == 1
            parts.append(torch.zeros(slots, size) if gate else 0.02 * torch.randn(slots, size, generator=generator))
        return torch.cat(parts, 1)

    def attach(self, model: nn.Module) -> None:
        """Behind each query projection, and before each output projection."""
        for number, (query, _, _, output) in enumerate(self.layers):
            query.module.register_forward_hook(self._watch(number))
            output.module.register_forward_pre_hook(self._add(number))

    def use(self, rows: Tensor, retrieved: Retrieved, batch: Batch) -> Batch:
        """Keys and values of the vectors, once for all tokens."""
        examples, count = retrieved.slots.shape
        parts = rows.split(self.sizes, -1)
        self.prefixes = []
        for number, (query, key, value, _) in enumerate(self.layers):
            vectors, gates = parts[2 * number], parts[2 * number + 1]
            dtype = key.module.get_parameter("weight").dtype
            flat = vectors.reshape(examples, count * self.length, key.width_in).to(dtype)
            width = query.width_out // self.heads
            made = [self._heads(side.module(flat), width) for side in (key, value)]
            self.prefixes.append((made[0], made[1], gates.tanh().repeat_interleave(self.length, 1).flatten(1)))
        return batch

    def stop(self) -> None:
        self.prefixes = []
        self._queries = [None] * len(self.layers)

    def _heads(self, states: Tensor, width: int) -> Tensor:
        """[B, heads, length, width]; of grouped queries each key serves several heads."""
        split = states.unflatten(-1, (-1, width)).transpose(1, 2)
        return split.repeat_interleave(self.heads // split.shape[1], 1)

    def _watch(self, number: int) -> Any:
        def watch(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            if self.prefixes:
                self._queries[number] = output

        return watch

    def _add(self, number: int) -> Any:
        def add(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            queries = self._queries[number]
            if not self.prefixes or queries is None:
                return None
            self._queries[number] = None  # or it would keep a pass's states until the next one
            keys, values, gates = self.prefixes[number]
            split = self._heads(queries, keys.shape[-1])
            scores = split @ keys.transpose(-1, -2)
            if self.scaled:
                scores = scores / math.sqrt(keys.shape[-1])
            shares = functional.softmax(scores.float(), -1) * gates[:, None, None].float()
            added = (shares.to(values.dtype) @ values).transpose(1, 2).flatten(2)
            return (arguments[0] + added, *arguments[1:])

        return add


def attention_layers(
    targets: Sequence[Target], option: str, instead: str
) -> list[tuple[Target, Target, Target, Target]]:
    """The query, key, value and output projection of each attention, from the targets of all these kinds.

    Args:
        option: what was typed to have prefixes, for the message.
        instead: what to type where there can be none.

    Raises:
        ValueError: an attention lacks one of them.
    """
    layers: dict[str, dict[str, Target]] = {}
    by_name = {target.name: target for target in targets}
    for target in targets:
        if module_of(f"{target.name}.weight") != "attention_output":
            continue
        parent = target.name
        while parent:
            parent = parent.rpartition(".")[0]
            inside = {module_of(f"{n}.weight"): t for n, t in by_name.items() if n.startswith(f"{parent}.")}
            if set(KINDS) <= set(inside):
                layers[parent] = inside
                break
    if not layers:
        raise ValueError(f"{option} needs attention with separate query, key and value projections. Type: {instead}")
    return [(found["query"], found["key"], found["value"], found["attention_output"]) for found in layers.values()]
