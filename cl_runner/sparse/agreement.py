"""What a measurement of importance checks: that losses are finite, and that rules give what plain backward gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def finite(loss: Tensor, before: int, size: int) -> Tensor:
    """The loss of so many examples after so many."""
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            f"the loss is {loss.item():g} among examples {before + 1} to {before + size} of the importance pass: the "
            "weights have overflowed, or an example is broken"
        )
    return loss


def disagreeing(largest: Mapping[str, float], differences: Mapping[str, float], coarse: bool) -> set[str]:
    """Names whose sums are not those of plain backward."""
    # A wrong rule is wrong by about the value itself; bf16 activations differ by some percent with the batch size.
    # Gradients that are zero but for rounding (the key's bias cancels in the softmax) may differ by all of it.
    relative, absolute = (1e-1, 1e-4) if coarse else (1e-2, 1e-10)
    most = max(largest.values(), default=0.0)
    return {name for name in largest if not differences[name] <= relative * largest[name] + absolute * most}
