"""Importance in small: its mean by layer and module (PE figure 4), and the share of exact zeros by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from cl_runner.sparse.selection import layer_groups, zero_fraction

#: (part of a parameter's name, module); the first that fits wins.
MODULES = (
    ("LayerNorm", "layer_norm"),
    ("embeddings", "embeddings"),
    ("pooler", "pooler"),
    ("classifier", "classifier"),
    ("query", "query"),
    ("key", "key"),
    ("value", "value"),
    ("attention.output", "attention_output"),
    ("intermediate", "ffn_input"),
    ("output", "ffn_output"),
)


def module_of(name: str) -> str:
    """The kind of module a parameter belongs to."""
    return next((module for part, module in MODULES if part in name), "other")


def fisher_map(scores: Mapping[str, Tensor]) -> list[dict[str, str | float | int | None]]:
    """Mean score, its log10 and the share of zeros for every (layer, module), in the model's order."""
    groups = layer_groups(list(scores), "layer")
    cells: dict[tuple[str, str], list[Tensor]] = {}
    for name, score in scores.items():
        cells.setdefault((groups[name], module_of(name)), []).append(score)
    rows: list[dict[str, str | float | int | None]] = []
    for (layer, module), parts in cells.items():
        entries = sum(part.numel() for part in parts)
        mean = float(sum(float(part.double().sum()) for part in parts)) / entries
        zeros = sum(int((part == 0).sum()) for part in parts)
        rows.append(
            {
                "layer": layer,
                "module": module,
                "mean": mean,
                "log10_mean": math.log10(mean) if mean > 0 else None,
                "zero_fraction": zeros / entries,
                "parameters": entries,
            }
        )
    return rows


def zero_fractions(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of entries with a score of exactly 0, by layer."""
    return zero_fraction(dict(scores), layer_groups(list(scores), "layer"))
