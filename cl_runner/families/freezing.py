"""Weights that never train, such as a vision tower's: a backbone names them, who lets weights train asks here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cl_runner.patterns import match

_MARK = "frozen_weights"


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Mark the parameters that never train, and begin with it.

    Args:
        patterns: of names in `model.named_parameters()`, as those of file names: * ? [abc].

    Raises:
        ValueError: a pattern fits no name.
    """
    names = [name for name, _ in model.named_parameters()]
    try:
        marked = match(names, patterns, []) if patterns else []
    except ValueError as error:
        raise ValueError(f"backbone.frozen: {error}") from None
    vars(model)[_MARK] = frozenset(marked)
    for name in marked:
        model.get_parameter(name).requires_grad_(False)


def frozen(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that never train."""
    names: frozenset[str] = vars(model).get(_MARK, frozenset())
    return names
