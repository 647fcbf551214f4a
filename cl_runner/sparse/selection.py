"""Which entries of the weights learn a task: an exact share of every group, by score or at random."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cl_runner.sparse.groups import group_sizes

Keep = Literal["smallest", "largest"]
Ties = Literal["random", "order"]

# Entries looked at together: few enough for the cache. Large random draws depend on it.
_CHUNK = 1 << 20


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
    sizes: Mapping[str, int],
    groups: Mapping[str, str],
    fraction: float,
    keep: Keep,
    seed: int,
    ties: Ties | None = None,
    counted: Mapping[str, int] | None = None,
) -> Selection:
    """The share `fraction` of every group's entries with the smallest or largest scores (PE, section 3.1; PIECE).

    Exactly round-half-up(fraction * entries) of each group, at least 1: the same set as `torch.topk` finds in the
    group's tensors joined, without joining them. `scores` may compute a tensor when it is asked for: each is asked
    for three times and let go before the next, and beside it and the result some 10 MB are needed.

    Args:
        scores: tensors by name, any shape, on any device, no NaN; compared in fp32, where 0 and -0 are equal.
            Only those named in `sizes` are looked at. One that is not contiguous is copied.
        sizes: number of entries by name of the tensors to select from.
        groups: group by tensor name.
        ties: which of several equal scores at the limit: "order" takes the first by tensor name and position,
            "random" draws them from `seed` and the group's name. Both find the same on every device. The default
            is "random" for the smallest, as a model has many weights with a Fisher of exactly 0, and "order" for
            the largest.
        counted: by group, the number of entries to take the share of, where others beside those of `sizes`
            count (`group_sizes` of all tensors). The share is then max(1, int(fraction * counted)), as the code
            released with PIECE has it; never more than there are.

    Raises:
        ValueError: the fraction is not in (0, 1], or selects less than one entry of all; a score is NaN.
    """
    counts = _counts(fraction, sizes, groups, counted)
    if ties is None:
        ties = "random" if keep == "smallest" else "order"
    indices: dict[str, Tensor] = {}
    for group, names in _members(sizes, groups).items():
        if counts[group] == 0:
            continue
        limit, beyond, tied = _limit(scores, sizes, names, keep, counts[group])
        missing = counts[group] - beyond
        ranks = torch.arange(missing) if ties == "order" else _draw(tied, missing, _generator(seed, group))
        seen = 0
        for name in names:
            index, equal = _collect(scores[name], keep, limit, ranks, seen)
            seen += equal
            if index.numel():
                indices[name] = index
        assert seen == tied, "the scores have changed between two looks"
    return Selection({name: indices[name] for name in sizes if name in indices}, dict(sizes))


def random_selection(
    sizes: Mapping[str, int],
    groups: Mapping[str, str],
    fraction: float,
    seed: int,
    counted: Mapping[str, int] | None = None,
) -> Selection:
    """As many entries of every group as `select`, drawn uniformly without replacement (PE-rand).

    Args:
        sizes: number of entries by tensor name.
        groups, counted: as for `select`.

    Raises:
        ValueError: as `select`.
    """
    counts = _counts(fraction, sizes, groups, counted)
    indices: dict[str, Tensor] = {}
    for group, names in _members(sizes, groups).items():
        parts = {name: sizes[name] for name in names}
        drawn = _draw(sum(parts.values()), counts[group], _generator(seed, group))
        indices.update({name: part for name, part in _split(drawn, parts).items() if part.numel()})
    return Selection({name: indices[name] for name in sizes if name in indices}, dict(sizes))


def _counts(
    fraction: float, sizes: Mapping[str, int], groups: Mapping[str, str], counted: Mapping[str, int] | None
) -> dict[str, int]:
    """Entries to select of every group; 1 at least, if it has one."""
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of weights to select must be above 0 and at most 1, got {fraction:g}")
    entries = group_sizes(sizes, groups)
    base = entries if counted is None else {group: counted[group] for group in entries}
    assert all(base[group] >= size for group, size in entries.items()), "counted leaves out entries of sizes"
    total = sum(base.values())
    if fraction * total < 1:
        raise ValueError(f"a fraction of {fraction:g} selects none of {total} weights")
    counts = {}
    for group, size in entries.items():
        if counted is None:  # in decimal arithmetic: half of what was typed, not of its nearest binary number
            share = math.floor(Decimal(repr(float(fraction))) * size + Decimal("0.5"))
        else:
            share = int(fraction * base[group])
        counts[group] = min(size, max(1, share))
    return counts


def _members(sizes: Iterable[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Tensor names by group, sorted, so that results do not depend on the order of a dictionary."""
    members: dict[str, list[str]] = {}
    for name in sorted(sizes):
        members.setdefault(groups[name], []).append(name)
    return members


def _limit(
    scores: Mapping[str, Tensor], sizes: Mapping[str, int], names: Sequence[str], keep: Keep, count: int
) -> tuple[float, int, int]:
    """The score of the last of `count` entries to take, how many come before it, and how many are equal to it.

    As `_chunks` has them, so that the largest come first. fp32 numbers as integers of their bits keep their order,
    so two counts, of the upper and of the lower 16 bits, find it exactly.
    """
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for name in names:
        tensor = scores[name]
        assert tensor.numel() == sizes[name], f"{name} has {tensor.numel()} scores, expected {sizes[name]}"
        _count_upper(upper, name, tensor, keep, count)
        del tensor  # before the next one is computed
    bucket, beyond = _holding(upper, count)
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for name in names:
        _count_lower(lower, scores[name], keep, bucket)
    last, inside = _holding(lower, count - beyond)
    return _number(bucket, last), beyond + inside, int(lower[last])


def _count_upper(counts: Tensor, name: str, scores: Tensor, keep: Keep, count: int) -> None:
    """Add to `counts` how often the upper 16 bits of a tensor's keys occur, where the limit may still lie."""
    floor = _number(_holding(counts, count)[0], 0)
    for _, part in _chunks(scores, keep):
        largest = float(part.amax())  # NaN, if there is one
        if math.isnan(largest):
            raise ValueError(
                f"the scores of {name} hold NaN: the loss or its gradient has overflowed. "
                "Start from weights trained with a smaller learning rate, or compute in fp32"
            )
        if largest >= floor:
            counts += torch.bincount(_upper(_keys(part[_reaching(part, floor)])), minlength=1 << 16).cpu()
            # With `count` entries above it, what is smaller than a bucket's lower end is not looked at again.
            floor = _number(_holding(counts, count)[0], 0)


def _count_lower(counts: Tensor, scores: Tensor, keep: Keep, bucket: int) -> None:
    """Add to `counts` how often the lower 16 bits of a tensor's keys occur under the upper bits `bucket`."""
    floor = _number(bucket, 0)
    for _, part in _chunks(scores, keep):
        keys = _keys(part[_reaching(part, floor)])
        counts += torch.bincount(keys[_upper(keys) == bucket] & 0xFFFF, minlength=1 << 16).cpu()


def _collect(scores: Tensor, keep: Keep, limit: float, ranks: Tensor, seen: int) -> tuple[Tensor, int]:
    """Positions of the entries beyond the limit and of some that are equal to it, and how many are equal.

    Args:
        ranks: which of the equal entries of the whole group to take, sorted.
        seen: how many there were in the tensors before.

    Returns:
        int64 on the CPU, sorted; a number.
    """
    found = [torch.empty(0, dtype=torch.int64)]
    before = seen
    for start, part in _chunks(scores, keep):
        position = _reaching(part, limit)
        equal = (part[position] == limit).cpu()
        ties = int(equal.sum())
        low, high = torch.searchsorted(ranks, torch.tensor([seen, seen + ties])).tolist()
        drawn = torch.zeros(ties, dtype=torch.bool)
        drawn[ranks[low:high] - seen] = True
        taken = ~equal
        taken[equal] = drawn
        found.append(position.cpu()[taken] + start)
        seen += ties
    return torch.cat(found), seen - before


def _chunks(scores: Tensor, keep: Keep) -> Iterator[tuple[int, Tensor]]:
    """Parts of a tensor with their first positions, as fp32 [at most _CHUNK]; negative for the smallest."""
    flat = scores.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK].float()
        yield start, -part if keep == "smallest" else part


def _reaching(part: Tensor, floor: float) -> Tensor:
    """Positions [n] of the numbers that are not below `floor`."""
    reached = part >= floor
    if reached.is_cpu:  # many times faster than torch's own
        return torch.from_numpy(np.flatnonzero(reached.numpy()))
    return reached.nonzero().view(-1)


def _holding(counts: Tensor, place: int) -> tuple[int, int]:
    """Where the number at `place` (from 1, the largest first) was counted, and how many were counted above it.

    With fewer than `place` in all: 0, and all of them.
    """
    above = counts.flip(0).cumsum(0)
    buckets = int((above < place).sum())
    return max(len(counts) - 1 - buckets, 0), int(above[buckets - 1]) if buckets else 0


def _keys(numbers: Tensor) -> Tensor:
    """int32 [n] in the order of fp32 [n]."""
    return _turned((numbers + 0.0).view(torch.int32))  # -0 + 0 is 0


def _upper(keys: Tensor) -> Tensor:
    """The upper 16 bits of keys, from 0 on."""
    return (keys >> 16) + (1 << 15)


def _number(upper: int, lower: int) -> float:
    """The fp32 number of a key; the least of all for the keys below its own, which belong to none."""
    key = torch.tensor([(upper - (1 << 15)) << 16 | lower], dtype=torch.int32)
    number = float(_turned(key).view(torch.float32))
    return -math.inf if math.isnan(number) else number


def _turned(bits: Tensor) -> Tensor:
    """Negative fp32 numbers grow in magnitude as integers: turn them around, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _generator(seed: int, group: str) -> torch.Generator:
    """Random numbers of one group: the same on every machine, on the CPU."""
    derived = int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(derived)


def _draw(entries: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the numbers 0 .. entries - 1, uniformly without replacement, sorted."""
    if 4 * count < entries:
        # Draw with replacement until enough are different: no permutation of all entries in memory.
        found = torch.empty(0, dtype=torch.int64)
        while found.numel() < count:
            more = torch.randint(entries, (count - found.numel() + 16,), generator=generator)
            found = torch.cat([found, more]).unique()
        return found[torch.randperm(found.numel(), generator=generator)[:count]].sort().values
    if entries <= _CHUNK:
        return torch.randperm(entries, generator=generator)[:count].sort().values
    # Take each by itself, with a chance that gives a little more than `count` (six standard deviations at least),
    # and drop the surplus at random: every set of `count` remains equally likely.
    chance = min(1.0, (count + 3 * math.sqrt(entries)) / entries)
    while True:
        parts = []
        for start in range(0, entries, _CHUNK):
            numbers = torch.rand(min(_CHUNK, entries - start), generator=generator)
            parts.append((numbers < chance).nonzero().view(-1) + start)
        found = torch.cat(parts)
        if found.numel() >= count:
            kept = torch.ones(found.numel(), dtype=torch.bool)
            kept[_draw(found.numel(), found.numel() - count, generator)] = False
            return found[kept]


def _split(positions: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Sorted positions in the concatenation of tensors as positions in each of them."""
    parts = {}
    start = 0
    for name, size in sizes.items():
        low, high = torch.searchsorted(positions, torch.tensor([start, start + size])).tolist()
        parts[name] = positions[low:high] - start
        start += size
    return parts
