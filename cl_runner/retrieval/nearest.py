"""Which of many kept vectors are nearest to others: exactly, or by an index of FAISS where there are very many."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

Search = Literal["exact", "faiss"]
#: Vectors from which on an index is worth its training; fewer are searched exactly.
MANY = 10_000
#: Numbers of a part of the distances' differences, at most: 64 MB in fp32.
AT_ONCE = 2**24


def check_search(search: Search, key: str) -> None:
    """Raise ValueError if the library that a search needs is missing.

    Args:
        key: of the option.
    """
    if search == "faiss" and importlib.util.find_spec("faiss") is None:
        raise ValueError(
            f"{key}=faiss searches by the library FAISS, which is not installed. Type: pip install faiss-cpu "
            f"(or {key}=exact)"
        )


class Nearest:
    """Kept vectors [N, width], to be asked for the nearest ones by Euclidean distance.

    Args:
        search: `faiss` = an inverted file of about sqrt(N) cells, of which an eighth is searched: nearly all of the
            nearest are found, in a fraction of the time.
    """

    def __init__(self, vectors: Tensor, search: Search = "exact"):
        self.vectors = vectors.float().cpu()
        self._index: Any = None
        if search == "faiss" and len(vectors) >= MANY:
            import faiss

            cells = int(len(vectors) ** 0.5)
            width = vectors.shape[1]
            self._index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, cells)
            self._index.train(self._rows(self.vectors))
            self._index.add(self._rows(self.vectors))
            self._index.nprobe = max(1, cells // 8)

    def __call__(self, asked: Tensor, count: int) -> Tensor:
        """[B, K] positions of the vectors nearest to each of [B, width], nearest first; of equal ones the first.

        Args:
            count: K, or all vectors if there are fewer.
        """
        count = min(count, len(self.vectors))
        asked = asked.float().cpu()
        if self._index is not None:
            found = torch.from_numpy(self._index.search(self._rows(asked), count)[1])
            if bool((found >= 0).all()):  # else the cells that were searched hold too few
                return found
        return torch.stack([self._exactly(one, count) for one in asked])

    def _exactly(self, one: Tensor, count: int) -> Tensor:
        # Differences, not products: of vectors that nearly agree a product's rounding would say which is nearer.
        parts = self.vectors.split(max(1, AT_ONCE // self.vectors.shape[1]))
        squares = torch.cat([(part - one).square().sum(1) for part in parts])
        return squares.sort(stable=True).indices[:count]

    @staticmethod
    def _rows(vectors: Tensor) -> np.ndarray:
        return vectors.contiguous().numpy()
