"""fp32 copies of weights that train whole: bf16 alone rounds most small steps away, and a GPU has little room.

Copies in main memory (hardware.offload=optimizer) have their gradients and the optimizer's state there as well, and
steps are computed there (as in ZeRO-Offload, Ren et al. 2021): the device holds weights and one gradient at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def hand_on_gradient(weight: nn.Parameter, holder: nn.Parameter, index: Tensor | None = None) -> RemovableHandle:
    """From now on backward adds the gradient of `weight` to that of `holder`, in its type and place, and frees it.

    So at most one full gradient exists at a time.

    Args:
        index: flat positions of the entries that `holder` stands for; None = all.
    """

    def hand_on(weight: Tensor) -> None:
        assert weight.grad is not None
        part = weight.grad if index is None else weight.grad.view(-1)[index]
        gradient = part.to(holder.device).to(holder.dtype)  # moved as it is, which is the smaller
        holder.grad = gradient if holder.grad is None else holder.grad.add_(gradient)
        weight.grad = None

    return weight.register_post_accumulate_grad_hook(hand_on)


class Masters:
    """What the optimizer holds in place of half-precision parameters; fp32 ones are held as they are.

    Args:
        weights: the parameters that train, by name.
        apart: names of those whose gradients backward leaves elsewhere.
        device: where everything that is held lies; None = each where its weight is.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], apart: Collection[str] = (), device: torch.device | None = None
    ):
        self._copied = {
            name: weight
            for name, weight in weights.items()
            if weight.dtype.itemsize < 4 or weight.device != (device or weight.device)
        }
        self.parameters = {
            name: nn.Parameter(weight.detach().to(device or weight.device, torch.float32))
            if name in self._copied
            else weight
            for name, weight in weights.items()
        }
        handed = {name: weight for name, weight in self._copied.items() if name not in apart}
        self._hooks = [hand_on_gradient(weight, self.parameters[name]) for name, weight in handed.items()]

    @torch.no_grad()
    def write_through(self) -> None:
        """Round the copies into the model's own tensors, after an optimizer step."""
        for name, weight in self._copied.items():
            weight.copy_(self.parameters[name])

    def release(self) -> None:
        """Let go of the model."""
        for hook in self._hooks:
            hook.remove()
