"""Tensors that lie in files, whole, or by rows in one file of each process that wrote some; read when needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cl_runner.digests import Damaged, readable


class Stored:
    """A tensor in files of safetensors, which stay readable for as long as this is held.

    Args:
        name: of the tensor, in each file.
        files: opened; each has the rows that follow on those of the file before it.

    Attributes:
        shape: of the whole tensor.
    """

    def __init__(self, name: str, files: Sequence[Any]):
        self._name, self._files = name, files
        shapes = [file.get_slice(name).get_shape() for file in files]
        self._rows = [shape[0] if shape else 1 for shape in shapes]
        self.shape = torch.Size([sum(self._rows), *shapes[0][1:]] if shapes[0] else [])

    def whole(self) -> Tensor:
        """All of it, in main memory."""
        if len(self._files) == 1:
            return self._own(self._files[0].get_tensor(self._name))
        return self.rows(0, self.shape[0])

    def rows(self, begin: int, end: int) -> Tensor:
        """Some rows [end - begin, ...], in main memory."""
        found, at = [], 0
        for file, rows in zip(self._files, self._rows, strict=True):
            low, high = max(begin - at, 0), min(end - at, rows)
            if low < high:
                found.append(file.get_slice(self._name)[low:high])
            at += rows
        if not found:
            return self._own(self._files[0].get_tensor(self._name)[:0])
        return torch.cat(found) if len(found) > 1 else self._own(found[0])

    @staticmethod
    def _own(tensor: Tensor) -> Tensor:
        # In memory of its own, as what a run computes is: last bits of products follow from where a tensor begins.
        return tensor.clone(memory_format=torch.contiguous_format)


def stored(paths: Sequence[Path]) -> dict[str, Stored]:
    """The tensors of files that have the same names, by name: the rows of each lie in the files in their order.

    Raises:
        Damaged: a file cannot be read.
    """
    files = []
    for path in paths:
        with readable(path):
            try:
                files.append(safe_open(path, "pt"))
            except SafetensorError as error:
                raise Damaged(path, f"is damaged ({error})") from None
    return {name: Stored(name, files) for name in (files[0].keys() if files else ())}
