"""Every bit of what a run reads back is what it wrote, or that is said, with what to type."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY, Death, run_command, without_report

from cl_runner import checkpoint, damage, digests
from cl_runner.digests import SUMS, Damaged
from cl_runner.sparse.snapshots import read_snapshot
from cl_runner.tensor_files import read_cached, read_tensors, write_tensors


@pytest.fixture(autouse=True, scope="module")
def no_pictures() -> Iterator[None]:
    with without_report():
        yield


def typed(root: Path) -> list[str]:
    return ["method=pe", *TINY, f"root={root}"]


def folder_of(root: Path) -> Path:
    (path,) = root.rglob("metrics.jsonl")
    return path.parent


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that died at the end of its third task, after steps that no checkpoint covers."""
    root = tmp_path_factory.mktemp("begun")
    real = checkpoint.save

    def save(folder: Path, state: dict[str, Any]) -> None:
        if (state["task"], state["stage"]) == (2, "training"):
            raise Death
        real(folder, state)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "save", save)
        with pytest.raises(Death):
            run_command(typed(root))
    assert (folder_of(root) / "plan.json").is_file(), (folder_of(root) / "log.txt").read_text()
    return root


@pytest.fixture
def root(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "root")
    return tmp_path / "root"


def end_of(root: Path) -> tuple[str, str]:
    """Hash of the final weights, and the matrix."""
    folder = folder_of(root)
    summary = json.loads((folder / "summary.json").read_text())
    return summary["weights_sha256"], (folder / "accuracy.csv").read_text()


def noticed(folder: Path, path: Path) -> bool:
    """Whether a run that goes on in a folder says something of a file."""
    if not path.is_relative_to(folder):
        lines: list[str] = []
        kept = path.read_bytes()
        assert (read_cached(path, lines.append) is None) == bool(lines)
        path.write_bytes(kept)  # which was removed
        return bool(lines)
    try:
        saved = checkpoint.load(folder / "state", "cpu")
        assert saved is not None
        lines = damage.check_begun(folder, saved["log"])
        for name in saved["chain"]:
            read_snapshot(folder / name)
    except ValueError as error:
        assert str(path) in str(error) or str(path.with_name(SUMS)) in str(error)
        return True
    return bool(lines)


def test_a_hundred_flipped_bits(root: Path, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is noticed, or changes no result: those that are not are left flipped, and the run goes on with them."""
    folder = folder_of(root)
    assert not noticed(folder, folder / "state" / checkpoint.MANIFEST)
    drawn = random.Random(0)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.name for path in files} >= {"checkpoint.json", "metrics.jsonl", "masks.json", "data.json", SUMS}
    assert {"tokens", "importance"} <= {path.parent.name for path in files}
    silent = set()
    for _ in range(100):
        path = drawn.choice(files)
        content = bytearray(path.read_bytes())
        place = drawn.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        before = path.read_bytes()
        path.write_bytes(content)
        if noticed(folder, path):
            path.write_bytes(before)
        else:
            silent.add(path.name)
    assert silent <= {"log.txt", "metrics.jsonl"}  # of the latter what came after the checkpoint
    assert run_command(typed(root)) == 0
    plain = root.parent / "plain"
    shutil.copytree(begun, plain)
    assert run_command(typed(plain)) == 0
    assert end_of(root) == end_of(plain)
    capsys.readouterr()
    # The record of the finished run: what other tools check, an edit, and a damaged number.
    for sums in folder.rglob(SUMS):
        assert subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=sums.parent, check=False).returncode == 0
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "metrics": {"average_accuracy": 99.9}}))
    assert run_command(typed(root)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{folder}/summary.json is not what it was when it was written" in said
    assert "snapshot verify" in said and f"rm -r {folder}" in said and "base, kettles, software" in said
    (folder / "summary.json").unlink()
    assert run_command(typed(root)) == 2
    assert f"{folder}/summary.json cannot be read (No such file or directory)" in capsys.readouterr().err


def flip(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("state/checkpoint.json", "the saved state of this run is damaged: {path} ("),
        ("state/final.jsonl", "the saved state of this run is damaged: {path} ("),
        ("metrics.jsonl", "{path} is not what it was: its first "),
        ("masks.json", "go on without it (the report then tells of later tasks' selections alone): the same command"),
        ("data.json", "it is written anew from the data as they are now"),
        ("predictions/00_start.jsonl", "the scores stay; their intervals"),
        ("config.yaml", "go on without it (it is written anew from what was typed)"),
        (
            "snapshots/00_base.safetensors",
            "The run cannot go on without it. What tasks changed (base, kettles) can be checked",
        ),
        (f"predictions/{SUMS}", f"rm {{folder}}/predictions/{SUMS}"),
    ],
)
def test_what_is_damaged_is_named_before_anything_is_built(
    name: str, says: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(root)
    if "snapshots" not in name:  # which are read when the model is there
        monkeypatch.setattr("cl_runner.run.Run.guarded", lambda run, saved: pytest.fail("it went on"))
    flip(folder / name, 40)
    assert run_command(typed(root)) == 2
    said = capsys.readouterr().err
    assert said.startswith("cl_runner: ") and said.count("\n") == 1
    assert (
        says.format(path=folder / name, folder=folder) in said
        and f"rm {'' if 'go on without it (' in said else '-r '}" in said
    )
    assert not (folder / "FAILED").exists()


def test_a_run_goes_on_without_files_that_were_removed_as_advised(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(root)
    flip(folder / "accuracy.csv")
    for name in ("masks.json", "config.yaml", "plan.json", "predictions/00_start.jsonl", SUMS):
        (folder / name).unlink()
    flip(next((root / "cache" / "tokens").iterdir()))
    assert run_command(typed(root)) == 0
    said = capsys.readouterr()
    assert "It is only a cache: it is made anew" in said.out + said.err
    assert (folder / "config.yaml").is_file() and (folder / "plan.json").is_file()


def test_a_file_is_what_one_of_its_lines_says_whenever_a_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    digests.write(path, '{"a": 1}')
    real = digests._replace

    def dies(place: Path, content: bytes) -> None:
        if place == path:
            raise Death
        real(place, content)

    monkeypatch.setattr(digests, "_replace", dies)
    for text in ('{"a": 2}', '{"a": 3}'):
        with pytest.raises(Death):
            digests.write(path, text)
        assert digests.read_json(path) == {"a": 1}
    monkeypatch.undo()
    digests.write(path, '{"a": 3}')
    digests.write(path, '{"a": 4}')
    assert digests.read_json(path) == {"a": 4} and len((tmp_path / SUMS).read_text().splitlines()) == 3
    digests.settle(tmp_path)
    assert len((tmp_path / SUMS).read_text().splitlines()) == 2
    path.write_text('{"a": 3}')
    with pytest.raises(Damaged, match=r"a\.json is not what it was"):
        digests.read(path)
    (tmp_path / "old.json").write_text("[]")  # of a version that had no digests
    assert digests.read(tmp_path / "old.json") == b"[]"
    with pytest.raises(Damaged, match=r"old\.json cannot be read \(a JSON object is expected\)"):
        digests.read_json(tmp_path / "old.json")


def test_no_bit_of_a_sealed_file_can_change(tmp_path: Path) -> None:
    path, content = tmp_path / "x.json", {"a": [1, 2.5, None, True, "ä\n"], "b": {"c": 1e300}}
    text = digests.sealed(content)
    path.write_text(text)
    assert digests.unsealed(path) == content and json.loads(text).keys() == {"sha256", "a", "b"}
    data = text.encode()
    for place in range(0, 8 * len(data), 13):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(Damaged, match=r"x\.json"):
            digests.unsealed(path)


def test_no_bit_of_a_cached_tensor_can_change(tmp_path: Path) -> None:
    path = tmp_path / "key.safetensors"
    write_tensors(path, {"a": torch.arange(3), "b": torch.ones(2, dtype=torch.bfloat16)}, {"units": "3"})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    tensors, metadata = read_tensors(path)
    assert tensors["a"].tolist() == [0, 1, 2] and metadata == {"units": "3"}
    data = path.read_bytes()
    for place in range(0, 8 * len(data), 13):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found, told = read_tensors(path)
        except Damaged:
            continue
        assert told == metadata and found.keys() == tensors.keys()  # a blank of the header
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    path.rename(tmp_path / "other.safetensors")
    with pytest.raises(Damaged):
        read_tensors(tmp_path / "other.safetensors")


def test_a_run_goes_on_with_what_it_began_with(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(root)
    path = folder / "environment.json"
    began = json.loads(path.read_text())
    assert began["hardware"]["threads"] == 1 and len(began["code"]) == 64
    other = {**began, "packages": {**began["packages"], "torch": "2.0.0"}, "code": "c" * 64}
    other["hardware"] = {**began["hardware"], "threads": 7}
    digests.write(path, json.dumps(other))
    assert run_command(typed(root)) == 2
    said = capsys.readouterr().err
    assert f"torch 2.0.0 -> {began['packages']['torch']}" in said and "threads 7 -> 1" in said
    assert "the code of cl_runner cccccccccccc -> " in said and said.count("\n") == 1
    assert said.rstrip().endswith("resume=warn") and "python -m cl_runner method=pe" in said
    monkeypatch.setattr("cl_runner.run.Run.guarded", lambda run, saved: 0)
    for _ in range(2):
        assert run_command([*typed(root), "resume=warn"]) == 0
        assert "Note: this run began with something else" in capsys.readouterr().out
    noted = digests.read_json(path)["resumed"]
    assert [note["differs"]["threads"] for note in noted] == [["7", "1"]] * 2


def test_what_computes_is_compared() -> None:
    from cl_runner.tracking.environment import differences

    def environment(torch: str, device: str, cpu: str, **more: object) -> dict[str, Any]:
        return {"packages": {"torch": torch, "wandb": "1"}, "hardware": {"device": device, "cpu": cpu, **more}}

    old = environment("2", "cpu", "a")
    assert differences(old, environment("2", "cpu", "a", threads=4)) == {}  # it did not tell its threads
    assert differences(old, environment("2", "cpu", "b")) == {"cpu": ["a", "b"]}
    assert differences(environment("2", "H100", "a"), environment("2", "H100", "b")) == {}
    assert differences(old, environment("3", "H100", "a")) == {
        "torch": ["2", "3"],
        "device": ["cpu", "H100"],
        "cpu": ["a", "none"],
    }
