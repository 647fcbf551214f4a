"""From weights through snapshots to weights, bit by bit; every link of a chain is checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from cl_runner.digests import Damaged
from cl_runner.sparse.bits import DTYPES, INTEGERS, weights_hash
from cl_runner.sparse.snapshots import Header, Snapshot, describe_snapshot, read_snapshot
from cl_runner.sparse.stored_header import Unusable


@torch.no_grad()
def apply_snapshot(weights: Mapping[str, Tensor], snapshot: Snapshot) -> None:
    """Turn the weights before a snapshot into those after it, or those after into those before, in place.

    One of a whole model gives the weights after it, whatever they were.
    """
    for name, change in snapshot.changes.items():
        weight = weights[name].detach()
        bits = weight.view(INTEGERS[weight.dtype.itemsize])
        stored = change.bits.to(weight.device)
        if snapshot.header.whole:
            bits.copy_(stored)
        elif change.index is None:
            bits ^= stored
        else:
            flat, index = bits.view(-1), change.index.to(weight.device)
            flat[index] = flat[index] ^ stored


def apply_chain(weights: MutableMapping[str, Tensor], paths: Sequence[Path]) -> None:
    """Lead weights through a chain of snapshots, in place, and check that they end bit by bit as promised.

    Args:
        weights: those before the first snapshot, of any content if that is whole; on any device. Parameters that exist
            since a later task are added, or of any content.
        paths: snapshots in the order of their tasks, each the parent of the next.

    Raises:
        Damaged: a file is missing or damaged, a link of the chain does not fit, or the result is not what the last
            snapshot promises; the text names the file. The weights are then of no use.
        ValueError: a file is of another model.
    """
    assert paths, "a chain has at least one snapshot"
    headers = [describe_snapshot(path) for path in paths]
    for (earlier, before), (path, header) in pairwise(zip(paths, headers, strict=True)):
        if header.parent != before.weights:
            raise _broken(path, header.parent, str(earlier), before.weights)
    begun = _begun(weights, paths, headers)
    for path in paths:
        snapshot = read_snapshot(path)
        begin_parameters(weights, snapshot, path, begun[path])
        apply_snapshot(weights, snapshot)
    found, expected = weights_hash(weights), headers[-1].weights
    if found == expected:
        return
    if not any(header.whole for header in headers):
        # Hashing the starting weights first would double the time of every good chain; a bad one can be undone.
        for path in reversed(paths):
            apply_snapshot(weights, read_snapshot(path))
        start = weights_hash({name: weights[name] for name in headers[0].shapes})
        if start != headers[0].parent:
            raise _broken(paths[0], headers[0].parent, "the starting weights", start)
    raise Unusable(paths[-1], f"the restored weights are {found[:12]}, but should be {expected[:12]}")


def _begun(weights: Mapping[str, Tensor], paths: Sequence[Path], headers: Sequence[Header]) -> dict[Path, list[str]]:
    """The parameters that exist since each snapshot's task; ValueError unless every snapshot fits the weights."""
    later = {name for header in headers[1:] for name in header.shapes if name not in headers[0].shapes}
    shapes, dtypes = kinds({name: tensor for name, tensor in weights.items() if name not in later})
    begun = {}
    for path, header in zip(paths, headers, strict=True):
        begun[path] = [name for name in header.shapes if name in later and name not in shapes]
        for name in begun[path]:
            there = name in weights  # of a model that has the parameters of all its tasks already
            shapes[name] = tuple(weights[name].shape) if there else header.shapes[name]
            dtypes[name] = weights[name].dtype if there else header.dtypes[name]
        check_same_model(header, str(path), shapes, dtypes, "the starting weights")
    return begun


@torch.no_grad()
def begin_parameters(
    weights: MutableMapping[str, Tensor], snapshot: Snapshot, path: Path, names: Collection[str]
) -> None:
    """Parameters that exist since a snapshot's task are zeros before it.

    Raises:
        Damaged: one of them is not there as a whole.
    """
    for name in names:
        change = snapshot.changes.get(name)
        if change is None or change.index is not None:
            raise Unusable(path, f"the parameter {name} exists since this task, and is not in it as a whole")
        if name in weights:
            weights[name].zero_()
        else:
            weights[name] = torch.zeros(snapshot.header.shapes[name], dtype=snapshot.header.dtypes[name])


def read_weights(paths: Sequence[Path], base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights after the last of a chain of snapshots, bit by bit what they were; on the CPU.

    Args:
        paths: snapshots in the order of their tasks, each the parent of the next.
        base: the untrained starting weights, left as they are; needed unless the first snapshot is whole.

    Raises:
        ValueError: as `apply_chain`.
    """
    assert paths, "a chain has at least one snapshot"
    first = describe_snapshot(paths[0])
    if first.whole:
        weights = empty_weights(first)
    elif base is None:
        raise ValueError(f"{paths[0]} stores a part of the model only; its parent's weights are needed as well")
    else:
        weights = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in base.items()
        }
    apply_chain(weights, paths)
    return weights


def empty_weights(header: Header) -> dict[str, Tensor]:
    """Weights of any content, for a snapshot of a whole model to fill."""
    return {name: torch.empty(shape, dtype=header.dtypes[name]) for name, shape in header.shapes.items()}


def kinds(weights: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Shapes and types, as `check_same_model` takes them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return shapes, {name: tensor.dtype for name, tensor in weights.items()}


def check_same_model(
    header: Header,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    other: str,
) -> None:
    """Raise ValueError unless a snapshot, called `name`, is of a model with these shapes and types, called `other`."""
    for tensor in [*header.shapes, *shapes]:
        here = _kind(header.shapes, header.dtypes, tensor)
        there = _kind(shapes, dtypes, tensor)
        if here != there:
            raise ValueError(f"{name} and {other} are of different models: {tensor} is {here} and {there}")


def _kind(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], name: str) -> str:
    return f"{DTYPES[dtypes[name]]} {list(shapes[name])}" if name in shapes else "missing"


def _broken(path: Path, parent: str, before: str, reached: str) -> Damaged:
    return Damaged(path, f"does not follow on {before}: it changes weights {parent[:12]}, these are {reached[:12]}")
