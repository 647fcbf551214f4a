"""How fast a device is: a calibration of a few tenths of a second, or a past run of the same kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from cl_runner.planning.alike import Cost
from cl_runner.planning.imitation import Ledger

#: Share of the calibrated rates that whole passes reach: operands come from memory, not from a warm cache. Measured on
#: MiniLM: 0.6 to 0.85.
EFFICIENCY = 0.7


@dataclass(frozen=True)
class Speed:
    """Three rates; a pass takes the sum of its products, its other traffic and its kernels' starts."""

    flops_per_second: float
    bytes_per_second: float
    seconds_per_operation: float

    @property
    def useful(self) -> Speed:
        """The rates that a whole pass reaches."""
        return Speed(
            EFFICIENCY * self.flops_per_second,
            EFFICIENCY * self.bytes_per_second,
            self.seconds_per_operation / EFFICIENCY,
        )

    def seconds(self, cost: Cost, share: float = 1.0) -> float:
        """Seconds of a pass, or of one with only `share` of its positions."""
        return (
            share * (cost.flops / self.flops_per_second + cost.moved_bytes / self.bytes_per_second)
            + cost.operations * self.seconds_per_operation
        )

    def __str__(self) -> str:
        return (
            f"{self.flops_per_second / 1e9:,.0f} GFLOP/s, {self.bytes_per_second / 1e9:,.1f} GB/s, "
            f"{1e6 * self.seconds_per_operation:,.0f} µs per operation; {100 * EFFICIENCY:.0f} % of it reached"
        )


def calibrate(hidden: int, rows: int, dtype: torch.dtype, device: torch.device) -> Speed:
    """Measure the rates with products and sums of the model's own size.

    Args:
        hidden: width of the model.
        rows: positions of a batch.
        dtype: of the products.
    """
    rows = min(rows, 2048)
    a = torch.randn(rows, hidden, device=device, dtype=dtype)
    b = torch.randn(hidden, hidden, device=device, dtype=dtype)
    product = torch.empty(rows, hidden, device=device, dtype=dtype)
    flops = 2 * rows * hidden * hidden / _quickest(lambda: torch.mm(a, b, out=product), device)
    values = torch.randn(rows, hidden, device=device)
    # A pass allocates its results anew, so this does too.
    moved = 3 * values.numel() * 4 / _quickest(lambda: values + values, device)
    block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()).to(device)
    small = torch.randn(2, 8, device=device, requires_grad=True)

    def step() -> None:
        block(small).sum().backward()

    with Ledger() as ledger:
        step()
    return Speed(flops, moved, _quickest(step, device) / ledger.operations)


def _quickest(work: Callable[[], object], device: torch.device) -> float:
    """The least seconds of `work` within a tenth of a second, at least three times."""
    taken: list[float] = []
    began = time.perf_counter()
    work()
    while len(taken) < 3 or time.perf_counter() - began < 0.1:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)
