"""Where the selected entries lie, by layer and module (PIECE, figure 3), and what tasks share of them (figure 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_runner.sparse.groups import layer_groups
from cl_runner.sparse.summary import module_of


def places(indices: Mapping[str, Tensor], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Selected entries of every (layer, module): rows of layer, module, selected, parameters, in the model's order.

    Args:
        indices: flat positions by tensor name; a tensor that is not named has none.
        sizes: entries of every tensor that was selected from, in the model's order.
    """
    groups = layer_groups(list(sizes), "layer")
    cells: dict[tuple[str, str], list[int]] = {}
    for name, size in sizes.items():
        cell = cells.setdefault((groups[name], module_of(name)), [0, 0])
        cell[0] += indices[name].numel() if name in indices else 0
        cell[1] += size
    return [
        {"layer": layer, "module": module, "selected": selected, "parameters": parameters}
        for (layer, module), (selected, parameters) in cells.items()
    ]


def overlap(a: Mapping[str, Tensor], b: Mapping[str, Tensor], groups: Mapping[str, str]) -> dict[str, Any]:
    """Jaccard index |A and B| / |A or B| of two selections: {"all": over the model, "layers": by layer}.

    Layers in which neither selects anything have none.

    Args:
        a, b: sorted flat positions without repetition by tensor name; together at least one.
        groups: layer by tensor name, in the model's order.
    """
    shared: dict[str, int] = {}
    entries: dict[str, int] = {}
    for name, group in groups.items():
        parts = [selection[name] for selection in (a, b) if name in selection]
        entries[group] = entries.get(group, 0) + sum(part.numel() for part in parts)
        shared[group] = shared.get(group, 0) + (_common(*parts) if len(parts) == 2 else 0)
    both, total = sum(shared.values()), sum(entries.values())
    assert total == sum(part.numel() for part in [*a.values(), *b.values()]) > 0, "a tensor outside the groups, or none"
    # Of |A| + |B| entries those in both are counted twice.
    layers = {group: shared[group] / (count - shared[group]) for group, count in entries.items() if count}
    return {"all": both / (total - both), "layers": layers}


def describe_masks(
    task: str,
    indices: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    earlier: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """One task's entry of masks.json: {"task", "cells": of `places`, "overlap": {earlier task: of `overlap`}}.

    Args:
        indices: the task's selected positions by tensor name, sorted.
        sizes: entries of every tensor that was selected from, in the model's order.
        earlier: the selections of earlier tasks by task name.
    """
    groups = layer_groups(list(sizes), "layer")
    return {
        "task": task,
        "cells": places(indices, sizes),
        "overlap": {other: overlap(selection, indices, groups) for other, selection in earlier.items()},
    }


def _common(a: Tensor, b: Tensor) -> int:
    """Number of positions in both of two sorted lists, neither with repetitions."""
    few, many = sorted((a, b), key=Tensor.numel)
    if not few.numel():
        return 0
    # Where each of the few would stand among the many; behind the last there is nothing to compare with.
    found = torch.searchsorted(many, few).clamp_(max=many.numel() - 1)
    return int((many[found] == few).sum())
