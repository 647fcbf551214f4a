"""What a task changed in the model, as one safetensors file that names its parent and finds its own damage.

A tensor `name` of which some entries changed is stored as `index/<name>` (sorted flat positions, int32 where
they fit) and `value/<name>` (final values, not differences); one that changed as a whole as `dense/<name>`.
The metadata hold hashes of the weights before and after, so that a chain of snapshots leads from the starting
weights to those after any task and every link can be checked. The same change always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cl_runner.checkpoint import sync_folder

FORMAT = "cl_runner.snapshot/1"

#: safetensors' name of a type.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}
_ITEM_SIZES = {name: dtype.itemsize for dtype, name in _DTYPES.items()}


@dataclass(frozen=True)
class Change:
    """New content of a tensor: `values` at the sorted flat positions `index`, or of the whole tensor."""

    values: Tensor  # [entries], or the tensor's shape if index is None; the model's type
    index: Tensor | None


@dataclass(frozen=True)
class Description:
    """What a snapshot's header says.

    Attributes:
        base: hash of the untrained starting weights.
        parent: hash of the weights before the task; `weights`: after it.
        method: the method's configuration.
        shapes: of all parameters of the model, changed or not.
        stored: number of values stored (PE table 3).
        file_bytes: bytes on disk.
        model_bytes: bytes of all parameters, at the stored values' precision.
        whole: every parameter is stored as a whole, so nothing else is needed to restore the weights.
    """

    task: str
    index: int
    base: str
    parent: str
    weights: str
    method: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    stored: int
    file_bytes: int
    model_bytes: int
    whole: bool

    @property
    def share(self) -> float:
        """Bytes on disk in percent of the model's."""
        return 100 * self.file_bytes / self.model_bytes


@dataclass(frozen=True)
class Snapshot:
    """A snapshot in memory: its header and the changes by parameter name."""

    description: Description
    changes: dict[str, Change]


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def write_snapshot(
    path: Path,
    changes: Mapping[str, Change],
    *,
    sizes: Mapping[str, Sequence[int]],
    task: str,
    index: int,
    base: str,
    parent: str,
    weights: str,
    method: Mapping[str, Any],
) -> int:
    """Write a snapshot in one step: a reader, or a crash, sees the whole file or none.

    Args:
        changes: by parameter name.
        sizes: shapes of all parameters of the model.
        task, index: name and position of the task.
        base, parent, weights: hashes of the weights untrained, before the task, and after it.
        method: the method's configuration, as JSON can hold it.

    Returns:
        Bytes on disk.
    """
    tensors: dict[str, Tensor] = {}
    for name in sorted(changes):
        values, positions = changes[name].values, changes[name].index
        if positions is None:
            assert list(values.shape) == list(sizes[name]), f"{name}: {values.shape}, expected {sizes[name]}"
            tensors[f"dense/{name}"] = values.detach().cpu()
        else:
            assert values.shape == positions.shape, f"{name}: {values.shape} values, {positions.shape} positions"
            assert bool((positions.diff() > 0).all()), f"{name}: positions are not sorted"
            fits = math.prod(sizes[name]) < 2**31
            tensors[f"index/{name}"] = positions.cpu().to(torch.int32 if fits else torch.int64)
            tensors[f"value/{name}"] = values.detach().cpu()
    digests = {name: hashlib.sha256() for name in sorted(changes)}
    # Widest types first keeps every tensor aligned, as safetensors wants it.
    keys = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    entries: dict[str, Any] = {}
    end = 0
    for key in keys:
        tensor = tensors[key]
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        shape = list(tensor.shape)
        entries[key] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
        digests[key.partition("/")[2]].update(_bytes(tensor))
    metadata = {
        "format": FORMAT,
        "task": task,
        "index": str(index),
        "base": base,
        "parent": parent,
        "weights": weights,
        "method": _json(method),
        "shapes": _json({name: list(shape) for name, shape in sizes.items()}),
        "sha256": _json({name: digest.hexdigest() for name, digest in digests.items()}),
    }
    metadata["content"] = _content({"__metadata__": metadata, **entries})
    header = _json({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % 8)
    # Written here and not by safetensors, whose order of metadata differs from call to call.
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for key in keys:
            file.write(_bytes(tensors[key]))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
    return 8 + len(header) + end


def describe_snapshot(path: Path) -> Description:
    """The header of a snapshot; the stored values are neither read nor checked.

    Raises:
        ValueError: there is no such file, it is no snapshot, or its header is damaged.
    """
    entries, metadata, _ = _header(path)
    shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
    stored = {key: entry for key, entry in entries.items() if not key.startswith("index/")}
    # A task that changed nothing stores nothing; weights are fp32 unless stored otherwise.
    item_size = max((_ITEM_SIZES[entry["dtype"]] for entry in stored.values()), default=4)
    return Description(
        task=metadata["task"],
        index=int(metadata["index"]),
        base=metadata["base"],
        parent=metadata["parent"],
        weights=metadata["weights"],
        method=json.loads(metadata["method"]),
        shapes=shapes,
        stored=sum(math.prod(entry["shape"]) for entry in stored.values()),
        file_bytes=path.stat().st_size,
        model_bytes=item_size * sum(math.prod(shape) for shape in shapes.values()),
        whole=all(f"dense/{name}" in entries for name in shapes),
    )


def verify_snapshot(path: Path) -> list[str]:
    """What is wrong with a snapshot: one line per problem, with file and tensor; empty if it is sound."""
    try:
        entries, metadata, start = _header(path)
    except ValueError as error:
        return [str(error)]
    problems = []
    end = start
    with path.open("rb") as file:
        for name, expected in json.loads(metadata["sha256"]).items():
            digest = hashlib.sha256()
            complete = True
            for key in (f"dense/{name}", f"index/{name}", f"value/{name}"):
                if key not in entries:
                    continue
                begin, stop = entries[key]["data_offsets"]
                file.seek(start + begin)
                content = file.read(stop - begin)
                complete = complete and len(content) == stop - begin
                digest.update(content)
                end = max(end, start + stop)
            if not complete:
                problems.append(f"{path}: the file ends inside or before the tensor {name}")
            elif digest.hexdigest() != expected:
                problems.append(f"{path}: the tensor {name} is damaged, its SHA-256 differs")
    extra = path.stat().st_size - end
    if extra > 0:
        problems.append(f"{path}: {extra} bytes follow the last tensor")
    return problems


def read_snapshot(path: Path) -> Snapshot:
    """Read and check a snapshot; tensors on the CPU, positions as int64.

    Raises:
        ValueError: the file is missing or damaged; the text names the tensor.
    """
    problems = verify_snapshot(path)
    if problems:
        raise ValueError("\n".join(problems))
    changes = {}
    tensors = load_file(path)
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind == "dense":
            changes[name] = Change(tensor, None)
        elif kind == "value":
            changes[name] = Change(tensor, tensors[f"index/{name}"].long())
    return Snapshot(describe_snapshot(path), changes)


@torch.no_grad()
def apply_snapshot(weights: Mapping[str, Tensor], snapshot: Snapshot) -> None:
    """Write a snapshot's values into `weights`, in place."""
    for name, change in snapshot.changes.items():
        weight = weights[name]
        if change.index is None:
            weight.copy_(change.values)
        else:
            weight.view(-1)[change.index.to(weight.device)] = change.values.to(weight)


def read_weights(paths: Sequence[Path], base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights after the last of a chain of snapshots, bit by bit what they were; on the CPU.

    Args:
        paths: snapshots in the order of their tasks, each the parent of the next.
        base: the untrained starting weights, left as they are; needed unless the first snapshot is whole.

    Raises:
        ValueError: a file is missing or damaged, a link of the chain does not fit, or the result is not what
            the last snapshot promises; the text names the file.
    """
    assert paths, "a chain has at least one snapshot"
    first = describe_snapshot(paths[0])
    if first.whole:
        weights = {name: change.values for name, change in read_snapshot(paths[0]).changes.items()}
        reached, rest = first.weights, paths[1:]
    elif base is None:
        raise ValueError(f"{paths[0]} stores a part of the model only; its parent's weights are needed as well")
    else:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in base.items()}
        reached, rest = weights_hash(weights), paths
    last = paths[0]
    for path in rest:
        snapshot = read_snapshot(path)
        if snapshot.description.parent != reached:
            before = "the starting weights" if path == paths[0] else str(last)
            raise ValueError(
                f"{path} does not follow on {before}: it changes weights {snapshot.description.parent[:12]}, "
                f"these are {reached[:12]}"
            )
        apply_snapshot(weights, snapshot)
        reached, last = snapshot.description.weights, path
    found = weights_hash(weights)
    if found != reached:
        raise ValueError(f"{last}: the restored weights are {found[:12]}, but should be {reached[:12]}")
    return weights


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, without a copy if it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _content(header: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a header but itself; through the tensors' hashes in it, of the whole file."""
    metadata = {key: value for key, value in header["__metadata__"].items() if key != "content"}
    return hashlib.sha256(_json({**header, "__metadata__": metadata}).encode()).hexdigest()


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
