"""Which entries of the weights learn a task: an exact share of every group, by score or at random."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["layer", "tensor", "global"]

_LAYER = re.compile(r"^(?:.*?\.)?(?:layers?|h|blocks?)\.\d+(?=\.)")


@dataclass(frozen=True)
class Selection:
    """Selected entries.

    Attributes:
        indices: sorted int64 flat positions on the CPU by tensor name; only tensors with at least one.
        sizes: number of entries of every tensor that was selected from, by name.
    """

    indices: dict[str, Tensor]
    sizes: dict[str, int]

    @property
    def count(self) -> int:
        """Number of selected entries."""
        return sum(index.numel() for index in self.indices.values())

    @property
    def fraction(self) -> float:
        """Selected entries per entry."""
        return self.count / sum(self.sizes.values())

    def digest(self) -> str:
        """SHA-256 of names, sizes and positions."""
        digest = hashlib.sha256()
        for name in sorted(self.sizes):
            index = self.indices.get(name, torch.empty(0, dtype=torch.int64))
            digest.update(f"{name}\0{self.sizes[name]}\0{index.numel()}\0".encode())
            digest.update(index.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def select(
    scores: Mapping[str, Tensor],
    groups: Mapping[str, str],
    fraction: float,
    keep: Literal["smallest", "largest"],
    seed: int,
) -> Selection:
    """The share `fraction` of every group's entries with the smallest or largest scores (PE, section 3.1).

    Exactly round-half-up(fraction * entries) of each group, at least 1. Equal scores at the limit are drawn
    at random, from `seed` and the group's name only: a model has many weights with a Fisher of exactly 0.

    Args:
        scores: tensors by name, any shape, no NaN.
        groups: group by tensor name.

    Raises:
        ValueError: the fraction is not in (0, 1], or selects less than one entry of all.
    """
    sizes = {name: score.numel() for name, score in scores.items()}
    _check_fraction(fraction, sizes)
    indices: dict[str, Tensor] = {}
    for group, names in _members(sizes, groups).items():
        count = _count(fraction, sum(sizes[name] for name in names))
        if count == 0:
            continue
        parts = [scores[name].detach().reshape(-1) for name in names]
        entries = sum(part.numel() for part in parts)
        limit = _limit(parts, count - 1 if keep == "smallest" else entries - count)
        sure: dict[str, Tensor] = {}
        ties: dict[str, Tensor] = {}
        for name, part in zip(names, parts, strict=True):
            part = part.float()
            sure[name] = (part < limit if keep == "smallest" else part > limit).nonzero().view(-1).cpu()
            ties[name] = (part == limit).nonzero().view(-1).cpu()
        missing = count - sum(index.numel() for index in sure.values())
        drawn = _draw(sum(index.numel() for index in ties.values()), missing, _generator(seed, group))
        for name, picked in _split(drawn, {name: ties[name].numel() for name in names}).items():
            index = torch.cat([sure[name], ties[name][picked]]).sort().values
            if index.numel():
                indices[name] = index
    return Selection({name: indices[name] for name in sizes if name in indices}, sizes)


def random_selection(
    sizes: Mapping[str, torch.Size], groups: Mapping[str, str], fraction: float, seed: int
) -> Selection:
    """As many entries of every group as `select`, drawn uniformly without replacement (PE-rand).

    Args:
        sizes: shape by tensor name.

    Raises:
        ValueError: as `select`.
    """
    entries = {name: shape.numel() for name, shape in sizes.items()}
    _check_fraction(fraction, entries)
    indices: dict[str, Tensor] = {}
    for group, names in _members(entries, groups).items():
        parts = {name: entries[name] for name in names}
        total = sum(parts.values())
        drawn = _draw(total, _count(fraction, total), _generator(seed, group))
        indices.update({name: part for name, part in _split(drawn, parts).items() if part.numel()})
    return Selection({name: indices[name] for name in entries if name in indices}, entries)


def zero_fraction(scores: Mapping[str, Tensor], groups: Mapping[str, str]) -> dict[str, float]:
    """Share of entries whose score is exactly 0, by group, in the order of `scores`."""
    zeros: dict[str, int] = {}
    entries: dict[str, int] = {}
    for name, score in scores.items():
        group = groups[name]
        zeros[group] = zeros.get(group, 0) + score.numel() - int(torch.count_nonzero(score))
        entries[group] = entries.get(group, 0) + score.numel()
    return {group: zeros[group] / entries[group] for group in entries if entries[group]}


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


def match(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The names that fit a pattern of `include` (all, if it is empty) and none of `exclude`, in their order.

    Patterns are those of file names: * ? [abc].

    Raises:
        ValueError: a pattern fits no name, or no name is left.
    """
    for pattern in [*include, *exclude]:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"the pattern {pattern!r} matches no parameter. {_nearest(pattern, names)}")
    kept = [
        name
        for name in names
        if (not include or any(fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    ]
    if not kept:
        raise ValueError(f"no parameter is left: exclude={list(exclude)} covers include={list(include)}")
    return kept


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """What could have been meant by a pattern that matches nothing."""
    plain = re.sub(r"[*?\[\]]", "", pattern).strip(".")
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    fitting = [name for name in names if plain and plain in name]
    if fitting:
        return f"A pattern must cover the whole name, such as {fitting[0]!r}; type '*{plain}*'"
    # The part of the pattern that no name has is the mistyped one.
    strange = [part for part in plain.split(".") if part and part not in parts] or [plain]
    similar = difflib.get_close_matches(strange[0], parts, n=1, cutoff=0.6)
    if similar:
        example = next(name for name in names if similar[0] in name.split("."))
        return f"Nearest: {example!r}; type '*{similar[0]}*'"
    close = difflib.get_close_matches(plain, names, n=3, cutoff=0.0)
    return f"Nearest: {', '.join(close)}"


def _check_fraction(fraction: float, sizes: Mapping[str, int]) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of weights to select must be above 0 and at most 1, got {fraction:g}")
    entries = sum(sizes.values())
    if fraction * entries < 1:
        raise ValueError(f"a fraction of {fraction:g} selects none of {entries} weights")


def _members(sizes: Iterable[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Tensor names by group, sorted, so that results do not depend on the order of a dictionary."""
    members: dict[str, list[str]] = {}
    for name in sorted(sizes):
        members.setdefault(groups[name], []).append(name)
    return members


def _count(fraction: float, entries: int) -> int:
    """Entries to select of a group, rounded half up in decimal arithmetic; 1 at least, if there is one."""
    if entries == 0:
        return 0
    return min(entries, max(1, math.floor(Decimal(repr(float(fraction))) * entries + Decimal("0.5"))))


def _limit(parts: Sequence[Tensor], place: int) -> float:
    """The score at `place` (from 0) among all of `parts` in ascending order, without sorting or joining them.

    fp32 numbers as integers of their bits keep their order, so two counts, of the upper and of the lower 16
    bits, find it exactly.
    """
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for part in parts:
        upper += torch.bincount((_ordered(part) >> 16) + (1 << 15), minlength=1 << 16).cpu()
    bucket = int((upper.cumsum(0) <= place).sum())
    place -= int(upper[:bucket].sum())
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for part in parts:
        keys = _ordered(part)
        inside = keys[(keys >> 16) + (1 << 15) == bucket]
        lower += torch.bincount(inside & 0xFFFF, minlength=1 << 16).cpu()
    key = ((bucket - (1 << 15)) << 16) | int((lower.cumsum(0) <= place).sum())
    found = torch.tensor([key], dtype=torch.int32)
    return float(_turned(found).view(torch.float32))


def _ordered(scores: Tensor) -> Tensor:
    """int32 numbers in the order of the scores."""
    assert not bool(scores.isnan().any()), "scores hold NaN"
    return _turned(scores.float().view(torch.int32))


def _turned(bits: Tensor) -> Tensor:
    """Negative fp32 numbers grow in magnitude as integers: turn them around, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _generator(seed: int, group: str) -> torch.Generator:
    """Random numbers of one group: the same on every machine, on the CPU."""
    derived = int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(derived)


def _draw(entries: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the numbers 0 .. entries - 1, uniformly without replacement, sorted."""
    if 4 * count >= entries:
        return torch.randperm(entries, generator=generator)[:count].sort().values
    # Draw with replacement until enough are different: no permutation of all entries in memory.
    found = torch.empty(0, dtype=torch.int64)
    while found.numel() < count:
        more = torch.randint(entries, (count - found.numel() + 16,), generator=generator)
        found = torch.cat([found, more]).unique()
    return found[torch.randperm(found.numel(), generator=generator)[:count]].sort().values


def _split(positions: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Sorted positions in the concatenation of tensors as positions in each of them."""
    parts = {}
    start = 0
    for name, size in sizes.items():
        low, high = torch.searchsorted(positions, torch.tensor([start, start + size])).tolist()
        parts[name] = positions[low:high] - start
        start += size
    return parts
