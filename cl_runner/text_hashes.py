"""Hashes of many texts, 16 bytes each: which of them are alike, and where a text stands, without holding the texts.

With 10 million texts two that differ have the same hash (BLAKE2b, 128 bits) with a probability of 1e-25.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

#: [texts, 2]
Hashes: TypeAlias = NDArray[np.uint64]


def text_hash(*texts: str) -> bytes:
    """Of a text, or of several that belong together."""
    if len(texts) > 1:
        texts = tuple(f"{len(text)} {text}" for text in texts)
    return hashlib.blake2b("".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def hashes(found: Iterable[bytes]) -> Hashes:
    """Those of `text_hash`, as numbers."""
    joined = bytearray()
    for one in found:
        joined += one
    return np.frombuffer(joined, np.dtype("<u8")).reshape(-1, 2)


def first_places(found: Hashes) -> NDArray[np.int64]:
    """Where each different one stands for the first time, ascending."""
    order = np.lexsort((found[:, 1], found[:, 0]))  # of equal ones the first comes first
    ordered = found[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    places: NDArray[np.int64] = np.sort(order[new])
    return places


def shared(found: Hashes, others: Hashes) -> int:
    """How many of the others, each as often as it stands there, are among those found."""
    likely = found[np.isin(found[:, 0], others[:, 0])]
    known = {(high, low) for high, low in likely.tolist()}
    return sum((high, low) in known for high, low in others.tolist())


class Places:
    """Hash -> its place: 24 bytes each.

    Args:
        found: all different.
    """

    def __init__(self, found: Hashes) -> None:
        order = np.argsort(found[:, 0], kind="stable")
        self._high, self._low, self._places = array("Q"), array("Q"), array("q")
        self._high.frombytes(found[order, 0].tobytes())
        self._low.frombytes(found[order, 1].tobytes())
        self._places.frombytes(order.astype(np.int64).tobytes())

    def of(self, text: bytes) -> int | None:
        """None: it is not there."""
        high, low = int.from_bytes(text[:8], "little"), int.from_bytes(text[8:], "little")
        at = bisect_left(self._high, high)
        while at < len(self._high) and self._high[at] == high:
            if self._low[at] == low:
                return self._places[at]
            at += 1
        return None
