"""How a comparison of two texts becomes a metric, and how answers are scored by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from cl_runner.config import Bertscore
from cl_runner.data.example import Example
from cl_runner.registry import find, load

#: Of a generated text and its example: whether a metric has read what it reads, so that more text changes nothing.
Read = Callable[[str, Example], bool]
#: Predictions and their examples -> percent of each.
Metric = Callable[[Sequence[str], Sequence[Example]], list[float]]


def per_example(compare: Callable[[str, Example], float]) -> Metric:
    """The metric that compares (prediction, example) one by one; an empty prediction gets 0.

    Args:
        compare: a share between 0 and 1, or whether they agree.
    """

    @functools.wraps(compare)
    def of_words(prediction: str, example: Example) -> float:
        return compare(prediction, example) if prediction.strip() else 0.0

    return as_they_are(of_words)


def as_they_are(compare: Callable[[str, Example], float]) -> Metric:
    """As `per_example`, of empty predictions and white space too: what a release makes of them."""

    @functools.wraps(compare)
    def metric(predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return [100.0 * compare(prediction, example) for prediction, example in zip(predictions, examples, strict=True)]

    return metric


def reading(read: Read) -> Callable[[Metric], Metric]:
    """Marks a metric that reads the beginning of an answer alone."""

    def mark(metric: Metric) -> Metric:
        metric.read = read  # type: ignore[attr-defined]  # functions take attributes
        return metric

    return mark


def reads_of(names: Sequence[str]) -> tuple[Read, ...]:
    """When the metrics of a task have read what they read; empty if one of them reads whole answers."""
    found = [getattr(load(find("metrics", name)), "read", None) for name in names]
    return tuple(read for read in found if read is not None) if None not in found else ()


def harmonic(precision: float, recall: float) -> float:
    """F1: the harmonic mean; 0 where both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def score(
    name: str, predictions: Sequence[str], examples: Sequence[Example], bertscore: Bertscore | None
) -> list[float]:
    """Percent of each example by the metric `name`.

    Args:
        name: a built-in metric, an installed one, or the dotted path of a function from predictions and examples to
            percent of each.
        predictions: what the model answered, in the order of `examples`; an empty text scores 0, but by the
            metrics of a release that score what was generated as it is what that release gives it.
        bertscore: the encoder of the built-in metrics with that name; needed for them only.

    Raises:
        ValueError: BERTScore's encoder cannot be loaded, or a metric of the user's own gives other than a number for
            each example.
    """
    place = find("metrics", name)
    compute = load(place)
    if place.module == "cl_runner.metrics.bertscore":
        return list(compute(predictions, examples, bertscore))
    values = [float(value) for value in compute(predictions, examples)]
    if len(values) != len(examples):
        raise ValueError(f"the metric {name} gave {len(values)} numbers for {len(examples)} examples")
    return values
