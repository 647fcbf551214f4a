"""Tensors that are read from files when they are needed: whole, or some rows of what several processes wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cl_runner.digests import Damaged
from cl_runner.stored import Stored, stored


def in_files(folder: Path, tensor: Tensor, sizes: list[int]) -> Stored:
    paths = [folder / f"{number}.safetensors" for number in range(len(sizes))]
    for path, rows in zip(paths, tensor.split(sizes), strict=True):
        save_file({"other": torch.zeros(()), "rows": rows.contiguous()}, path)
    return stored(paths)["rows"]


@pytest.mark.parametrize("sizes", [[7], [3, 4], [4, 3, 0], [2, 2, 2, 1], [0, 7]])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 2)])
def test_rows_are_those_of_the_whole(sizes: list[int], shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.randn(shape).to(torch.bfloat16)
    found = in_files(tmp_path, tensor, sizes)
    assert found.shape == tensor.shape and torch.equal(found.whole(), tensor)
    for begin in range(8):
        for end in range(begin, 8):
            rows = found.rows(begin, end)
            assert torch.equal(rows, tensor[begin:end]) and rows.dtype == tensor.dtype


def test_what_is_read_is_memory_of_its_own(tmp_path: Path) -> None:
    """Whose last bits do not follow from where the file has it, and which outlives the file."""
    tensor = torch.randn(6, 5)
    found = in_files(tmp_path, tensor, [6])
    one, other = found.whole(), found.rows(1, 3)
    one += 1
    other += 1
    for path in tmp_path.iterdir():
        path.unlink()
    assert torch.equal(found.whole(), tensor) and torch.equal(found.rows(1, 3), tensor[1:3])
    assert one.storage_offset() == other.storage_offset() == 0 and one.data_ptr() % 64 == other.data_ptr() % 64 == 0


def test_numbers_and_nothing(tmp_path: Path) -> None:
    save_file({"number": torch.tensor(3.0), "nothing": torch.zeros(0, 4)}, tmp_path / "file")
    found = stored([tmp_path / "file"])
    assert found["number"].shape == () and found["number"].whole() == 3
    assert found["nothing"].whole().shape == found["nothing"].rows(0, 0).shape == (0, 4)
    assert stored([]) == {}


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="gone"):
        stored([tmp_path / "gone"])
    (tmp_path / "odd").write_bytes(b"no tensors")
    with pytest.raises(Damaged, match="odd"):
        stored([tmp_path / "odd"])
