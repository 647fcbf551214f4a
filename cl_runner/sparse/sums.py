"""The sums of one parameter's gradients and of their squares, as importance adds them up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Total:
    """The sums of one parameter.

    Args:
        host: keep them in main memory, and hand out temporary ones on the parameter's device.
    """

    def __init__(self, parameter: Tensor, gradient: bool, dtype: torch.dtype, host: bool):
        self._shape = parameter.shape
        self._device = parameter.device
        self._host = host
        home = torch.device("cpu") if host else parameter.device
        self.fisher = torch.zeros(self._shape, dtype=dtype, device=home)
        self.gradient = torch.zeros_like(self.fisher) if gradient else None

    @contextmanager
    def opened(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """F and G on the parameter's device, to add to in place."""
        if not self._host:
            yield self.fisher, self.gradient
            return
        fisher = torch.zeros(self._shape, device=self._device)
        gradient = None if self.gradient is None else torch.zeros_like(fisher)
        yield fisher, gradient
        self.fisher.add_(brought(fisher, self.fisher.device))
        if self.gradient is not None and gradient is not None:
            self.gradient.add_(brought(gradient, self.gradient.device))

    def add(self, gradient: Tensor) -> None:
        """One unit's gradient, in any precision."""
        if gradient.device != self.fisher.device:
            # Squared where it is: a processor multiplies bf16 into fp32 twelve times as slowly as it adds fp32.
            gradient = gradient.to(self.fisher.dtype)
            if self.gradient is not None:
                self.gradient.add_(brought(gradient, self.fisher.device))
            self.fisher.add_(brought(gradient.square(), self.fisher.device))
            return
        if self.gradient is not None:
            self.gradient.add_(gradient)
        if self.fisher.dtype == torch.float32:
            self.fisher.addcmul_(gradient, gradient)  # multiplied in fp32, even a bf16 gradient
        else:
            self.fisher.add_(gradient.to(self.fisher.dtype).square())

    def difference(self, gradient: Tensor, times: int) -> float:
        """Largest |F - times * gradient^2|; F is used up."""
        gradient = brought(gradient, self.fisher.device).float()
        return largest_of(self.fisher.addcmul_(gradient, gradient, value=-times))

    def sums(self) -> list[Tensor]:
        """What was added up so far."""
        return [self.fisher] if self.gradient is None else [self.fisher, self.gradient]

    def clear(self) -> None:
        """Back to zero."""
        self.fisher.zero_()
        if self.gradient is not None:
            self.gradient.zero_()

    def check(self, name: str) -> None:
        """Refuse NaN and infinity."""
        for total, what in ((self.fisher, "squared gradients"), (self.gradient, "gradients")):
            if total is not None and not math.isfinite(largest_of(total)):
                raise ValueError(
                    f"the sum of {what} of {name} is not finite: weights or loss have overflowed. "
                    "Lower the learning rate of the tasks before, or use precision fp32"
                )

    def cut(self, of: Callable[[Tensor], Tensor]) -> None:
        """Keep a part of the sums."""
        self.fisher = of(self.fisher)
        if self.gradient is not None:
            self.gradient = of(self.gradient)

    def to_host(self) -> None:
        """Move the sums to main memory, and not to page-locked memory, which takes longer to get than to fill."""
        self.cut(Tensor.cpu)


def brought(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, complete on return."""
    if tensor.device == device:
        return tensor
    # Page-locked memory is several times faster to copy to; torch reuses it. The copy blocks on purpose: whoever
    # reads it on the CPU reads all of it.
    return torch.empty_like(tensor, device=device, pin_memory=tensor.is_cuda).copy_(tensor)


def largest_of(values: Tensor) -> float:
    """Largest magnitude; NaN if there is one."""
    if not values.numel():
        return 0.0
    low, high = values.aminmax()
    return float(torch.maximum(high, -low))
