"""What the gradient of selected entries costs by strategy: calibrates `MULTIPLY_ADD` and shows the crossover density.

For one linear layer: seconds of the gathered products, of the thin product and of the dense gradient, and the cost of
one multiply-add of a thin product in units of one gathered product. Then the same layer with a random selection of
0.01 to 30 %: the time of what `plan_products` chooses against the dense gradient.

    python scripts/bench/sparse_products.py [--device cuda --dtype bfloat16]
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import torch
from harness import arguments, interleaved, keep, ratio, show
from torch import Tensor

from cl_runner.sparse import layers
from cl_runner.sparse.layers import plan_products, selected_gradient

DENSITIES = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def dense(gradient: Tensor, inputs: Tensor, index: Tensor) -> Tensor:
    """The whole gradient, gathered."""
    return (gradient.t() @ inputs).view(-1)[index]


def calibrate(gradient: Tensor, inputs: Tensor, repeats: int) -> float:
    """Seconds of a multiply-add of a thin product of 16 columns, by seconds of a gathered product of 512 entries."""
    outputs, features = gradient.shape[1], inputs.shape[1]
    chosen = torch.randperm(outputs * features)[:512].sort().values.to(inputs.device)
    columns = torch.arange(0, 16 * 7, 7, device=inputs.device)
    block = (columns.view(-1, 1) + torch.arange(outputs, device=inputs.device) * features).view(-1).sort().values
    work = {}
    for name, unit, index in (("gathered", 1e9, chosen), ("thin", 1e-9, block)):
        layers.MULTIPLY_ADD[inputs.device.type] = unit
        plan = plan_products(index // features, index % features, outputs, features, inputs.device.type)
        kept = inputs if plan.columns is None else inputs.index_select(1, plan.columns)
        work[name] = functools.partial(selected_gradient, plan, kept, gradient, torch.float32)
    seconds = interleaved(work, repeats)
    thin = statistics.median(seconds["thin"]) / (16 * outputs)
    gathered = statistics.median(seconds["gathered"]) / 512
    return thin / gathered


def main() -> None:
    given = arguments(__doc__ or "", tokens=2048, device="cpu", dtype="float32")
    kind = getattr(torch, given.dtype)
    torch.manual_seed(0)
    shapes = [(384, 384), (1536, 384), (384, 1536)] if given.device == "cpu" else [(4096, 4096), (11008, 4096)]
    default = layers.MULTIPLY_ADD[given.device]
    results: dict[str, object] = {}
    rows = []
    for outputs, features in shapes:
        gradient = torch.randn(given.tokens, outputs, device=given.device, dtype=kind)
        inputs = torch.randn(given.tokens, features, device=given.device, dtype=kind)
        unit = calibrate(gradient, inputs, given.repeats)
        layers.MULTIPLY_ADD[given.device] = default
        found = {}
        for density in DENSITIES:
            count = max(1, round(density * outputs * features))
            index = torch.randperm(outputs * features)[:count].sort().values.to(given.device)
            plan = plan_products(index // features, index % features, outputs, features, given.device)
            kept = inputs if plan.columns is None else inputs.index_select(1, plan.columns)

            work: dict[str, Callable[[], object]] = {
                "chosen": functools.partial(selected_gradient, plan, kept, gradient, torch.float32),
                "dense": functools.partial(dense, gradient, inputs, index),
            }
            seconds = interleaved(work, given.repeats)
            middle, low, high = ratio(seconds["chosen"], seconds["dense"])
            found[str(density)] = {"kind": plan.kind, "ratio_to_dense": [middle, low, high]}
            rows.append(
                [f"{outputs} x {features}", f"{density:.2%}", plan.kind, f"{middle:.3f} [{low:.3f}, {high:.3f}]"]
            )
        results[f"{outputs}x{features}"] = {"one_gathered_product_in_multiply_adds": 1 / unit, "densities": found}
        rows.append([f"{outputs} x {features}", "", "one gathered product", f"= {1 / unit:.0f} multiply-adds"])
    show(f"{given.tokens} positions on {given.device}", ("layer", "density", "strategy", "x dense gradient"), rows)
    keep(given.output, results)


if __name__ == "__main__":
    main()
