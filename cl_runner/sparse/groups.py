"""Which tensors share a number of entries to select: a layer's, each by itself, or all of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

Scope = Literal["layer", "tensor", "global"]

_LAYER = re.compile(r"^(?:.*?\.)?(?:layers?|h|blocks?)\.\d+(?=\.)")


def layer_groups(names: Sequence[str], scope: Scope) -> dict[str, str]:
    """Group by tensor name.

    "layer": a block of the model ("bert.encoder.layer.0"), or a component beside the blocks
    ("bert.embeddings", "bert.pooler", "classifier"). "tensor": every tensor by itself. "global": all in one.
    """
    if scope == "tensor":
        return {name: name for name in names}
    if scope == "global":
        return dict.fromkeys(names, "all")
    # A component that holds blocks or embeddings is the backbone, and its parts are groups; others are heads.
    backbone = re.compile(rf"{_LAYER.pattern}|^[^.]+\.embeddings\.")
    roots = {name.partition(".")[0] for name in names if backbone.match(name)}
    groups = {}
    for name in names:
        block = _LAYER.match(name)
        path = name.split(".")[:-1] or [name]
        groups[name] = block.group() if block else ".".join(path[: 2 if path[0] in roots else 1])
    return groups


def blocks(names: Sequence[str]) -> dict[str, list[str]]:
    """The blocks of each stack ("bert.encoder.layer"), in the order of their names: an encoder's, a decoder's."""
    stacks: dict[str, list[str]] = {}
    for name in names:
        found = _LAYER.match(name)
        if found:
            stack = stacks.setdefault(found.group().rpartition(".")[0], [])
            if found.group() not in stack:
                stack.append(found.group())
    return stacks


def group_sizes(sizes: Mapping[str, int], groups: Mapping[str, str]) -> dict[str, int]:
    """Number of entries by group, in the order of `sizes`."""
    entries: dict[str, int] = {}
    for name, size in sizes.items():
        entries[groups[name]] = entries.get(groups[name], 0) + size
    return entries
