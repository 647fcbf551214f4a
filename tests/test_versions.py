"""Snapshots as versions: compose and revert, against brute force on dense weights; mistakes of the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from four_tasks import TASKS, Run, Weights, assert_same_bits, copied, four_tasks, read, starting_weights, store, train
from safetensors.torch import load_file
from tiny import run_command, tiny, tiny_encoder
from torch import Tensor

from cl_runner.history import history
from cl_runner.history.command import main
from cl_runner.sparse.bits import bits_of, weights_hash
from cl_runner.sparse.chain import apply_snapshot
from cl_runner.sparse.snapshots import describe_snapshot, read_snapshot, verify_snapshot
from cl_runner.sparse.versions import compose_in_sequence, compose_siblings, conflicts, undo, undoing


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return four_tasks(tmp_path, monkeypatch)


# compose


def test_two_tasks_in_sequence_as_one(run: tuple[Path, list[Weights], object], tmp_path: Path) -> None:
    folder, history, _ = run
    composed = compose_in_sequence(read(folder, 1), read(folder, 2))
    weights = copied(history[1])
    apply_snapshot(weights, composed)
    assert_same_bits(weights, history[3])
    apply_snapshot(weights, composed)
    assert_same_bits(weights, history[1])
    assert (composed.header.parent, composed.header.weights) == (weights_hash(history[1]), weights_hash(history[3]))
    # The command gives the same, and what it writes can be restored from.
    output, restored = tmp_path / "both.safetensors", tmp_path / "restored.safetensors"
    assert main(["compose", f"{folder}:dvd", f"{folder}:music", "--output", str(output)]) == 0
    assert verify_snapshot(output) == []
    assert describe_snapshot(output).method["compose"]["sources"][0]["task"] == "dvd"
    assert main(["restore", str(folder), "--after", str(output), "--output", str(restored)]) == 0
    assert_same_bits(load_file(restored), history[3])
    # Three tasks: what is composed can be composed again.
    three = tmp_path / "three.safetensors"
    assert main(["compose", str(output), f"{folder}:toys", "--output", str(three)]) == 0
    weights = copied(history[1])
    apply_snapshot(weights, read_snapshot(three))
    assert_same_bits(weights, history[4])


def test_a_sparse_change_on_top_of_a_whole_model_gives_a_whole_model(tmp_path: Path) -> None:
    start = starting_weights()
    after = {name: weight * 2 for name, weight in start.items()}
    store(tmp_path / "a", start, after, dict.fromkeys(start), "base", 0)
    last, _ = train(tmp_path / "b", after, "dvd", 1)
    composed = compose_in_sequence(read_snapshot(tmp_path / "a"), read_snapshot(tmp_path / "b"))
    assert composed.header.whole
    weights = starting_weights()
    apply_snapshot(weights, composed)
    assert_same_bits(weights, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["last", "mean"])
def test_two_tasks_side_by_side_as_one(tmp_path: Path, dtype: torch.dtype, rule: str) -> None:
    start = starting_weights(dtype)
    after, moved = {}, {}
    for number, task in enumerate(("books", "dvd")):
        after[task], moved[task] = train(tmp_path / task, start, task, number)
    expected, clashes = copied(start), 0
    for name, weight in expected.items():
        flat, a, b = (side.view(-1) for side in (weight, after["books"][name], after["dvd"][name]))
        for i in range(flat.numel()):
            first = bool(moved["books"][name].view(-1)[i]) if name in moved["books"] else False
            second = bool(moved["dvd"][name].view(-1)[i]) if name in moved["dvd"] else False
            if first and second and a[i] != b[i]:
                clashes += 1
                flat[i] = b[i] if rule == "last" else ((a[i].double() + b[i].double()) / 2).to(dtype)
            elif first or second:
                flat[i] = a[i] if first else b[i]
    sides = read_snapshot(tmp_path / "books"), read_snapshot(tmp_path / "dvd")
    assert clashes > 50 and conflicts(*sides) == clashes
    weights = copied(start)
    composed = compose_siblings(*sides, weights, rule)  # type: ignore[arg-type]
    assert_same_bits(weights, expected)
    assert (composed.header.parent, composed.header.weights) == (weights_hash(start), weights_hash(expected))
    again = copied(start)
    apply_snapshot(again, composed)
    assert_same_bits(again, expected)


def test_means_worked_by_hand(tmp_path: Path) -> None:
    """1 and 2 give 1.5; the mean of the largest numbers is no infinity; equal values are no conflict."""
    start = {"head.w": torch.tensor([0.0, 0.0, 7.0, 5.0]).bfloat16()}
    values = {"a": [1.0, 3e38, 4.0, 5.0], "b": [2.0, 3.2e38, 4.0, 6.0]}
    at = torch.arange(4)
    for name, numbers in values.items():
        store(tmp_path / name, start, {"head.w": torch.tensor(numbers).bfloat16()}, {"head.w": at}, name, 0)
    a, b = read_snapshot(tmp_path / "a"), read_snapshot(tmp_path / "b")
    assert conflicts(a, b) == 2
    compose_siblings(a, b, start, "mean")
    found = start["head.w"].tolist()
    assert found[0] == 1.5 and found[1] == pytest.approx(3.1e38, rel=0.01) and found[2:] == [4.0, 6.0]


def test_compose_side_by_side_by_command(
    run: tuple[Path, list[Weights], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run's first task follows on the same starting weights; both are of a part of the model."""
    folder, history, _ = run
    other = tmp_path / "other" / "snapshots" / "00_dvd.safetensors"
    after, _ = train(other, history[0], "dvd", 1)
    output = tmp_path / "out.safetensors"
    command = ["compose", f"{folder}:books", str(other), "--output", str(output)]
    assert main(command) == 2
    count = conflicts(read(folder, 0), read_snapshot(other))
    assert f"change {count} entries to different values. Type: --on-conflict last" in capsys.readouterr().err
    assert not output.exists()
    assert main([*command, "--on-conflict", "last"]) == 0
    weights = starting_weights()
    apply_snapshot(weights, read_snapshot(output))
    assert describe_snapshot(output).weights == weights_hash(weights)
    moved = bits_of(after["layer.0.w"]) != bits_of(history[0]["layer.0.w"])
    assert torch.equal(weights["layer.0.w"][moved], after["layer.0.w"][moved])


# revert


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("force", [False, True])
def test_undo_a_task(run: tuple[Path, list[Weights], dict[str, dict[str, Tensor]]], number: int, force: bool) -> None:
    folder, history, moved = run
    task = list(TASKS)[number]
    expected, entries, later = copied(history[-1]), 0, 0
    for name, mine in moved[task].items():
        since = torch.zeros_like(mine)
        for other in list(TASKS)[number + 1 :]:
            since |= moved[other].get(name, torch.zeros_like(mine))
        back = mine if force else mine & ~since
        expected[name][back] = history[number][name][back]
        entries, later = entries + int(back.sum()), later + int((mine & since).sum())
    undone = undo(read(folder, number), (read(folder, n) for n in range(number + 1, 4)), force)
    assert (undone.entries, undone.later) == (entries, later) and (later > 0) == (number < 2)
    weights = copied(history[-1])
    found = undoing(undone, read(folder, number).header, read(folder, 3).header, weights, force)
    assert_same_bits(weights, expected)
    assert found.header.weights == weights_hash(expected) and found.header.parent == weights_hash(history[-1])
    if number == 3:
        assert found.header.weights == weights_hash(history[3])


def test_revert_by_command(
    run: tuple[Path, list[Weights], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, history, _ = run
    output, restored = tmp_path / "revert.safetensors", tmp_path / "weights.safetensors"
    assert main(["revert", f"{folder}:toys", "--output", str(output)]) == 0
    assert "0 entries that later" not in capsys.readouterr().out
    assert main(["restore", str(folder), "--after", str(output), "--output", str(restored)]) == 0
    assert_same_bits(load_file(restored), history[3])
    undone = undo(read(folder, 0), [read(folder, n) for n in (1, 2, 3)], False)
    assert main(["revert", f"{folder}:books", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert f"{undone.entries:,} entries go back" in shown and f"{undone.later:,} entries that later tasks" in shown
    assert "--force" in shown and verify_snapshot(output) == []
    assert main(["revert", f"{folder}:books", "--force", "--output", str(output)]) == 0
    assert "lose the later value" in capsys.readouterr().out


def test_a_whole_model_cannot_be_undone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = starting_weights()
    path = tmp_path / "run" / "snapshots"
    after = {name: weight * 2 for name, weight in start.items()}
    store(path / "00_base.safetensors", start, after, dict.fromkeys(start), "base", 0)
    after, _ = train(path / "01_dvd.safetensors", after, "dvd", 1)
    end = {name: weight * 2 for name, weight in after.items()}
    store(path / "02_all.safetensors", after, end, dict.fromkeys(start), "all", 2)
    for task, message in (("base", "stored the whole model"), ("dvd", "do not come from dvd: they come from all")):
        assert main(["revert", f"{tmp_path}/run:{task}", "--output", str(tmp_path / "x.safetensors")]) == 2
        assert message in capsys.readouterr().err


# mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diff", "RUN:book", "RUN:dvd"], "Type: RUN:books"),
        (["diff", "RUN", "RUN:dvd"], "is a folder; name one of its tasks (books, dvd, music, toys). Type: RUN:toys"),
        (["diff", "none.safetensors", "RUN:dvd"], "there is no file none.safetensors"),
        (["diff", "RUN/none:books", "RUN:dvd"], "there is no folder RUN/none"),
        (["diff", "RUN:books", "OTHER"], "different models: layer.0.w is F32 [50, 60] and BF16 [50, 60]"),
        (["diff", "RUN:books", "RUN/config.yaml"], "is no snapshot"),
        (["diff", "RUN:books"], "required: B"),
        (["compose", "RUN:books", "RUN:music", "--output", "OUT"], "neither follows on RUN:books"),
        (["compose", "RUN:dvd", "RUN:books", "--output", "OUT"], "compose RUN:books RUN:dvd --output OUT"),
        (["compose", "RUN:books", "RUN:dvd", "--on-conflict", "mean", "--output", "OUT"], "Type: --on-conflict last"),
        (["compose", "RUN:books", "RUN:dvd", "--on-conflict", "first", "--output", "OUT"], "invalid choice: 'first'"),
        (["compose", "RUN:books", "RUN:dvd", "--output", "RUN/snapshots/x.safetensors"], "among a run's own snapshots"),
        (["compose", "RUN:books", "RUN:dvd", "--output", "x.pt"], "ends in .safetensors"),
        (["revert", "RUN:dvds", "--output", "OUT"], "Type: RUN:dvd"),
        (["revert", "OTHER", "--output", "OUT"], "Name the task as RUN:TASK"),
        (["revert", "RUN:dvd", "--output", "RUN/config.yaml/x.safetensors"], "is not a folder"),
        (["restore", "RUN", "--after", "OTHER", "--output", "OUT"], "no snapshot in RUN leads there"),
        (["overlap", "RUN/none"], "there is no folder"),
        (["overlaps", "RUN"], "Type: python -m cl_runner snapshot overlap"),
    ],
)
def test_wrong_requests(
    run: tuple[Path, object, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    folder = run[0]
    half = starting_weights(torch.bfloat16)
    first, _ = train(tmp_path / "first", half, "books", 0)
    train(tmp_path / "other.safetensors", first, "dvd", 1)
    places = {"RUN": str(folder), "OTHER": f"{tmp_path}/other.safetensors", "OUT": f"{tmp_path}/out.safetensors"}
    before = sorted(tmp_path.rglob("*"))

    def put(text: str) -> str:
        for word, place in places.items():
            text = text.replace(word, place) if "RUN:TASK" not in text else text
        return text

    assert main([put(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("cl_runner: ") and put(message) in shown.err and not shown.out
    assert sorted(tmp_path.rglob("*")) == before


# a method that adds tensors


def test_versions_of_what_a_method_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """slm: every task stores its own keys, values and rows of the head, and nothing else moves."""
    overrides = ("method=slm", "training.max_steps=2", *tiny_encoder())
    assert run_command(tiny(tmp_path, *overrides)) == 0
    (folder,) = (path.parent for path in tmp_path.rglob("COMPLETED"))
    start, output = history.starting_weights(folder), tmp_path / "out.safetensors"
    moved: dict[str, set[str]] = {}
    before = start
    for task in ("base", "kettles", "software"):
        assert main(["restore", str(folder), "--after", task, "--output", str(output)]) == 0
        after = load_file(output)
        moved[task] = {name for name in after if not torch.equal(bits_of(before[name]), bits_of(after[name]))}
        before = after
    head = {"classifier.weight.00", "classifier.bias.00"}
    assert moved["base"] == {"slm.keys.00", "slm.values.00", *head}
    assert moved["kettles"] == {"slm.keys.01", "slm.values.01"}
    assert moved["software"] == {"slm.keys.02", "slm.values.02"}
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 0
    assert "3 snapshots, no problems" in capsys.readouterr().out
    assert main(["list", str(folder)]) == main(["size", str(folder)]) == main(["overlap", str(folder)]) == 0
    assert main(["diff", f"{folder}:base", f"{folder}:kettles", "--json"]) == 0
    capsys.readouterr()

    reverted = tmp_path / "reverted.safetensors"
    assert main(["revert", f"{folder}:kettles", "--output", str(reverted)]) == 0
    assert f"snapshot restore {folder} --after {reverted}" in capsys.readouterr().out
    assert main(["restore", str(folder), "--after", str(reverted), "--output", str(output)]) == 0
    assert_same_bits(load_file(output), after | {name: start[name] for name in moved["kettles"]})
    assert main(["compose", f"{folder}:base", f"{folder}:kettles", "--output", str(reverted)]) == 0
    capsys.readouterr()

    exported = ["export", str(folder), "--after", "kettles", "--output", str(tmp_path / "exported")]
    assert main(exported) == 0
    assert "answers as the run did: the same answer to 40 of 40" in capsys.readouterr().out
    assert (tmp_path / "exported" / "learned.safetensors").is_file()
    assert main(exported) == 2
    assert "not empty" in capsys.readouterr().err
