"""Snapshots beside each other: diff, overlap and size, against brute force on dense weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from four_tasks import Run, Weights, copied, four_tasks, read, starting_weights, store

from cl_runner.history.command import main
from cl_runner.sparse.snapshots import Snapshot, read_snapshot
from cl_runner.sparse.versions import compare, total


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return four_tasks(tmp_path, monkeypatch)


def two(tmp_path: Path, follow: bool) -> tuple[Snapshot, Snapshot, Weights, Weights]:
    """Positions 0 1 2 3 and 2 3 4 of one layer, 1 of the head by the second only; position 2 ends equal."""
    start = {"layer.0.w": torch.zeros(10), "head.w": torch.zeros(2)}
    first = copied(start)
    first["layer.0.w"][:4] = 1.0
    second = copied(first if follow else start)
    second["layer.0.w"][2:5] = torch.tensor([1.0, 3.5, 9.0])
    second["head.w"][1] = 1.0
    store(tmp_path / "a", start, first, {"layer.0.w": torch.arange(4)}, "a", 0)
    index = {"layer.0.w": torch.arange(2, 5), "head.w": torch.tensor([1])}
    store(tmp_path / "b", first if follow else start, second, index, "b", 1)
    return read_snapshot(tmp_path / "a"), read_snapshot(tmp_path / "b"), first, second


@pytest.mark.parametrize("follow", [False, True])
def test_compare_worked_by_hand(tmp_path: Path, follow: bool) -> None:
    a, b, first, second = two(tmp_path, follow)
    at = torch.tensor([2, 3])
    layer, head = compare(a, b, ({"layer.0.w": first["layer.0.w"][at]}, {"layer.0.w": second["layer.0.w"][at]}))
    assert (layer.only_first, layer.only_second, layer.both) == (2, 1, 2)
    assert (layer.equal, layer.largest, layer.jaccard) == (1, 2.5, 2 / 5)
    assert (head.only_first, head.only_second, head.both, head.equal, head.largest) == (0, 1, 0, 0, None)
    everything = total([layer, head])
    assert (everything.only_second, everything.equal, everything.jaccard) == (2, 1, 2 / 6)
    # Without values only changes of the same parent can be told equal.
    layer, _ = compare(a, b)
    assert (layer.equal, layer.largest) == (None if follow else 1, None)


def test_diff_by_command(
    run: tuple[Path, list[Weights], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, history, _ = run
    names = [f"{folder}:books", f"{folder}/snapshots/02_music.safetensors"]
    assert main(["diff", *names, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    layer = next(row for row in found["layers"] if row["layer"] == "layer.0")
    a, b = (read(folder, n).changes["layer.0.w"].index for n in (0, 2))
    assert a is not None and b is not None
    both = sorted(set(a.tolist()) & set(b.tolist()))
    x, y = (history[n]["layer.0.w"].view(-1)[both] for n in (1, 3))
    assert (layer["only_first"], layer["only_second"], layer["both"]) == (900 - len(both), 800 - len(both), len(both))
    assert layer["equal"] == int((x == y).sum()) and layer["largest"] == float((x.double() - y).abs().max())
    assert found["unknown"] is None and found["layers"][-1]["layer"] == "all"
    assert main(["diff", *names]) == 0
    assert "layer.1" in capsys.readouterr().out
    # A file outside any run is taken to follow on the other's; where there is none, values are not known.
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(Path(names[1]).read_bytes())
    assert main(["diff", names[0], str(alone), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == found["layers"]
    assert main(["diff", str(alone), str(alone), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "its run is not known" in found["unknown"] and found["layers"][0]["largest"] is None


def test_overlap(run: tuple[Path, list[Weights], object], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, _ = run
    assert main(["overlap", str(folder), "--by", "layer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stored = []
    for number in range(4):
        changes, shapes = read(folder, number).changes, starting_weights()
        stored.append(
            {
                (name, i)
                for name, change in changes.items()
                for i in (range(shapes[name].numel()) if change.index is None else change.index.tolist())
            }
        )
    for i, a in enumerate(stored):
        for j, b in enumerate(stored):
            assert found["jaccard"]["all"][i][j] == pytest.approx(len(a & b) / len(a | b))
    assert found["jaccard"]["layer.0"][3][3] is None  # toys stores nothing there
    assert found["jaccard"]["head"][0][2] == 1.0  # the whole head, both times
    assert main(["overlap", str(folder)]) == 0
    assert "books" in capsys.readouterr().out


def test_size(run: tuple[Path, list[Weights], object], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, _ = run
    assert main(["size", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    dvd = found["tasks"][1]
    assert (dvd["values"], dvd["position_bytes"], dvd["value_bytes"]) == (743, 2 * 743, 4 * 743)
    assert dvd["bytes"] == (folder / "snapshots" / "01_dvd.safetensors").stat().st_size
    assert dvd["bytes"] == dvd["header_bytes"] + 6 * 743
    assert found["checkpoint_bytes"] == 4 * 4 * (3000 + 600 + 7)
    assert main(["size", str(folder)]) == 0
    assert (
        f"{found['bytes']:,} bytes; a full checkpoint after each task: {4 * 14428:,} bytes" in capsys.readouterr().out
    )
