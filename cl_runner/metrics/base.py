"""How a comparison of two texts becomes a metric."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from cl_runner.data.example import Example

#: Predictions and their examples -> percent of each.
Metric = Callable[[Sequence[str], Sequence[Example]], list[float]]


def per_example(compare: Callable[[str, Example], float]) -> Metric:
    """The metric that compares (prediction, example) one by one; an empty prediction gets 0.

    Args:
        compare: a share between 0 and 1, or whether they agree.
    """

    @functools.wraps(compare)
    def metric(predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return [
            100.0 * compare(prediction, example) if prediction.strip() else 0.0
            for prediction, example in zip(predictions, examples, strict=True)
        ]

    return metric


def harmonic(precision: float, recall: float) -> float:
    """F1: the harmonic mean; 0 where both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
