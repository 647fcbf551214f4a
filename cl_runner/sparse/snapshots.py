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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_runner.checkpoint import sync_folder
from cl_runner.sparse.bits import DTYPES, NAMED, bits_of, bytes_of, gaps_of, positions_of

FORMAT = "cl_runner.snapshot/2"


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
        "method": _json(header.method),
        "model": json.dumps(model, separators=(",", ":")),  # in the model's order
        "sha256": " ".join(digest.hexdigest() for digest in digests.values()),  # in the order of the names
    }
    metadata["content"] = _content({"__metadata__": metadata, **entries})
    text = _json({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)
    # Written here and not by safetensors, whose order of metadata differs from call to call.
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
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
        ValueError: the file is missing, is no snapshot, or its header is damaged.
    """
    return _describe(path, *_header(path)[:2])


def verify_snapshot(path: Path) -> list[str]:
    """What is wrong with a snapshot: one line per problem, with file and tensor; empty if it is sound."""
    try:
        entries, metadata, start = _header(path)
    except ValueError as error:
        return [str(error)]
    problems = [problem for _, _, problem in _scan(path, entries, metadata, start) if problem is not None]
    return problems + _extra(path, entries, start)


def read_snapshot(path: Path) -> Snapshot:
    """Read and check a snapshot; tensors on the CPU.

    Raises:
        ValueError: the file is missing or damaged; the text names the tensor.
    """
    entries, metadata, start = _header(path)
    changes: dict[str, Stored] = {}
    problems = []
    for name, parts, problem in _scan(path, entries, metadata, start):
        if problem is not None:
            problems.append(problem)
        elif "dense" in parts:
            changes[name] = Stored(bits_of(parts["dense"]), None)
        else:
            changes[name] = Stored(parts["change"], positions_of(parts["gap"]) if "gap" in parts else None)
    problems += _extra(path, entries, start)
    if problems:
        raise ValueError("\n".join(problems))
    return Snapshot(_describe(path, entries, metadata), changes)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _content(header: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a header but itself; through the tensors' hashes in it, of the whole file."""
    metadata = {key: value for key, value in header["__metadata__"].items() if key != "content"}
    return hashlib.sha256(_json({**header, "__metadata__": metadata}).encode()).hexdigest()


def _changed(keys: Mapping[str, Any]) -> list[str]:
    """The names of the changed parameters among a file's keys, sorted."""
    return sorted({key.partition("/")[2] for key in keys})


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """(tensor entries, metadata, position of the first tensor's bytes) of a sound header."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > path.stat().st_size:
            raise ValueError(f"{path}: the file is cut off in its header, or is no snapshot")
        text = file.read(length)
    try:
        header = json.loads(text)
    except ValueError:
        raise ValueError(f"{path}: the header is damaged, or the file is no snapshot") from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or "content" not in metadata:
        raise ValueError(f"{path}: the header is damaged, or the file is no snapshot")
    if metadata["content"] != _content(header):
        raise ValueError(f"{path}: the header is damaged (names, shapes, hashes or metadata)")
    if metadata["format"] != FORMAT:
        raise ValueError(f"{path}: format {metadata['format']!r}; this version reads {FORMAT!r}")
    return {key: entry for key, entry in header.items() if key != "__metadata__"}, metadata, 8 + length


def _describe(path: Path, entries: Mapping[str, Any], metadata: Mapping[str, str]) -> Description:
    model = {name: (NAMED[dtype], tuple(shape)) for name, (dtype, *shape) in json.loads(metadata["model"]).items()}
    positions = [entry for key, entry in entries.items() if key.startswith("gap/")]
    values = [entry for key, entry in entries.items() if not key.startswith("gap/")]
    return Description(
        task=metadata["task"],
        index=int(metadata["index"]),
        base=metadata["base"],
        parent=metadata["parent"],
        weights=metadata["weights"],
        method=json.loads(metadata["method"]),
        shapes={name: shape for name, (_, shape) in model.items()},
        dtypes={name: dtype for name, (dtype, _) in model.items()},
        whole=bool(model) and all(f"dense/{name}" in entries for name in model),
        stored=sum(math.prod(entry["shape"]) for entry in values),
        position_bytes=sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in positions),
        value_bytes=sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in values),
        file_bytes=path.stat().st_size,
    )


def _scan(
    path: Path, entries: Mapping[str, Any], metadata: Mapping[str, str], start: int
) -> Iterator[tuple[str, dict[str, Tensor], str | None]]:
    """(parameter, its stored tensors by kind, what is wrong with them) for every changed parameter."""
    with path.open("rb") as file:
        for name, expected in zip(_changed(entries), metadata["sha256"].split(), strict=True):
            digest = hashlib.sha256()
            parts: dict[str, Tensor] = {}
            complete = True
            for kind in ("change", "dense", "gap"):  # as they follow on each other in the file
                entry = entries.get(f"{kind}/{name}")
                if entry is None:
                    continue
                parts[kind] = torch.empty(entry["shape"], dtype=NAMED[entry["dtype"]])
                content = bytes_of(parts[kind])
                file.seek(start + entry["data_offsets"][0])
                complete = file.readinto(content) == content.nbytes and complete
                digest.update(content)
            if not complete:
                yield name, parts, f"{path}: the file ends inside or before the tensor {name}"
            elif digest.hexdigest() != expected:
                yield name, parts, f"{path}: the tensor {name} is damaged, its SHA-256 differs"
            else:
                yield name, parts, None


def _extra(path: Path, entries: Mapping[str, Any], start: int) -> list[str]:
    """A problem if something follows the last tensor."""
    extra = path.stat().st_size - start - max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    return [f"{path}: {extra} bytes follow the last tensor"] if extra > 0 else []
