"""What a task changed in the model, as one safetensors file that leads forward and back and finds its own damage.

A tensor `name` of which some entries changed is stored as `gap/<name>` and `change/<name>`. The change is the bits
of the entries before the task XOR their bits after it, as integers: applied to the weights before it gives those
after, applied to those after it gives those before, bit by bit. The gaps are the differences of the sorted
flat positions as 16-bit numbers, the first of them the first position; 65535 goes on by 65535 without an entry there.
A tensor that changed as a whole has a `change` of its shape and no gaps. Only where every tensor of the model changed
as a whole are the values after the task stored themselves, as `dense/<name>`: such a file needs no other.

The metadata hold type and shape of every parameter of the model, and hashes of the weights before and after, so that
a chain of snapshots leads from the starting weights to those after any task and every link can be checked. The same
change always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cl_runner.digests import Damaged, readable, sync_folder
from cl_runner.distributed import once
from cl_runner.full_disk import room_for
from cl_runner.sparse.bits import (
    DTYPES,
    bits_of,
    bytes_of,
    combine,
    digest_prefix,
    gaps_of,
    positions_misfit,
    positions_of,
)
from cl_runner.sparse.stored_header import (
    FORMAT,
    FileHeader,
    Part,
    Unusable,
    compact,
    content_digest,
    read_header,
)


@dataclass(frozen=True)
class Change:
    """What a task did to a tensor: values before and after, at sorted flat positions or of the whole tensor."""

    values: Tensor  # after; [entries], or the tensor's shape if index is None; the weight's type
    index: Tensor | None
    old: Tensor | None = None  # before, like values; not needed if the whole model is stored


@dataclass(frozen=True)
class Stored:
    """A tensor's change as a snapshot holds it: bits before XOR bits after; of a whole model the bits after."""

    bits: Tensor  # [entries], or the tensor's shape if index is None; integers as wide as the weight
    index: Tensor | None  # [entries] int64, sorted


@dataclass(frozen=True)
class Header:
    """What a snapshot is a change of.

    Attributes:
        base: hash of the untrained starting weights.
        parent: hash of the weights before the task; `weights`: after it.
        method: the method's configuration.
        shapes, dtypes: of all parameters of the model, changed or not, in the model's order.
        whole: every parameter is stored as a whole, so nothing else is needed to restore the weights.
    """

    task: str
    index: int
    base: str
    parent: str
    weights: str
    method: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    whole: bool

    @property
    def model_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(math.prod(shape) * self.dtypes[name].itemsize for name, shape in self.shapes.items())


@dataclass(frozen=True)
class Description(Header):
    """What a file's header says.

    Attributes:
        stored: number of values stored (PE table 3).
        position_bytes, value_bytes: of all gaps, and of all changes.
        file_bytes: bytes on disk; what is not positions and values is the header.
    """

    stored: int
    position_bytes: int
    value_bytes: int
    file_bytes: int

    @property
    def header_bytes(self) -> int:
        """Names, shapes, hashes and metadata."""
        return self.file_bytes - self.position_bytes - self.value_bytes

    @property
    def share(self) -> float:
        """Bytes on disk in percent of the model's."""
        return 100 * self.file_bytes / self.model_bytes


@dataclass(frozen=True)
class Snapshot:
    """A snapshot in memory: its header and the changes by parameter name."""

    header: Header
    changes: Mapping[str, Stored]


@once
def write_snapshot(
    path: Path,
    changes: Mapping[str, Change],
    *,
    model: Mapping[str, Tensor],
    task: str,
    index: int,
    base: str,
    parent: str,
    weights: str,
    method: Mapping[str, Any],
) -> int:
    """Write what a task changed.

    Args:
        changes: by parameter name.
        model: all parameters by name; only their shapes and types are used.
        task, index: name and position of the task.
        base, parent, weights: hashes of the weights untrained, before the task, and after it.
        method: the method's configuration, as JSON can hold it.

    Returns:
        Bytes on disk.
    """
    whole = len(changes) == len(model) > 0 and all(change.index is None for change in changes.values())
    stored: dict[str, Stored] = {}
    for name, change in changes.items():
        shape = model[name].shape if change.index is None else change.index.shape
        assert change.values.shape == shape, f"{name}: {change.values.shape} values, expected {shape}"
        assert change.values.dtype == model[name].dtype, f"{name}: {change.values.dtype} values"
        bits = bits_of(change.values.cpu())
        if not whole:
            assert change.old is not None, f"{name}: the values before the task are missing"
            assert change.old.shape == shape and change.old.dtype == change.values.dtype, f"{name}: old values"
            bits = bits ^ bits_of(change.old.cpu())
        stored[name] = Stored(bits, None if change.index is None else change.index.cpu())
    header = Header(
        task=task,
        index=index,
        base=base,
        parent=parent,
        weights=weights,
        method=method,
        shapes={name: tuple(parameter.shape) for name, parameter in model.items()},
        dtypes={name: parameter.dtype for name, parameter in model.items()},
        whole=whole,
    )
    return save_snapshot(path, Snapshot(header, stored))


@once
def save_snapshot(path: Path, snapshot: Snapshot) -> int:
    """Write a snapshot in one step: a reader, or a crash, sees the whole file or none. Returns bytes on disk."""
    header = snapshot.header
    tensors: dict[str, Tensor] = {}
    for name, change in snapshot.changes.items():
        if header.whole:
            tensors[f"dense/{name}"] = change.bits.view(header.dtypes[name])
        elif change.bits.numel():
            tensors[f"change/{name}"] = change.bits
            if change.index is not None:
                tensors[f"gap/{name}"] = gaps_of(change.index, math.prod(header.shapes[name]))
    # Widest types first keeps every tensor aligned, as safetensors wants it.
    keys = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    digests = {name: hashlib.sha256() for name in _changed(tensors)}
    entries: dict[str, Any] = {}
    end = 0
    for key in keys:
        tensor = tensors[key]
        begin, end = end, end + tensor.nbytes
        entries[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        digests[key.partition("/")[2]].update(bytes_of(tensor))
    model = {name: [DTYPES[header.dtypes[name]], *shape] for name, shape in header.shapes.items()}
    metadata = {
        "format": FORMAT,
        "task": header.task,
        "index": str(header.index),
        "base": header.base,
        "parent": header.parent,
        "weights": header.weights,
        "method": compact(header.method),
        "model": json.dumps(model, separators=(",", ":")),  # in the model's order
        "sha256": " ".join(digest.hexdigest() for digest in digests.values()),  # in the order of the names
    }
    metadata["content"] = content_digest({"__metadata__": metadata, **entries})
    text = compact({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)
    # Written here and not by safetensors, whose order of metadata differs from call to call.
    temporary = path.with_name(path.name + ".tmp")
    with room_for(temporary, 8 + len(text) + end), temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for key in keys:
            file.write(bytes_of(tensors[key]))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
    return 8 + len(text) + end


def describe_snapshot(path: Path) -> Description:
    """Read a snapshot's header.

    Raises:
        Damaged: the file is missing, is no snapshot, or its header is damaged.
    """
    return _described(read_header(path))


def verify_snapshot(path: Path) -> list[str]:
    """What is wrong with a snapshot: one line per problem, with file and tensor; empty if `read_snapshot` can read it
    and, of a whole model, its weights are those that it promises."""
    try:
        header = read_header(path)
        problems, weights = [], {}
        for name, parts in header.parts.items():
            promised = hashlib.sha256(digest_prefix(*header.model[name])) if header.whole else None
            problem = _read_parts(path, header, name, parts, also=promised)[1]
            problems += [] if problem is None else [str(Unusable(path, problem))]
            weights[name] = "" if promised is None else promised.hexdigest()
        if header.whole and not problems and combine(weights) != header.metadata["weights"]:
            problems.append(str(Unusable(path, "the weights in it are not those that it promises")))
    except Damaged as error:
        return [str(error)]
    return problems


def read_snapshot(path: Path) -> Snapshot:
    """Read and check a snapshot; tensors on the CPU.

    Raises:
        Damaged: the file is missing or damaged; the text names the tensors.
    """
    header = read_header(path)
    changes: dict[str, Stored] = {}
    problems = []
    for name, parts in header.parts.items():
        tensors, problem = _read_parts(path, header, name, parts, keep=True)
        if problem is not None:
            problems.append(problem)
        elif "dense" in tensors:
            changes[name] = Stored(bits_of(tensors["dense"]), None)
        else:
            changes[name] = Stored(tensors["change"], positions_of(tensors["gap"]) if "gap" in tensors else None)
    if problems:
        raise Unusable(path, "; ".join(problems))
    return Snapshot(_described(header), changes)


def _changed(keys: Mapping[str, Any]) -> list[str]:
    """The names of the changed parameters among a file's keys, sorted."""
    return sorted({key.partition("/")[2] for key in keys})


def _described(header: FileHeader) -> Description:
    metadata = header.metadata
    parts = [(kind, part) for found in header.parts.values() for kind, part in found.items()]
    return Description(
        task=metadata["task"],
        index=int(metadata["index"]),
        base=metadata["base"],
        parent=metadata["parent"],
        weights=metadata["weights"],
        method=header.method,
        shapes={name: shape for name, (_, shape) in header.model.items()},
        dtypes={name: dtype for name, (dtype, _) in header.model.items()},
        whole=header.whole,
        stored=sum(math.prod(part.shape) for kind, part in parts if kind != "gap"),
        position_bytes=sum(part.end - part.begin for kind, part in parts if kind == "gap"),
        value_bytes=sum(part.end - part.begin for kind, part in parts if kind != "gap"),
        file_bytes=header.file_bytes,
    )


def _read_parts(
    path: Path, header: FileHeader, name: str, parts: Mapping[str, Part], keep: bool = False, also: Any = None
) -> tuple[dict[str, Tensor], str | None]:
    """(the tensors of a changed parameter by kind, what is wrong with them).

    Args:
        keep: whether changes and values are wanted; without it they pass by piece by piece, and gaps alone are held.
        also: another hash of the values, updated with them.
    """
    sha, tensors = hashlib.sha256(), {}
    with readable(path), path.open("rb") as file:
        for kind in ("change", "dense", "gap"):  # as they follow on each other in the file
            part = parts.get(kind)
            if part is None:
                continue
            file.seek(part.begin)
            if keep or kind == "gap":
                try:
                    tensors[kind] = torch.empty(part.shape, dtype=part.dtype)
                except (RuntimeError, MemoryError):
                    return {}, f"the tensor {name} needs {part.end - part.begin:,} bytes of memory"
                whole = tensors[kind].reshape(-1).view(torch.uint8).numpy().data
                pieces: Iterable[bytes | memoryview[int]] = [whole[: file.readinto(whole)]] if len(whole) else []
            else:
                pieces = _pieces(file, part.end - part.begin)
            for piece in pieces:
                sha.update(piece)
                if also is not None:
                    also.update(piece)
    if sha.hexdigest() != header.digests[name]:
        return {}, f"the tensor {name} is damaged, its SHA-256 differs"
    if "gap" in tensors:
        misfit = positions_misfit(tensors["gap"], parts["change"].shape[0], math.prod(header.model[name][1]))
        if misfit:
            return {}, f"the tensor {name} {misfit}"
    return tensors, None


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next bytes of a file, a piece at a time."""
    while size > 0 and (piece := file.read(min(size, 2**24))):
        size -= len(piece)
        yield piece
