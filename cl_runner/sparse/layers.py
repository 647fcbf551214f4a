"""Training only selected entries of a model's weights, as compact vectors of values that any optimizer can hold.

The optimizer never sees the other entries, so neither its moments nor weight decay nor clipping can touch them: they
stay bitwise what they were.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class CompactValues:
    """The selected entries of some tensors as fp32 parameters of their own, one vector per tensor.

    A tensor's full gradient is gathered at the selected positions as soon as backward has made it, and freed, so at
    most one full gradient exists at a time.

    Args:
        weights: the model's parameters by name; those without selected entries do not train.
        indices: sorted flat positions by tensor name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], indices: Mapping[str, Tensor]):
        self._weights = {name: weights[name] for name in indices}
        self._indices = {name: index.to(weights[name].device) for name, index in indices.items()}
        self.parameters = {
            name: nn.Parameter(weight.detach().view(-1)[self._indices[name]].float())
            for name, weight in self._weights.items()
        }
        for name, weight in weights.items():
            weight.requires_grad_(name in indices)
        self._hooks = [
            weight.register_post_accumulate_grad_hook(self._gather(name)) for name, weight in self._weights.items()
        ]

    def _gather(self, name: str):  # type: ignore[no-untyped-def]  # torch's hook type is the tensor's own
        index, values = self._indices[name], self.parameters[name]

        def gather(weight: Tensor) -> None:
            assert weight.grad is not None
            gradient = weight.grad.view(-1)[index].float()
            values.grad = gradient if values.grad is None else values.grad.add_(gradient)
            weight.grad = None

        return gather

    @torch.no_grad()
    def write_through(self) -> None:
        """Copy the values into the model's own tensors, after an optimizer step."""
        for name, weight in self._weights.items():
            weight.view(-1)[self._indices[name]] = self.parameters[name].to(weight.dtype)

    def release(self) -> None:
        """Remove the hooks; the model keeps the last values written through."""
        for hook in self._hooks:
            hook.remove()
