"""Stored importance: the same bits, under a key that any difference changes; damage costs a pass, never a result."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cl_runner import tensor_files
from cl_runner.sparse import importance_cache
from cl_runner.sparse.importance import Importance
from cl_runner.sparse.importance_cache import key, load, named, store

A, B, C = (letter * 64 for letter in "abc")
PLENTY = 10**9


def example(seed: int = 0, gradient: bool = True, entries: int = 1000) -> Importance:
    generator = torch.Generator().manual_seed(seed)

    def sums() -> dict[str, torch.Tensor]:
        return {
            "z.weight": torch.randn(entries // 10, 10, generator=generator),
            "a.bias": torch.randn(7, generator=generator),
        }

    return Importance(sums() if gradient else None, sums(), units=3, examples=5)


def assert_equal(found: Importance | None, expected: Importance) -> None:
    assert found is not None
    assert (found.units, found.examples) == (expected.units, expected.examples)
    assert (found.gradient is None) == (expected.gradient is None)
    for mine, other in ((found.fisher, expected.fisher), (found.gradient or {}, expected.gradient or {})):
        assert list(mine) == list(other)  # the order of the model's parameters
        assert all(mine[name].dtype == other[name].dtype and torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_come_back(tmp_path: Path, gradient: bool, dtype: torch.dtype) -> None:
    given = example(gradient=gradient)
    if dtype != torch.float32:
        cast = [None if s is None else {n: t.to(dtype) for n, t in s.items()} for s in (given.gradient, given.fisher)]
        assert cast[1] is not None
        given = Importance(cast[0], cast[1], 3, 5)
    assert load(tmp_path / "new", A) is None
    store(tmp_path / "new", A, given, PLENTY)
    assert_equal(load(tmp_path / "new", A), given)
    assert load(tmp_path / "new", B) is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"{A}.safetensors"]
    plain = tmp_path / "plain"
    plain.touch()
    stored = tmp_path / "new" / f"{A}.safetensors"
    assert stored.stat().st_mode == plain.stat().st_mode, "who may read other files may read this one"


OPTIONS = {
    "weights": "1" * 64,
    "data": {"examples": [["good", "positive"], ["bad", "negative"]], "max_length": 64},
    "micro_batch": 1,
    "gradient": True,
    "labels": "true",
    "seed": None,
    "max_examples": None,
    "dtype": torch.float32,
    "precision": "fp32",
    "device": "cpu",
}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("weights", "2" * 64),
        ("data", {"examples": [["bad", "negative"], ["good", "positive"]], "max_length": 64}),
        ("data", {"examples": [["good", "positive"], ["bad", "negative"]], "max_length": 65}),
        ("micro_batch", 4),
        ("gradient", False),
        ("labels", "model"),
        ("seed", 0),
        ("max_examples", 2),
        ("dtype", torch.bfloat16),
        ("precision", "bf16"),
        ("device", "cuda"),
    ],
)
def test_every_difference_changes_the_key(option: str, value: object) -> None:
    assert key(**{**OPTIONS, option: value}) != key(**OPTIONS)  # type: ignore[arg-type]


def test_files_differ_by_what_was_measured() -> None:
    found = key(**OPTIONS)  # type: ignore[arg-type]
    assert named(found, ["a", "b"]) == named(found, ["b", "a"]) != named(found, ["a"])


def test_key_depends_on_torch_and_format_but_not_on_order(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = key(**OPTIONS)  # type: ignore[arg-type]
    assert len(plain) == 64
    turned = dict(reversed(OPTIONS.items()))
    assert key(**turned) == plain  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    other_torch = key(**OPTIONS)  # type: ignore[arg-type]
    monkeypatch.setattr(importance_cache, "FORMAT", 0)
    assert len({plain, other_torch, key(**OPTIONS)}) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["bit", "short", "empty", "other", "text", "units"])
def test_a_damaged_file_is_removed(tmp_path: Path, damage: str) -> None:
    store(tmp_path, A, example(0), PLENTY)
    path = tmp_path / f"{A}.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[-5] ^= 1
    elif damage == "short":
        del content[-100:]
    elif damage == "empty":
        content.clear()
    elif damage == "other":  # sound, but of another key
        store(tmp_path / "there", B, example(1), PLENTY)
        content = bytearray((tmp_path / "there" / f"{B}.safetensors").read_bytes())
    elif damage == "units":
        content = content.replace(b'"units":"3"', b'"units":"4"')
    else:
        content = bytearray(b"not a tensor file" * 10)
    assert bytes(content) != path.read_bytes()
    path.write_bytes(content)
    lines: list[str] = []
    assert load(tmp_path, A, lines.append) is None
    assert len(lines) == 1 and str(path) in lines[0] and "made anew" in lines[0]
    assert not path.exists()
    store(tmp_path, A, example(0), PLENTY)
    assert_equal(load(tmp_path, A), example(0))


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    size = None
    for age, name in ((300, A), (200, B)):
        store(tmp_path, name, example(), PLENTY)
        path = tmp_path / f"{name}.safetensors"
        size = path.stat().st_size
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert size is not None
    assert load(tmp_path, A) is not None  # used now, so B is the older one
    left_over, fresh = tmp_path / "x.tmp", tmp_path / "y.tmp"
    for path, age in ((left_over, 2 * importance_cache.STALE_SECONDS), (fresh, 0.0)):
        path.write_bytes(b"half")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    store(tmp_path, C, example(), 2 * size)
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "c", "y"]


def test_what_exceeds_the_limit_is_not_stored(tmp_path: Path) -> None:
    store(tmp_path, A, example(), PLENTY)
    lines: list[str] = []
    store(tmp_path, B, example(), 1000, lines.append)
    assert load(tmp_path, A) is not None and load(tmp_path, B) is None
    assert len(lines) == 1 and "the limit is 1000 bytes" in lines[0]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", full)
        store(tmp_path, A, example(), PLENTY, lines.append)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    store(tmp_path / "file", A, example(), PLENTY, lines.append)
    assert len(lines) == 2 and "No space left" in lines[0] and "\n" not in "".join(lines)
    assert load(tmp_path / "file", A) is None


def test_two_processes_store_the_same_key(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_importance_cache import A, PLENTY, example\n"
        "from cl_runner.sparse.importance_cache import load, store\n"
        "for _ in range(20):\n"
        "    store(Path(sys.argv[1]), A, example(), PLENTY, sys.exit)\n"
        "    assert load(Path(sys.argv[1]), A) is not None\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    running = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) for _ in range(2)
    ]
    assert [process.communicate()[1] for process in running] == ["", ""]
    assert_equal(load(tmp_path, A), example())
    assert len(list(tmp_path.iterdir())) == 1
