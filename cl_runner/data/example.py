"""One example: a text and its answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A text and what a model should answer."""

    prompt: str  # the input text
    answer: str  # the label's name
    domain: str = ""
