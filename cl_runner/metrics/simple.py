"""Metrics that compare an answer as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from cl_runner.data.example import Example


def accuracy(predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """100 where the answer is predicted exactly."""
    return [100.0 * (p.strip() == e.answer.strip()) for p, e in zip(predictions, examples, strict=True)]
