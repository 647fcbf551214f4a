"""Whether a text has the form of an answer at all: what a metric looks for stands in it, right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cl_runner.metrics.simple import number_in, option_in
from cl_runner.metrics.tool_calls import calls_in

#: Metric -> whether it finds in a prediction what it compares; of other metrics every text that is not empty has it.
FORMS: Mapping[str, Callable[[str], bool]] = {
    "first_letter": lambda text: bool(option_in(text)),
    "number": lambda text: number_in(text) is not None,
    "tool_call": lambda text: bool(calls_in(text)),
}


def has_form(metric: str, prediction: str, answer: str) -> bool:
    """Whether a metric finds in a prediction what it could compare with the answer.

    Args:
        metric: its name.
        answer: the right one; a form that it does not have itself is not asked of predictions.
    """
    found = FORMS.get(metric)
    if not prediction.strip():
        return False
    return found is None or not found(answer) or found(prediction)
