"""Importance in small: its mean by layer and module (PE figure 4), and the share of exact zeros by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_runner.sparse.groups import layer_groups

#: (module, which parts of a parameter's dotted name say so); the first that fits wins.
#: In order: BERT and RoBERTa, LLaMA, Qwen and Gemma, GPT-2, T5. Self- and cross-attention count together.
MODULES = tuple(
    (module, re.compile(rf"(?:^|\.)(?:{parts})\."))
    for module, parts in (
        ("layer_norm", r"LayerNorm|\w*norm|ln_\w+"),
        ("embeddings", r"embeddings|embed_tokens|wte|wpe|shared|relative_attention_bias"),
        ("pooler", r"pooler"),
        ("classifier", r"classifier|score|classification_head"),
        ("lm_head", r"lm_head"),
        ("query", r"query|q_proj|q"),
        ("key", r"key|k_proj|k"),
        ("value", r"value|v_proj|v"),
        ("query_key_value", r"attn\.c_attn"),
        ("attention_output", r"attention\.output|o_proj|attn\.c_proj|o"),
        ("ffn_gate", r"gate_proj|wi_0"),
        ("ffn_input", r"intermediate|up_proj|mlp\.c_fc|wi|wi_1"),
        ("ffn_output", r"output|down_proj|mlp\.c_proj|wo"),
    )
)


def module_of(name: str) -> str:
    """The kind of module a parameter belongs to, by its full name; "other" for families not listed."""
    return next((module for module, parts in MODULES if parts.search(name)), "other")


def fisher_map(sums: Mapping[str, Tensor], units: int) -> list[dict[str, Any]]:
    """Mean Fisher, its log10 and the share of zeros for every (layer, module), in the model's order.

    Args:
        sums: of squared gradients, by parameter name.
        units: number of gradients.
    """
    groups = layer_groups(list(sums), "layer")
    cells: dict[tuple[str, str], list[float]] = {}  # sum, zeros, entries
    for name in sums:
        score = sums[name]
        cell = cells.setdefault((groups[name], module_of(name)), [0.0, 0, 0])
        cell[0] += float(score.sum(dtype=torch.float64))
        cell[1] += int((score == 0).sum())
        cell[2] += score.numel()
    rows = []
    for (layer, module), (total, zeros, entries) in cells.items():
        mean = total / entries / units
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
    return zero_fraction(scores, layer_groups(list(scores), "layer"))


def zero_fraction(scores: Mapping[str, Tensor], groups: Mapping[str, str]) -> dict[str, float]:
    """Share of entries whose score is exactly 0, by group, in the order of `scores`, each asked for once."""
    zeros: dict[str, int] = {}
    entries: dict[str, int] = {}
    for name in scores:
        group = groups[name]
        size, empty = _zeros(scores[name])
        zeros[group] = zeros.get(group, 0) + empty
        entries[group] = entries.get(group, 0) + size
    return {group: zeros[group] / entries[group] for group in entries if entries[group]}


def _zeros(scores: Tensor) -> tuple[int, int]:
    """Number of entries, and of those that are exactly 0."""
    return scores.numel(), scores.numel() - int(torch.count_nonzero(scores))
