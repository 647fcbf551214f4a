"""Scores of answers, one number in percent for each example, each named by its definition. Nothing here needs torch
but BERTScore."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cl_runner.data.example import Example

if TYPE_CHECKING:
    from cl_runner.config import Bertscore

#: name -> file:function, what it computes, and its source.
DEFINITIONS: dict[str, tuple[str, str]] = {
    "accuracy": ("simple:accuracy", "the answer exactly, white space around it aside"),
}


def score(name: str, predictions: Sequence[str], examples: Sequence[Example], bertscore: Bertscore) -> list[float]:
    """Percent of each example by the metric `name`.

    Args:
        predictions: what the model answered, in the order of `examples`; may be empty texts.
        bertscore: the encoder of that metric.
    """
    module, _, function = DEFINITIONS[name][0].partition(":")
    compute = getattr(importlib.import_module(f"cl_runner.metrics.{module}"), function)
    values: list[float] = (
        compute(predictions, examples, bertscore) if name == "bertscore" else compute(predictions, examples)
    )
    return values
