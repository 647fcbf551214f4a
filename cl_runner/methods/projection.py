"""Gradients of what trains as vectors: products, and sums of them, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cl_runner.learner import Learner

Gradient = Mapping[str, Tensor]


def now(learner: Learner) -> Gradient:
    """The gradient of the step under way; 0 where there is none."""
    return {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in learner.trained.items()}


def product(left: Gradient, right: Gradient) -> float:
    """<left, right> over all tensors that both have."""
    both = [name for name in left if name in right]
    return float(sum(left[name].flatten().double() @ right[name].flatten().double() for name in both))


@torch.no_grad()
def add(learner: Learner, gradients: Sequence[Gradient], weights: Sequence[float]) -> None:
    """Add these multiples of gradients to that of the step under way."""
    for name, values in learner.trained.items():
        for gradient, weight in zip(gradients, weights, strict=True):
            if weight == 0 or name not in gradient:
                continue
            if values.grad is None:
                values.grad = torch.zeros_like(values)
            values.grad.add_(gradient[name].to(values.grad.dtype), alpha=weight)
