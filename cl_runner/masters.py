"""fp32 copies of half-precision weights that train whole: bf16 alone rounds most small steps away."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class Masters:
    """What the optimizer holds in place of half-precision parameters; fp32 ones are held as they are.

    Args:
        weights: the parameters that train, by name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self._low = {name: weight for name, weight in weights.items() if weight.dtype.itemsize < 4}
        self.parameters = {
            name: nn.Parameter(weight.detach().float()) if name in self._low else weight
            for name, weight in weights.items()
        }
        self._hooks = [
            weight.register_post_accumulate_grad_hook(self._collect(name)) for name, weight in self._low.items()
        ]

    def _collect(self, name: str) -> Callable[[Tensor], None]:
        master = self.parameters[name]

        def collect(weight: Tensor) -> None:
            assert weight.grad is not None
            gradient = weight.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            weight.grad = None

        return collect

    @torch.no_grad()
    def write_through(self) -> None:
        """Round the copies into the model's own tensors, after an optimizer step."""
        for name, weight in self._low.items():
            weight.copy_(self.parameters[name])

    def release(self) -> None:
        """Let go of the model."""
        for hook in self._hooks:
            hook.remove()
