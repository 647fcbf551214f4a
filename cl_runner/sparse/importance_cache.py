"""Importance that runs share: files named by a hash of everything that the sums depend on.

A file of tensor_files.py: a damaged one costs the pass again, never a wrong result.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from cl_runner.sparse.importance import Importance
from cl_runner.tensor_files import read_cached, write_tensors

#: Changes when the sums are computed in another way, or the files hold something else.
FORMAT = 2

#: Files that a crashed run left half written are removed when they are this old.
STALE_SECONDS = 24 * 3600.0


def named(key: str, names: Collection[str]) -> str:
    """The key of a file that holds the sums of these parameters."""
    return hashlib.sha256(json.dumps([key, sorted(names)]).encode()).hexdigest()


def key(
    *,
    weights: str,
    data: object,
    micro_batch: int,
    gradient: bool,
    labels: str,
    seed: int | None,
    max_examples: int | None,
    dtype: torch.dtype,
    precision: str,
    device: str,
) -> str:
    """SHA-256 of everything that the sums of a parameter depend on; any difference gives another key.

    Args:
        weights: hash of all the model's weights.
        data: what the model reads, as JSON can hold it: the examples, in order, and the settings of backbone and
            tokenizer that turn them into batches, with the batch size.
        micro_batch, gradient, max_examples, dtype: as given to `measure` and `cap`.
        labels: true labels, or drawn from the model.
        seed: of what was drawn; None if nothing was, so that runs of different seeds share the result.
        precision: of the pass.
        device: the kind of device, as kinds differ in the last bits.
    """
    content = {
        "format": FORMAT,
        "torch": torch.__version__,
        "weights": weights,
        "data": data,
        "micro_batch": micro_batch,
        "gradient": gradient,
        "labels": labels,
        "seed": seed,
        "max_examples": max_examples,
        "dtype": str(dtype),
        "precision": precision,
        "device": device,
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load(folder: Path, key: str, warn: Callable[[str], None] = lambda line: None) -> Importance | None:
    """The stored importance, in main memory; None if there is none. A damaged file is removed: one line to `warn`."""
    path = _path(folder, key)
    kept = read_cached(path, warn)
    if kept is None:
        return None
    tensors, metadata = kept
    with suppress(OSError):  # a folder that can only be read
        os.utime(path)  # used now: the last to be evicted
    parts: dict[str, dict[str, Tensor]] = {"gradient": {}, "fisher": {}}
    for name in json.loads(metadata["order"]):
        for kind, held in parts.items():
            if f"{kind}/{name}" in tensors:
                held[name] = tensors[f"{kind}/{name}"]
    return Importance(
        parts["gradient"] or None, parts["fisher"], units=int(metadata["units"]), examples=int(metadata["examples"])
    )


def store(
    folder: Path, key: str, importance: Importance, limit_bytes: int, warn: Callable[[str], None] = lambda line: None
) -> None:
    """Store under `key` in one step, then remove the least recently used files beyond `limit_bytes` in all.

    Several processes may store the same key. A failure to write costs the next run a pass: it is one line to `warn`.
    """
    tensors = {f"fisher/{name}": total for name, total in importance.fisher.items()}
    tensors |= {f"gradient/{name}": total for name, total in (importance.gradient or {}).items()}
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if needed > limit_bytes:
        warn(f"importance of {needed} bytes is not cached: the limit is {limit_bytes} bytes in {folder}")
        return
    metadata = {
        "units": str(importance.units),
        "examples": str(importance.examples),
        "order": json.dumps(list(importance.fisher)),
    }
    try:
        write_tensors(_path(folder, key), tensors, metadata)
        evict(folder, limit_bytes, _path(folder, key))
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        warn(f"importance is not cached, the next run computes it again: {folder}: {reason}")


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def evict(folder: Path, limit_bytes: int, newest: Path) -> None:
    """Remove the least recently used files until the others fit; another process may be removing them too."""
    for left_over in folder.glob("*.tmp"):
        with suppress(OSError):
            if time.time() - left_over.stat().st_mtime > STALE_SECONDS:
                left_over.unlink()
    files = []
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):
            status = path.stat()
            files.append((path != newest, -status.st_mtime, status.st_size, path))
    total = 0
    for _, _, size, path in sorted(files):  # the newest first
        total += size
        if total > limit_bytes and path != newest:
            with suppress(OSError):
                path.unlink()
