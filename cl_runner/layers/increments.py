"""Joint adaptive re-parameterisation (JARe): retrieved low-rank weight increments. SLM (ICLR 2024), eq. 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.batch import Batch
from cl_runner.layers.targets import Target
from cl_runner.layers.values import Retrieved, Values


class Composed:
    """The products of one target for the batch under way: y + sum_k w_k (h B_k^T) A_k."""

    def __init__(self) -> None:
        self.inward: Tensor | None = None  # [B, width_in, K * r]
        self.outward: Tensor | None = None  # [B, K * r, width_out], times the weights

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        """A forward hook of the target; hidden states are [B, T, width_in], of which T changes in decoding."""
        if self.inward is None or self.outward is None:
            return output
        return torch.baddbmm(output, torch.bmm(arguments[0], self.inward), self.outward)


class Increments(Values):
    """dW = sum_k w_k A_k^T B_k with A [r, out] and B [r, in] in every target; dW itself is never made.

    A text's factors are gathered once, and serve until the next batch: of an answer that is generated, for all its
    tokens. A begins with zeros and B with N(0, 1); there is no further scale.

    Args:
        rank: r of a slot.

    Attributes:
        greatest_rank: that an increment of every target can have.
    """

    def __init__(self, targets: Sequence[Target], rank: int):
        self.targets, self.rank = targets, rank
        self.sizes = [size * rank for target in targets for size in (target.width_out, target.width_in)]
        self.width = sum(self.sizes)
        self.greatest_rank = min(min(target.width_out, target.width_in) for target in targets)
        self.composed = [Composed() for _ in targets]

    def initial(self, slots: int, generator: torch.Generator) -> Tensor:
        """A = 0, B = N(0, 1)."""
        parts = []
        for number, size in enumerate(self.sizes):
            outward = number % 2 == 0
            parts.append(torch.zeros(slots, size) if outward else torch.randn(slots, size, generator=generator))
        return torch.cat(parts, 1)

    def attach(self, model: nn.Module) -> None:
        """Behind every target."""
        for target, composed in zip(self.targets, self.composed, strict=True):
            target.module.register_forward_hook(composed)

    def use(self, rows: Tensor, retrieved: Retrieved, batch: Batch) -> Batch:
        """Two factors for each target, the weights in the outward one."""
        examples, count = retrieved.slots.shape
        wide = count * self.rank
        weights = retrieved.weights[:, :, None, None]
        parts = rows.split(self.sizes, -1)
        for number, (target, composed) in enumerate(zip(self.targets, self.composed, strict=True)):
            outward, inward = parts[2 * number], parts[2 * number + 1]
            scaled = outward.view(examples, count, self.rank, target.width_out) * weights
            dtype = target.module.get_parameter("weight").dtype
            composed.outward = scaled.reshape(examples, wide, target.width_out).to(dtype)
            composed.inward = inward.reshape(examples, wide, target.width_in).to(dtype).transpose(1, 2)
        return batch

    def stop(self) -> None:
        for composed in self.composed:
            composed.inward = composed.outward = None
