"""Tensors as bits: integers that can be XORed, hashes, and sorted positions as 16-bit gaps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

#: safetensors' name of a type.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint16: "U16",
}
NAMED = {name: dtype for dtype, name in DTYPES.items()}
#: The integers that hold the bits of a type, by bytes.
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
#: The gap that leads to no entry.
SKIP = 0xFFFF


def tensor_digests(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 over type, shape and bytes of every tensor, by name; on as many threads as torch uses."""
    # The largest first, so that no thread is left alone with the longest work.
    names = sorted(weights, key=lambda name: (-weights[name].numel(), name))
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # hashlib releases the interpreter's lock
        digests = dict(zip(names, pool.map(lambda name: digest(weights[name]), names), strict=True))
    return {name: digests[name] for name in weights}


def combine(digests: Mapping[str, str]) -> str:
    """The hash of a model, from `tensor_digests`: SHA-256 over names and digests, in the order of the names."""
    lines = "".join(f"{name}\0{digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a model's names, types, shapes and bytes."""
    return combine(tensor_digests(weights))


def bits_of(tensor: Tensor) -> Tensor:
    """The bits of numbers as integers of the same width; shares memory if the tensor is contiguous."""
    return tensor.detach().contiguous().view(INTEGERS[tensor.dtype.itemsize])


def gaps_of(index: Tensor, size: int) -> Tensor:
    """Sorted positions below `size` as uint16 differences."""
    index = index.long()
    gaps = index.diff(prepend=index.new_zeros(1))
    assert bool((gaps[1:] > 0).all()) and int(index[0]) >= 0, "positions are not sorted"
    assert int(index[-1]) < size, f"position {int(index[-1])} of a tensor of {size} entries"
    skips = gaps // SKIP
    stored = torch.full((index.numel() + int(skips.sum()),), SKIP)
    stored[(skips + 1).cumsum(0) - 1] = gaps % SKIP
    return stored.to(torch.uint16)


def positions_of(gaps: Tensor) -> Tensor:
    """The counterpart of `gaps_of`, int64."""
    wide = gaps.long()
    return wide.cumsum(0)[wide != SKIP]


def positions_misfit(gaps: Tensor, stored: int, size: int) -> str | None:
    """Why these are not the gaps of `stored` sorted positions below `size`, each there once; None if they are."""
    wide = gaps.long()
    here = wide != SKIP
    if int(here.sum()) != stored or not bool(here[-1]):
        return f"has {int(here.sum())} positions for {stored} changes"
    positions = wide.cumsum(0)[here]
    if not bool((positions.diff() > 0).all()):
        return "has positions twice"
    return f"has a position beyond its {size} entries" if int(positions[-1]) >= size else None


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes to be read, without a copy if it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # Tensor.numpy() would fix the storage's size, and weights in parts let go of what they brought together.
    return np.from_dlpack(flat.view(torch.uint8)).data


def digest_prefix(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """What a tensor's digest begins with: its bytes follow."""
    return f"{dtype}\0{shape}\0".encode()


def digest(tensor: Tensor) -> str:
    """SHA-256 over a tensor's type, shape and bytes."""
    found = hashlib.sha256(digest_prefix(tensor.dtype, tuple(tensor.shape)))
    found.update(bytes_of(tensor))
    return found.hexdigest()
