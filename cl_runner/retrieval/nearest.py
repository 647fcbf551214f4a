"""Which of many kept vectors are nearest to others: over all distances, or by FAISS where there are very many."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

Search = Literal["exact", "faiss"]
#: Vectors from which on FAISS is worth a copy of them; fewer are searched here.
MANY = 10_000
#: Numbers of a part of the distances' differences, at most: 64 MB in fp32.
AT_ONCE = 2**24
#: Squares of distances that differ by less may stand in another order in FAISS, which computes them by products.
ROUNDING = 1e-4


def has_faiss() -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec("faiss") is not None


class Nearest:
    """Kept vectors, to be asked for the nearest ones by Euclidean distance; both searches find the same ones.

    Args:
        vectors: [N, width] in parts, fp32 on the CPU; they may lie in files.
        search: `faiss` = by that library, if it is installed and the vectors are many.
    """

    def __init__(self, vectors: Sequence[Tensor], search: Search = "exact"):
        self._vectors = vectors
        self._count = sum(map(len, vectors))
        self._index: Any = None
        if search == "faiss" and self._count >= MANY and has_faiss():
            import faiss

            self._index = faiss.IndexFlatL2(vectors[0].shape[1])
            for part in vectors:
                self._index.add(self._rows(part))

    def __call__(self, asked: Tensor, count: int) -> Tensor:
        """[B, K] positions of the vectors nearest to each of [B, width], nearest first; of equal ones the first.

        Args:
            count: K, or all vectors if there are fewer.
        """
        count, asked = min(count, self._count), asked.float().cpu()
        if self._index is None:
            return torch.stack([self._exactly(one, count) for one in asked])
        candidates = torch.from_numpy(self._index.search(self._rows(asked), min(2 * count + 16, self._count))[1])
        return torch.stack([self._among(row, one, count) for row, one in zip(candidates, asked, strict=True)])

    def _exactly(self, one: Tensor, count: int) -> Tensor:
        # Differences, not products: of vectors that nearly agree a product's rounding would say which is nearer.
        rows = max(1, AT_ONCE // one.numel())
        squares = torch.cat([(part - one).square().sum(1) for whole in self._vectors for part in whole.split(rows)])
        return squares.sort(stable=True).indices[:count]

    def _among(self, candidates: Tensor, one: Tensor, count: int) -> Tensor:
        """The nearest of what FAISS found, unless others are as near as the last of them, up to rounding."""
        places = candidates.sort().values
        squares = (torch.stack([self._row(place) for place in places.tolist()]) - one).square().sum(1)
        nearest = squares.sort(stable=True)
        margin = ROUNDING * float(one.square().sum() + nearest.values[-1])
        if len(places) < self._count and nearest.values[-1] - nearest.values[count - 1] <= margin:
            return self._exactly(one, count)
        return places[nearest.indices[:count]]

    def _row(self, place: int) -> Tensor:
        for part in self._vectors:
            if place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(place)

    @staticmethod
    def _rows(vectors: Tensor) -> np.ndarray:
        return vectors.contiguous().numpy()
