"""How fast a device is: a calibration of a few tenths of a second, or a past run of the same kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from cl_runner.planning.alike import Cost
from cl_runner.planning.imitation import Ledger

#: Share of the calibrated rates that whole passes reach where no sample tells. Measured on MiniLM: 0.6 to 0.85.
EFFICIENCY = 0.7
#: Width and rows from which on a CPU's products are no quicker; larger ones take minutes where it has no bf16.
CPU_WIDEST = 1024
#: Seconds of one measure at most, but for the try that passes them.
LONGEST = 0.5
#: Seconds of one at least.
SHORTEST = 2e-4
#: Bytes that no cache of a processor's core holds.
UNCACHED = 1 << 26


@dataclass(frozen=True)
class Speed:
    """Rates; a pass takes the sum of its products, its other traffic and its kernels' starts.

    Attributes:
        bytes_per_second: of what a pass has just written, which mostly lies in a cache.
        streamed_per_second: of what is read and written once in a while, such as all weights; None = the same.
        seconds_per_token: of a batch that is generated, beside its pass.
        reached: shares of the rates that passes reach, by kind: train, importance, read, token; of others EFFICIENCY.
            None = all of them reach the whole.
        untimed: why no sample told the shares, if none could.
    """

    flops_per_second: float
    bytes_per_second: float
    seconds_per_operation: float
    streamed_per_second: float | None = None
    seconds_per_token: float = 0.0
    reached: Mapping[str, float] | None = None
    untimed: str | None = None

    @property
    def streams(self) -> float:
        """Bytes per second of what no cache holds."""
        return self.bytes_per_second if self.streamed_per_second is None else self.streamed_per_second

    def seconds(self, cost: Cost, share: float = 1.0, kind: str = "") -> float:
        """Seconds of a pass, or of one with only `share` of its positions."""
        return (
            share * (cost.flops / self.flops_per_second + cost.moved_bytes / self.bytes_per_second)
            + cost.operations * self.seconds_per_operation
        ) / self.share(kind)

    def share(self, kind: str) -> float:
        """Of the rates, that passes of a kind reach."""
        return 1.0 if self.reached is None else self.reached.get(kind, EFFICIENCY)

    def __str__(self) -> str:
        said = (
            f"{self.flops_per_second / 1e9:,.0f} GFLOP/s, {self.bytes_per_second / 1e9:,.1f} GB/s "
            f"({self.streams / 1e9:,.1f} beyond the caches), {1e6 * self.seconds_per_operation:,.0f} µs per operation"
        )
        if not self.reached:
            why = f" (few layers of the architecture could not be timed: {self.untimed})" if self.untimed else ""
            return f"{said}; {100 * EFFICIENCY:.0f} % of it reached{why}"
        return f"{said}; reached: " + ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in self.reached.items())


def calibrate(hidden: int, rows: int, dtype: torch.dtype, device: torch.device, weight_bytes: int = UNCACHED) -> Speed:
    """Measure the rates with products and sums of the model's own size.

    Args:
        hidden: width of the model.
        rows: positions of a batch.
        dtype: of the products.
        weight_bytes: of the model.
    """
    rows = min(rows, 2048)
    if device.type == "cpu":
        hidden, rows = min(hidden, CPU_WIDEST), min(rows, CPU_WIDEST)
    a = torch.randn(rows, hidden, device=device, dtype=dtype)
    b = torch.randn(hidden, hidden, device=device, dtype=dtype)
    product = torch.empty(rows, hidden, device=device, dtype=dtype)
    flops = 2 * rows * hidden * hidden / _quickest(lambda: torch.mm(a, b, out=product), device)
    values = torch.randn(rows, hidden, device=device)
    # A pass allocates its results anew, so this does too.
    moved = 3 * values.numel() * 4 / _quickest(lambda: values + values, device)
    weights = torch.ones(max(1, min(UNCACHED, weight_bytes) // 4), device=device)
    streamed = 4 * weights.numel() / _quickest(lambda: torch.dot(weights, weights), device)
    block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()).to(device)
    small = torch.randn(2, 8, device=device, requires_grad=True)

    def step() -> None:
        block(small).sum().backward()

    with Ledger() as ledger:
        step()
    return Speed(flops, moved, _quickest(step, device) / ledger.operations, streamed, reached={})


def now(device: torch.device) -> float:
    """Seconds; on a CPU of this thread, which other work does not lengthen, and which does its share where it is one
    of several."""
    return time.perf_counter() if device.type == "cuda" else time.thread_time()


def _quickest(work: Callable[[], object], device: torch.device) -> float:
    """The least seconds of `work` within a few hundredths of a second: three times, or what `LONGEST` has room for.

    Quick work is done so often in a row that no clock is too coarse for it.
    """
    taken: list[float] = []
    times = 1
    began = now(device)
    work()
    while not taken or now(device) - began < (LONGEST if len(taken) < 3 else 0.03):
        start = now(device)
        for _ in range(times):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = now(device) - start
        if seconds < SHORTEST:
            times *= 2
        else:
            taken.append(seconds / times)
    return min(taken)
