"""Snapshots: exact restore, chains, damage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from stored import METHOD, assert_equal, learn, make_run, snapshots, starting_weights

from cl_runner.sparse.bits import INTEGERS, bits_of, combine, gaps_of, positions_of, tensor_digests, weights_hash
from cl_runner.sparse.chain import apply_snapshot, read_weights
from cl_runner.sparse.snapshots import (
    Change,
    Snapshot,
    describe_snapshot,
    read_snapshot,
    save_snapshot,
    verify_snapshot,
    write_snapshot,
)

WHOLE: dict[str, list[int] | None] = {"encoder.weight": None, "head.weight": None, "scale": None}
PART: dict[str, list[int] | None] = {"encoder.weight": [1, 29], "head.weight": [2], "scale": None}


@pytest.mark.parametrize("first", [WHOLE, PART])
def test_chain_is_bit_exact(tmp_path: Path, first: dict[str, list[int] | None]) -> None:
    history = make_run(tmp_path, starting_weights(), first)
    files = snapshots(tmp_path)
    base = None if first is WHOLE else history[0]
    for index in range(3):
        assert_equal(read_weights(files[: index + 1], base), history[index + 1])
    assert_equal(history[0], starting_weights())  # the base given was not changed
    assert [verify_snapshot(file) for file in files] == [[], [], []]


def test_format(tmp_path: Path) -> None:
    """The layout others rely on, read by the safetensors library itself."""
    weights = starting_weights()
    start = weights_hash(weights)
    path = tmp_path / "00_books.safetensors"
    size = learn(path, weights, "books", 0, start, PART)
    assert size == path.stat().st_size
    tensors = load_file(path)
    sparse = {f"{kind}/{name}" for kind in ("gap", "change") for name in ("encoder.weight", "head.weight")}
    assert set(tensors) == {*sparse, "change/scale"}
    assert tensors["gap/encoder.weight"].dtype == torch.uint16
    assert tensors["gap/encoder.weight"].long().tolist() == [1, 28]
    before, at = starting_weights(), torch.tensor([1, 29])
    old, new = (side["encoder.weight"].view(-1)[at].view(torch.int32) for side in (before, weights))
    assert tensors["change/encoder.weight"].dtype == torch.int32
    assert torch.equal(tensors["change/encoder.weight"], old ^ new)
    assert tensors["change/head.weight"].dtype == torch.int16
    assert tensors["change/scale"].shape == ()
    assert torch.equal(
        (before["scale"].view(torch.int32) ^ tensors["change/scale"]), weights["scale"].view(torch.int32)
    )
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["task"], metadata["index"], metadata["base"]) == ("books", "0", start)
    assert metadata["weights"] == weights_hash(weights)
    assert json.loads(metadata["method"]) == METHOD
    model = {"encoder.weight": ["F32", 6, 5], "head.weight": ["BF16", 4], "scale": ["F32"]}
    assert json.loads(metadata["model"]) == model
    assert not (tmp_path / "00_books.safetensors.tmp").exists()


def test_description(tmp_path: Path) -> None:
    """PE table 3: stored values, bytes, share; a model of 35 fp32 values has 140 bytes."""
    make_run(tmp_path, {name: weight.float() for name, weight in starting_weights().items()}, PART)
    first, second, third = (describe_snapshot(file) for file in snapshots(tmp_path))
    assert (first.stored, second.stored, third.stored) == (2 + 1 + 1, 3, 0)
    assert first.file_bytes == snapshots(tmp_path)[0].stat().st_size
    assert first.model_bytes == third.model_bytes == 140
    assert first.share == pytest.approx(100 * first.file_bytes / 140)
    assert (first.parent, first.weights) == (first.base, second.parent)
    assert not first.whole
    assert first.shapes["encoder.weight"] == (6, 5)


def test_the_same_change_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        learn(tmp_path / name, starting_weights(), "books", 0, "base", PART)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("positions", "gaps"),
    [
        ([0, 65534], [0, 65534]),
        ([65535], [65535, 0]),  # 65535 goes on without an entry
        ([3, 65538, 65539], [3, 65535, 0, 1]),
        ([196610, 196611], [65535, 65535, 65535, 5, 1]),
    ],
)
def test_wide_gaps(positions: list[int], gaps: list[int]) -> None:
    found = gaps_of(torch.tensor(positions), 200_000)
    assert found.dtype == torch.uint16 and found.long().tolist() == gaps
    assert positions_of(found).tolist() == positions


def test_positions_beyond_int32(tmp_path: Path) -> None:
    positions = torch.tensor([5, 2**31 + 7])
    path = tmp_path / "x.safetensors"
    model = {"w": torch.empty(2, 2**31, device="meta")}
    names = {"base": "b", "parent": "p", "weights": "w"}
    changes = {"w": Change(torch.ones(2), positions, torch.zeros(2))}
    write_snapshot(path, changes, model=model, task="t", index=0, method={}, **names)
    found = read_snapshot(path).changes["w"].index
    assert found is not None and torch.equal(found, positions)


#: Bits that arithmetic would not keep: NaN with payloads, -0.0, the smallest subnormal, infinity.
STRANGE = {
    torch.float32: [0x7FC12345, -0x80000000, 1, 0x7F800000, 0x7F800001, 0x3F800000],
    torch.bfloat16: [0x7FC1, -0x8000, 1, 0x7F80, 0x7F81, 0x3F80],
    torch.float16: [0x7E01, -0x8000, 1, 0x7C00, 0x7C01, 0x3C00],
    torch.float64: [0x7FF8000000012345, -(2**63), 1, 0x7FF0000000000000, 0x7FF0000000000001, 0x3FF0000000000000],
}


@pytest.mark.parametrize("dtype", STRANGE, ids=str)
@pytest.mark.parametrize("whole", [False, True])
def test_forward_and_back_keep_every_bit(tmp_path: Path, dtype: torch.dtype, whole: bool) -> None:
    integers = INTEGERS[dtype.itemsize]
    strange = torch.tensor(STRANGE[dtype], dtype=integers).view(dtype)
    before = {"w": torch.randn(90_000).to(dtype).view(300, 300), "other": torch.ones(3, dtype=dtype)}
    at = torch.tensor([0, 1, 2, 70_000, 70_001, 89_999])
    after = {name: weight.clone() for name, weight in before.items()}
    after["w"].view(integers).view(-1)[at] = strange.view(integers)
    before["w"].view(integers).view(-1)[at] = strange.flip(0).view(integers)
    change = (
        Change(after["w"], None, before["w"])
        if whole
        else Change(after["w"].view(-1)[at], at, before["w"].view(-1)[at])
    )
    hashes = {"base": "b", "parent": weights_hash(before), "weights": weights_hash(after)}
    path = tmp_path / "x.safetensors"
    write_snapshot(path, {"w": change}, model=before, task="t", index=0, method={}, **hashes)
    weights = {name: weight.clone() for name, weight in before.items()}
    snapshot = read_snapshot(path)
    apply_snapshot(weights, snapshot)
    assert torch.equal(bits_of(weights["w"]), bits_of(after["w"])) and weights_hash(weights) == hashes["weights"]
    apply_snapshot(weights, snapshot)
    assert torch.equal(bits_of(weights["w"]), bits_of(before["w"])) and weights_hash(weights) == hashes["parent"]
    assert weights_hash(read_weights([path], before)) == hashes["weights"]


def test_six_bytes_a_value_in_fp32_and_four_in_bf16(tmp_path: Path) -> None:
    for dtype, per_value in ((torch.float32, 6), (torch.bfloat16, 4)):
        model = {"w": torch.zeros(100, 100, dtype=dtype)}
        at = torch.arange(0, 10_000, 100)
        changes = {"w": Change(torch.ones(100, dtype=dtype), at, torch.zeros(100, dtype=dtype))}
        path = tmp_path / "x.safetensors"
        names = {"base": "b", "parent": "p", "weights": "w"}
        size = write_snapshot(path, changes, model=model, task="t", index=0, method={}, **names)
        found = describe_snapshot(path)
        assert (found.stored, found.position_bytes, found.value_bytes) == (100, 200, 100 * (per_value - 2))
        assert found.header_bytes == size - 100 * per_value
        assert found.model_bytes == 10_000 * dtype.itemsize


def test_a_file_of_the_format_before_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "00_books.safetensors"
    monkeypatch.setattr("cl_runner.sparse.snapshots.FORMAT", "cl_runner.snapshot/1")
    learn(path, starting_weights(), "books", 0, "base", PART)
    monkeypatch.undo()
    assert verify_snapshot(path) == [
        f"{path}: format 'cl_runner.snapshot/1'; this version reads 'cl_runner.snapshot/2'"
    ]


def test_flipped_bits_and_truncation_are_found(tmp_path: Path) -> None:
    path, broken = tmp_path / "00_books.safetensors", tmp_path / "broken.safetensors"
    learn(path, starting_weights(), "books", 0, "base", PART)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for position in [*range(0, start, 7), *range(start, len(content))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        broken.write_bytes(flipped)
        problems = verify_snapshot(broken)
        assert len(problems) == 1 and str(broken) in problems[0], position
        assert ("the tensor" in problems[0]) == (position >= start), problems
        broken.write_bytes(content[:position])
        assert verify_snapshot(broken), position
    broken.write_bytes(content + b"x")
    assert verify_snapshot(broken) == [f"{broken}: 1 bytes follow the last tensor"]


def test_the_damaged_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "00_books.safetensors"
    learn(path, starting_weights(), "books", 0, "base", PART)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last bytes are those of the narrowest type: head.weight, bf16
    path.write_bytes(content)
    assert verify_snapshot(path) == [f"{path}: the tensor head.weight is damaged, its SHA-256 differs"]
    with pytest.raises(ValueError, match=r"00_books.*head\.weight is damaged"):
        read_snapshot(path)
    path.write_bytes(content[:-1])
    assert verify_snapshot(path) == [f"{path}: the file ends inside or before the tensor head.weight"]


def test_broken_chains(tmp_path: Path) -> None:
    history = make_run(tmp_path, starting_weights(), PART)
    files = snapshots(tmp_path)
    with pytest.raises(ValueError, match=r"00_books.* stores a part of the model only"):
        read_weights(files)
    with pytest.raises(ValueError, match=r"00_books.*does not follow on the starting weights"):
        read_weights(files, history[1])
    with pytest.raises(ValueError, match=r"02_music.*does not follow on .*00_books"):
        read_weights([files[0], files[2]], history[0])
    with pytest.raises(ValueError, match=r"no such file"):
        read_weights([tmp_path / "none.safetensors"], history[0])
    other = {**history[0], "scale": history[0]["scale"].half()}
    with pytest.raises(ValueError, match=r"different models: scale is F32 \[\] and F16 \[\]"):
        read_weights(files, other)
    # A snapshot that promises other weights than its values give.
    snapshot = read_snapshot(files[1])
    save_snapshot(files[1], Snapshot(dataclasses.replace(snapshot.header, weights="0" * 64), snapshot.changes))
    with pytest.raises(ValueError, match=r"01_dvd.*the restored weights are"):
        read_weights(files[:2], history[0])


def test_apply_in_place(tmp_path: Path) -> None:
    history = make_run(tmp_path, starting_weights(), PART)
    parameter = torch.nn.Parameter(history[0]["encoder.weight"].clone())
    weights = {**history[0], "encoder.weight": parameter}
    apply_snapshot(weights, read_snapshot(snapshots(tmp_path)[0]))
    assert torch.equal(parameter, history[1]["encoder.weight"])
    apply_snapshot(weights, read_snapshot(snapshots(tmp_path)[0]))
    assert torch.equal(parameter, history[0]["encoder.weight"])


def test_weights_hash() -> None:
    weights = starting_weights()
    start = weights_hash(weights)
    assert weights_hash(dict(reversed(weights.items()))) == start
    assert weights_hash({**weights, "scale": weights["scale"].double()}) != start
    assert weights_hash({**weights, "encoder.weight": weights["encoder.weight"].view(5, 6)}) != start
    weights["head.weight"].view(torch.int16)[0] ^= 1
    assert weights_hash(weights) != start
    # Digests of single tensors can be kept and combined.
    digests = tensor_digests(weights)
    digests["scale"] = tensor_digests({"scale": weights["scale"] * 2})["scale"]
    assert combine(digests) == weights_hash({**weights, "scale": weights["scale"] * 2})
    swapped = {"a": weights["scale"], "b": weights["scale"] * 2}
    assert weights_hash(swapped) != weights_hash({"a": swapped["b"], "b": swapped["a"]})
