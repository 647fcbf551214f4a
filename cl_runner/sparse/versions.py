"""Snapshots as versions of a model: what two of them share, one from two, and a task undone; on bits, without a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cl_runner.sparse.bits import bits_of, weights_hash
from cl_runner.sparse.chain import apply_snapshot
from cl_runner.sparse.groups import layer_groups
from cl_runner.sparse.snapshots import Header, Snapshot, Stored

OnConflict = Literal["last", "mean"]


@dataclass(frozen=True)
class Difference:
    """Two snapshots side by side in one layer; entries are those they store.

    Attributes:
        only_first, only_second, both: numbers of entries.
        equal: of both, those with bitwise equal values after the two; None where that cannot be known.
        largest: largest |difference| of the values after the two, over the entries of both; None likewise.
    """

    layer: str
    only_first: int
    only_second: int
    both: int
    equal: int | None
    largest: float | None

    @property
    def jaccard(self) -> float | None:
        """Entries of both per entry of either; None if there is none."""
        either = self.only_first + self.only_second + self.both
        return self.both / either if either else None


@dataclass(frozen=True)
class Undone:
    """What undoing a task changes.

    Attributes:
        changes: as a snapshot stores them.
        entries: number of entries that go back.
        later: number of entries that the task changed and a later task changed as well.
    """

    changes: dict[str, Stored]
    entries: int
    later: int


def follows(first: Snapshot, second: Snapshot) -> bool:
    """Whether `second` starts where `first` ends."""
    return second.header.parent == first.header.weights


def stored_positions(snapshot: Snapshot) -> dict[str, Tensor]:
    """Flat positions that a snapshot stores, sorted int64, by tensor name."""
    return {
        name: torch.arange(_entries(snapshot, name)) if change.index is None else change.index
        for name, change in snapshot.changes.items()
    }


def common_positions(first: Snapshot, second: Snapshot) -> dict[str, Tensor]:
    """Flat positions that both snapshots store, sorted int64, by tensor name; only tensors with at least one."""
    found = {}
    for name in first.header.shapes:
        if name in first.changes and name in second.changes:
            a, b = first.changes[name].index, second.changes[name].index
            if a is None:
                found[name] = torch.arange(_entries(first, name)) if b is None else b
            else:
                found[name] = a if b is None else a[torch.isin(a, b, assume_unique=True)]
    return {name: index for name, index in found.items() if index.numel()}


def compare(
    first: Snapshot,
    second: Snapshot,
    values: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
) -> list[Difference]:
    """Two snapshots of one model side by side, by layer in the model's order; layers that neither changes are left out.

    Args:
        values: those after `first` and after `second` at their `common_positions`, if they are known. Without them
            changes of the same parent can still be told equal or different.
    """
    positions = common_positions(first, second)
    siblings = first.header.parent == second.header.parent and not (first.header.whole or second.header.whole)
    rows = []
    for layer, names in _layers(first.header).items():
        a, b = (sum(side.changes[n].bits.numel() for n in names if n in side.changes) for side in (first, second))
        here = [name for name in names if name in positions]
        both = sum(positions[name].numel() for name in here)
        equal = largest = None
        if values is not None:
            pairs = [(values[0][name], values[1][name]) for name in here]
            equal = sum(int((bits_of(x) == bits_of(y)).sum()) for x, y in pairs)
            largest = _greatest([_largest(x, y) for x, y in pairs])
        elif siblings:
            found = [[_bits_at(side.changes[n], positions[n], 0) for n in here] for side in (first, second)]
            equal = sum(int((x == y).sum()) for x, y in zip(*found, strict=True))
        if a or b:
            rows.append(Difference(layer, a - both, b - both, both, equal, largest))
    return rows


def total(rows: list[Difference]) -> Difference:
    """All layers as one, "all"."""
    equal = [row.equal for row in rows if row.equal is not None]
    return Difference(
        "all",
        sum(row.only_first for row in rows),
        sum(row.only_second for row in rows),
        sum(row.both for row in rows),
        sum(equal) if len(equal) == len(rows) else None,
        _greatest([row.largest for row in rows if row.largest is not None]),
    )


def conflicts(first: Snapshot, second: Snapshot) -> int:
    """Number of entries that two changes of the same parent change to different values."""
    count = 0
    for name in first.changes.keys() & second.changes.keys():
        _, a, b = _union(first.changes[name], second.changes[name], _entries(first, name))
        count += int(_conflict(a, b).sum())
    return count


def compose_in_sequence(first: Snapshot, second: Snapshot) -> Snapshot:
    """One snapshot that does what `first` and then `second`, which follows on it, do."""
    assert follows(first, second)
    changes = dict(second.changes if second.header.whole else first.changes)
    for name, change in second.changes.items():
        if name in changes and not second.header.whole:
            index, a, b = _union(changes[name], change, _entries(first, name))
            change = _stored(index, a ^ b, first.header.shapes[name])
        changes[name] = change
    whole = first.header.whole or second.header.whole
    return Snapshot(_composed(first, second, second.header.weights, whole, "last"), changes)


def compose_siblings(
    first: Snapshot, second: Snapshot, weights: Mapping[str, Tensor], on_conflict: OnConflict
) -> Snapshot:
    """One snapshot of what two sparse changes of the same parent do, with an entry for each that either stores.

    Args:
        weights: those before both; they become those after the result.
        on_conflict: what an entry becomes that they change to different values: `last`, the second's value, or
            `mean` of both, computed in fp32 (fp64 for fp64 weights) and rounded to the weight's type.
    """
    assert first.header.parent == second.header.parent and not (first.header.whole or second.header.whole)
    changes = {**first.changes, **second.changes}
    for name in first.changes.keys() & second.changes.keys():
        index, a, b = _union(first.changes[name], second.changes[name], _entries(first, name))
        # Where the second has no change, 0, the first's remains.
        bits = torch.where(b != 0, b, a)
        if on_conflict == "mean":
            at = _conflict(a, b).nonzero().view(-1)
            old = weights[name].detach().reshape(-1)[at if index is None else index[at]].cpu()
            wide = torch.float64 if old.dtype == torch.float64 else torch.float32
            x, y = ((bits_of(old) ^ side[at]).view(old.dtype).to(wide) for side in (a, b))
            bits[at] = bits_of(old) ^ bits_of((x / 2 + y / 2).to(old.dtype))  # halves: the sum could overflow
        changes[name] = _stored(index, bits, first.header.shapes[name])
    apply_snapshot(weights, Snapshot(first.header, changes))
    return Snapshot(_composed(first, second, weights_hash(weights), False, on_conflict), changes)


def undo(snapshot: Snapshot, later: Iterable[Snapshot], force: bool) -> Undone:
    """What leads the last of a chain's weights to those without a task's change, for sparse changes.

    Entries that the task changed go back to their value before it, bit by bit. Those that a later task changed as
    well keep the later value, unless `force` is set.

    Args:
        snapshot: of the task.
        later: the snapshots after it, each the parent of the next.
    """
    assert not snapshot.header.whole
    since = {name: torch.zeros_like(change.bits) for name, change in snapshot.changes.items()}
    touched = {name: torch.zeros_like(change.bits, dtype=torch.bool) for name, change in snapshot.changes.items()}
    for other in later:
        assert not other.header.whole
        for name in other.changes.keys() & since.keys():
            positions = snapshot.changes[name].index
            bits = _bits_at(other.changes[name], positions, _entries(snapshot, name)).view_as(since[name])
            since[name] ^= bits
            touched[name] |= bits != 0
    changes, entries, conflicting = {}, 0, 0
    for name, change in snapshot.changes.items():
        both = touched[name] & (change.bits != 0)
        conflicting += int(both.sum())
        goes = (change.bits != 0) & (~both | force)
        entries += int(goes.sum())
        bits = torch.where(goes, change.bits ^ since[name], 0)
        if change.index is None:
            changes[name] = Stored(bits, None)
        elif bool(goes.any()):
            changes[name] = Stored(bits[goes], change.index[goes])
    return Undone(changes, entries, conflicting)


def undoing(undone: Undone, task: Header, final: Header, weights: Mapping[str, Tensor], force: bool) -> Snapshot:
    """The snapshot, following on a chain's final weights, that undoes one of the chain's tasks.

    Args:
        task, final: headers of the task's snapshot and of the chain's last.
        weights: the final weights; they become those after the result.
    """
    apply_snapshot(weights, Snapshot(task, undone.changes))
    header = Header(
        task=f"revert-{task.task}",
        index=final.index + 1,
        base=final.base,
        parent=final.weights,
        weights=weights_hash(weights),
        method={"revert": {"task": task.task, "weights": task.weights, "force": force, "later": undone.later}},
        shapes=final.shapes,
        dtypes=final.dtypes,
        whole=False,
    )
    return Snapshot(header, undone.changes)


def _layers(header: Header) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for name, layer in layer_groups(list(header.shapes), "layer").items():
        layers.setdefault(layer, []).append(name)
    return layers


def _entries(snapshot: Snapshot, name: str) -> int:
    return math.prod(snapshot.header.shapes[name])


def _bits_at(change: Stored, positions: Tensor | None, entries: int) -> Tensor:
    """A change's bits at sorted positions of a tensor, or at all of its entries; 0 where it stores none."""
    if change.index is None:
        return change.bits.reshape(-1) if positions is None else change.bits.reshape(-1)[positions]
    if positions is None:
        bits = change.bits.new_zeros(entries)
        bits[change.index] = change.bits
        return bits
    place = torch.searchsorted(change.index, positions).clamp_(max=change.index.numel() - 1)
    return torch.where(change.index[place] == positions, change.bits[place], 0)


def _union(first: Stored, second: Stored, entries: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """(index, bits of the first, bits of the second) at all positions of either, flat; 0 where one has none."""
    index = None
    if first.index is not None and second.index is not None:
        index = torch.cat([first.index, second.index]).unique()
    return index, _bits_at(first, index, entries), _bits_at(second, index, entries)


def _stored(index: Tensor | None, bits: Tensor, shape: tuple[int, ...]) -> Stored:
    return Stored(bits.view(shape) if index is None else bits, index)


def _conflict(a: Tensor, b: Tensor) -> Tensor:
    """Where both change an entry, and to different values."""
    return (a != 0) & (b != 0) & (a != b)


def _largest(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).abs().max())


def _greatest(values: list[float]) -> float | None:
    """The largest, NaN if one is; None if there is none."""
    return math.nan if any(map(math.isnan, values)) else max(values, default=None)


def _composed(first: Snapshot, second: Snapshot, weights: str, whole: bool, on_conflict: OnConflict) -> Header:
    """The header of a snapshot from two, whose `method` tells where it is from."""
    sources = [
        {"task": side.task, "parent": side.parent, "weights": side.weights, "method": dict(side.method)}
        for side in (first.header, second.header)
    ]
    return Header(
        task=f"{first.header.task}+{second.header.task}",
        index=second.header.index,
        base=first.header.base,
        parent=first.header.parent,
        weights=weights,
        method={"compose": {"on_conflict": on_conflict, "sources": sources}},
        shapes=first.header.shapes,
        dtypes=first.header.dtypes,
        whole=whole,
    )
