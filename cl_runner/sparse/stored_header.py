"""The header of a snapshot as a file has it, which may come from anybody: checked before a byte of a tensor is read.

A header is believed only if it is, letter by letter, what the writer writes: so no entry can be there twice, or be of
another type than it seems. Every size follows from types and shapes and is held against the file, so that a file can
ask for no more memory than it has bytes itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_runner.digests import Damaged, readable
from cl_runner.sparse.bits import INTEGERS, NAMED, SKIP

FORMAT = "cl_runner.snapshot/2"
#: Bytes of a header: those of 30,000 tensors fit, and parsing it takes no more than some hundred megabytes.
LONGEST = 16 * 2**20
_KEYS = ("format", "task", "index", "base", "parent", "weights", "method", "model", "sha256", "content")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """A tensor of the file: of a parameter's gaps, change or values."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # of its bytes in the file
    end: int


@dataclass(frozen=True)
class FileHeader:
    """A sound header.

    Attributes:
        metadata: its texts.
        model: type and shape of every parameter, in the model's order.
        method: the method's configuration.
        parts: kind (change, dense, gap) -> `Part`, for every changed parameter, in the order of `digests`.
        digests: SHA-256 of each changed parameter's bytes.
        file_bytes: bytes of the file.
    """

    metadata: Mapping[str, str]
    model: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    method: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Part]]
    digests: Mapping[str, str]
    file_bytes: int

    @property
    def whole(self) -> bool:
        """Whether every parameter is stored as a whole."""
        return all("dense" in self.parts.get(name, ()) for name in self.model)


class Unusable(Damaged):
    """A snapshot is damaged, or cannot be what it says."""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def compact(value: Any) -> str:
    """JSON as a header holds it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def content_digest(header: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a header but itself; through the tensors' hashes in it, of the whole file."""
    metadata = {key: value for key, value in header["__metadata__"].items() if key != "content"}
    return hashlib.sha256(compact({**header, "__metadata__": metadata}).encode()).hexdigest()


def read_header(path: Path) -> FileHeader:
    """The header of a snapshot.

    Raises:
        Damaged: the file is missing, is no snapshot, is damaged, or its parts cannot be what they say.
    """
    if not path.is_file():
        raise Unusable(path, "there is no such file")
    with readable(path), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise Unusable(path, "the file is cut off in its header, or is no snapshot")
        if length > LONGEST:
            raise Unusable(path, f"a header of {length:,} bytes, where {LONGEST:,} are the most, is no snapshot's")
        text = file.read(length)
    header = _parsed(text)
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Unusable(path, "the header is damaged, or the file is no snapshot")
    if metadata.get("format", FORMAT) != FORMAT:
        raise Unusable(path, f"format {metadata['format']!r}; this version reads {FORMAT!r}")
    missing = [key for key in _KEYS if key not in metadata]
    if missing:
        raise Unusable(path, f"the header has no {missing[0]!r}: it is damaged, or the file is no snapshot")
    whole = {"__metadata__": metadata, **header}
    if metadata["content"] != content_digest(whole) or compact(whole).encode() != text.rstrip(b" "):
        raise Unusable(path, "the header is damaged (names, shapes, hashes or metadata)")
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", metadata["index"]):
        raise Unusable(path, f"its 'index' is {metadata['index'][:20]!r}, not the number of a task")
    method = _parsed(metadata["method"])
    if not isinstance(method, dict):
        raise Unusable(path, "its 'method' is no configuration")
    model = _model(path, metadata["model"])
    parts = _parts(path, header, model, 8 + length, size)
    found = metadata["sha256"].split(" ") if metadata["sha256"] else []
    if len(found) != len(parts) or not all(map(_HASH.fullmatch, found)):
        raise Unusable(path, f"it has {len(found)} hashes of {len(parts)} changed tensors")
    return FileHeader(metadata, model, method, parts, dict(zip(parts, found, strict=True)), size)


def _parsed(text: bytes | str) -> Any:
    """JSON, None if it is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shape(value: Any) -> tuple[int, ...] | None:
    """A shape, None if it is none."""
    sound = (
        isinstance(value, list) and len(value) <= 64 and all(type(side) is int and 0 <= side < 2**63 for side in value)
    )
    return tuple(value) if sound and math.prod(value) < 2**63 else None


def _model(path: Path, text: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of every parameter."""
    given = _parsed(text)
    if not isinstance(given, dict) or json.dumps(given, separators=(",", ":")) != text:
        raise Unusable(path, "its 'model' is no list of parameters")
    model = {}
    for name, kind in given.items():
        dtype = kind[0] if isinstance(kind, list) and kind else None
        shape = None if dtype is None else _shape(kind[1:])
        if not isinstance(dtype, str) or dtype not in NAMED or shape is None:
            raise Unusable(path, f"the parameter {name} is of a type or shape that there is not: {str(kind)[:60]}")
        model[name] = NAMED[dtype], shape
    if not any(math.prod(shape) for _, shape in model.values()):
        raise Unusable(path, "its 'model' has no parameters")
    return model


def _parts(
    path: Path,
    entries: Mapping[str, Any],
    model: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    start: int,
    size: int,
) -> dict[str, dict[str, Part]]:
    """Every changed parameter's tensors, the parameters sorted by name; each byte after the header belongs to one."""
    found: dict[str, dict[str, Part]] = {}
    for key, entry in entries.items():
        kind, _, name = key.partition("/")
        if kind not in ("change", "dense", "gap") or name not in model:
            raise Unusable(path, f"the tensor {key} is of no parameter of its model")
        found.setdefault(name, {})[kind] = _part(path, key, entry, start)
    for name, parts in found.items():
        reason = _misfit(parts, *model[name])
        if reason:
            raise Unusable(path, f"the tensor {name} {reason}")
    dense = [name for name, parts in found.items() if "dense" in parts]
    if dense and len(dense) < len(model):
        raise Unusable(path, f"it stores some of the model's tensors, such as {dense[0]}, whole, and others not")
    end = start
    places = [(part.begin, part.end, name) for name, parts in found.items() for part in parts.values()]
    for begin, following, name in sorted(places):
        if begin != end:
            raise Unusable(path, "its tensors overlap, or leave bytes between them")
        if following > size:
            raise Unusable(path, f"the file ends inside or before the tensor {name}")
        end = following
    if end < size:
        raise Unusable(path, f"{size - end} bytes follow the last tensor")
    return dict(sorted(found.items()))


def _part(path: Path, key: str, entry: Any, start: int) -> Part:
    """One tensor's place, of the size that its type and shape have."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Unusable(path, f"the tensor {key} has no type, shape and place")
    dtype, shape, place = entry["dtype"], _shape(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NAMED or shape is None:
        raise Unusable(path, f"the tensor {key} is of a type or shape that there is not")
    if not isinstance(place, list) or len(place) != 2 or any(type(end) is not int or end < 0 for end in place):
        raise Unusable(path, f"the tensor {key} has no place in the file")
    size = math.prod(shape) * NAMED[dtype].itemsize
    if place[1] - place[0] != size:
        raise Unusable(path, f"the tensor {key} has a place of {place[1] - place[0]} bytes and needs {size}")
    return Part(NAMED[dtype], shape, start + place[0], start + place[1])


def _misfit(parts: Mapping[str, Part], dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """Why these parts are no change of a parameter; None if they may be one."""
    entries = math.prod(shape)
    if "dense" in parts:
        fits = len(parts) == 1 and (parts["dense"].dtype, parts["dense"].shape) == (dtype, shape)
        return None if fits else "is stored whole and is not of its parameter's type and shape"
    if "change" not in parts:
        return "has positions and no change"
    change, gap = parts["change"], parts.get("gap")
    if change.dtype != INTEGERS[dtype.itemsize]:
        return f"has a change of {change.dtype}, which is not as wide as {dtype}"
    if gap is None:
        return None if change.shape == shape else "has a change of another shape"
    if gap.dtype != torch.uint16 or len(gap.shape) != 1 or len(change.shape) != 1:
        return "has positions that are no list of gaps"
    stored, gaps = change.shape[0], gap.shape[0]
    if not 0 < stored <= min(entries, gaps) or gaps - stored > entries // SKIP:
        return f"has {stored} changes and {gaps} gaps in {entries} entries"
    return None
