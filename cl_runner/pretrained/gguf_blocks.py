"""Weights as llama.cpp packs them, in blocks with a scale each, as fp32.

Layouts: ggml's ggml-common.h, whose names they have; sums and products are in its order, so that the package `gguf`
gives the same bits (twice as slowly, and it takes 1.7 s to read the header of 49,000 tokens, which takes 0.1 s here).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Layout(NamedTuple):
    """How a type of weights is packed.

    Attributes:
        name: of llama.cpp.
        weights: of a block.
        size: of a block, in bytes.
        unpacked: blocks [n, size] -> fp32 [n, weights].
    """

    name: str
    weights: int
    size: int
    unpacked: Callable[[Array], Array]


def unpacked(data: Array, layout: Layout, shape: tuple[int, ...]) -> Array:
    """Packed bytes as fp32 [shape]."""
    return layout.unpacked(data.reshape(-1, layout.size)).reshape(shape)


def _halves(blocks: Array) -> Array:
    """Numbers of 16 bits, [n, k] of [n, 2 k]."""
    return np.ascontiguousarray(blocks).view("<f2").astype("f4")


def _nibbles(blocks: Array) -> Array:
    """The low halves of a block's bytes, then the high ones."""
    return np.concatenate([blocks & 15, blocks >> 4], 1)


def _fields(blocks: Array, bits: int, run: int) -> Array:
    """Fields of some bits [n, 8 / bits * k]: of each run of bytes the lowest first."""
    shifts = np.arange(0, 8, bits, dtype="u1")[:, None]
    return (blocks.reshape(len(blocks), -1, 1, run) >> shifts & (1 << bits) - 1).reshape(len(blocks), -1)


def _scaled(values: Array, scales: Array, least: Array | None = None) -> Array:
    """Values [n, k] times the scale of their part of the block [n, parts], less the part's own number."""
    parts = values.reshape(*scales.shape, -1)
    found = scales[..., None] * parts if least is None else scales[..., None] * parts - least[..., None]
    return found.reshape(len(values), -1)


def _q4_0(blocks: Array) -> Array:
    return _halves(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).astype("f4") - 8)


def _q4_1(blocks: Array) -> Array:
    scale, least = np.split(_halves(blocks[:, :4]), 2, 1)
    return scale * _nibbles(blocks[:, 4:]) + least


def _fives(high: Array, low: Array) -> Array:
    """Numbers of 5 bits: the highest of each in a number of 32 bits."""
    return _nibbles(low) | np.unpackbits(np.ascontiguousarray(high), axis=1, bitorder="little") << 4


def _q5_0(blocks: Array) -> Array:
    return _halves(blocks[:, :2]) * (_fives(blocks[:, 2:6], blocks[:, 6:]).astype("f4") - 16)


def _q5_1(blocks: Array) -> Array:
    scale, least = np.split(_halves(blocks[:, :4]), 2, 1)
    return scale * _fives(blocks[:, 4:8], blocks[:, 8:]) + least


def _q8_0(blocks: Array) -> Array:
    return _halves(blocks[:, :2]) * blocks[:, 2:].view("i1")


def _q2_k(blocks: Array) -> Array:
    scales, values = blocks[:, :16], _fields(blocks[:, 16:80], 2, 32)
    scale, least = np.split(_halves(blocks[:, 80:]), 2, 1)
    return _scaled(values, scale * (scales & 15), least * (scales >> 4))


def _q3_k(blocks: Array) -> Array:
    values = _fields(blocks[:, 32:96], 2, 32).astype("i1") - (_fields(blocks[:, :32], 1, 32) ^ 1).astype("i1") * 4
    scales = _fields(blocks[:, 96:104], 4, 8) | _fields(blocks[:, 104:108], 2, 4) << 4
    return _scaled(values, _halves(blocks[:, 108:]) * (scales.astype("i1") - 32))


def _sixes(packed: Array) -> tuple[Array, Array]:
    """Scales and least numbers of a block's eight parts, 6 bits each: [n, 12] -> [n, 8] twice."""
    first, second, rest = np.split(packed, 3, 1)
    return (
        np.concatenate([first & 63, rest & 15 | first >> 2 & 48], 1),
        np.concatenate([second & 63, rest >> 4 | second >> 2 & 48], 1),
    )


def _k(blocks: Array, values: Array) -> Array:
    """Values of Q4_K and Q5_K by the scales that their blocks begin with."""
    (scale, least), (scales, minima) = np.split(_halves(blocks[:, :4]), 2, 1), _sixes(blocks[:, 4:16])
    return _scaled(values, scale * scales, least * minima)


def _q4_k(blocks: Array) -> Array:
    return _k(blocks, _fields(blocks[:, 16:], 4, 32))


def _q5_k(blocks: Array) -> Array:
    return _k(blocks, _fields(blocks[:, 48:], 4, 32) | _fields(blocks[:, 16:48], 1, 32) << 4)


def _q6_k(blocks: Array) -> Array:
    values = _fields(blocks[:, :128], 4, 64) | _fields(blocks[:, 128:192], 2, 32) << 4
    return _scaled(values.astype("i1") - 32, _halves(blocks[:, 208:]) * blocks[:, 192:208].view("i1"))


def _bf16(blocks: Array) -> Array:
    return (np.ascontiguousarray(blocks).view("<u2").astype("u4") << 16).view("f4")


#: By ggml's number of the type.
LAYOUTS = {
    0: Layout("F32", 1, 4, lambda blocks: np.ascontiguousarray(blocks).view("<f4").astype("f4")),
    1: Layout("F16", 1, 2, _halves),
    2: Layout("Q4_0", 32, 18, _q4_0),
    3: Layout("Q4_1", 32, 20, _q4_1),
    6: Layout("Q5_0", 32, 22, _q5_0),
    7: Layout("Q5_1", 32, 24, _q5_1),
    8: Layout("Q8_0", 32, 34, _q8_0),
    10: Layout("Q2_K", 256, 84, _q2_k),
    11: Layout("Q3_K", 256, 110, _q3_k),
    12: Layout("Q4_K", 256, 144, _q4_k),
    13: Layout("Q5_K", 256, 176, _q5_k),
    14: Layout("Q6_K", 256, 210, _q6_k),
    30: Layout("BF16", 1, 2, _bf16),
}
#: Types that are not read here, for messages.
OTHERS = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
