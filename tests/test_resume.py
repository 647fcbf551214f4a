"""Interrupted and resumed equals uninterrupted, bit for bit: weights, matrices, metrics, predictions, snapshots."""

from __future__ import annotations

import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import RARELY, TINY, Death, run_command, some, tiny_encoder, without_report

from cl_runner import checkpoint
from cl_runner.compose import compose
from cl_runner.lock import locked

METHOD = "method=pe"
EVERY_STEP = "checkpoint.every_seconds=0"


@pytest.fixture(autouse=True, scope="module")
def no_pictures() -> Iterator[None]:
    with without_report():
        yield


def command(root: Path, *more: str) -> list[str]:
    return [METHOD, *TINY, EVERY_STEP, f"root={root}", *more]


def folder_of(root: Path, *more: str) -> Path:
    return compose(command(root, *more)).folder


def content(folder: Path) -> dict[str, Any]:
    """All that must be equal; of metrics only the speed may differ."""
    metrics = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        values.pop("tokens_per_second", None)
        metrics.append(values)
    files = [folder / "accuracy.csv", folder / "forgetting.csv"]
    files += sorted((folder / "snapshots").iterdir()) + sorted((folder / "predictions").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "metrics": metrics,
        "weights": summary["weights_sha256"],
        "numbers": summary["metrics"],
        "answers": [detail["answers"] for detail in summary["tasks_detail"]],
        **{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("whole")
    assert run_command(command(root)) == 0
    return content(folder_of(root))


def die_at_save(number: int, after_tensors: bool) -> Callable[..., None]:
    """A `checkpoint.save` that dies at its `number`-th call: before anything, or between its two files."""
    real, calls = checkpoint.save, iter(range(10**6))

    def save(folder: Path, state: dict[str, Any]) -> None:
        if next(calls) != number:
            return real(folder, state)
        if after_tensors:
            stale = checkpoint.replace_file
            checkpoint.replace_file = die  # type: ignore[assignment]
            try:
                real(folder, state)
            finally:
                checkpoint.replace_file = stale
        raise Death

    return save


def die(*arguments: object, **options: object) -> None:
    raise Death


# Saves of the tiny run: 0 start; 1 prepared; 2-13 steps of the base task; 14 its end; 15 prepared; 16-21 steps; ...
@pytest.mark.parametrize(
    ("number", "after_tensors"),
    [
        (0, True),
        (1, False),
        (1, True),
        (7, True),
        (13, True),
        (14, False),
        (15, True),
        (17, True),
        (22, True),
        (24, True),
    ],
)
def test_death_at_a_checkpoint(
    number: int,
    after_tensors: bool,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", die_at_save(number, after_tensors))
        with pytest.raises(Death):
            run_command(command(tmp_path))
    assert run_command(command(tmp_path)) == 0
    assert content(folder_of(tmp_path)) == uninterrupted


@pytest.mark.parametrize(
    "place", ["change.write_snapshot", "journal.write_matrices", "journal.zero_fractions", "ends.write_summary"]
)
def test_death_elsewhere(
    place: str, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(f"cl_runner.{place}", die)
        with pytest.raises(Death):
            run_command(command(tmp_path))
    assert run_command(command(tmp_path)) == 0
    assert content(folder_of(tmp_path)) == uninterrupted


def test_death_in_the_importance_pass(
    uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cl_runner.methods import ewc

    real = ewc.fisher

    def partly(learner: Any, examples: Any, names: Any) -> Any:
        real(learner, examples[:5], names)
        raise Death

    with monkeypatch.context() as patched:
        patched.setattr(ewc, "fisher", partly)
        with pytest.raises(Death):
            run_command(command(tmp_path))
    assert run_command(command(tmp_path)) == 0
    assert content(folder_of(tmp_path)) == uninterrupted


LANGUAGE_MODEL = (
    "method=[lwf,piece_s]",
    "backbone=tiny_llama",
    "probe=[held_text,task_loss]",
    "probe.held_text.texts=3",
    "probe.held_text.tokens=8",
    "training.base.micro_batch=3",
    "training.group_by_length=true",
    "evaluation.tasks=seen",
    "evaluation.sampling={temperature: 0.7, top_k: null, top_p: 0.9}",
)


def language_model(root: Path) -> list[str]:
    return [o for o in command(root) if not o.startswith(("method=", "backbone="))] + list(LANGUAGE_MODEL)


def dies_and_goes_on(
    typed: Callable[[Path], list[str]],
    numbers: Sequence[int],
    also: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that dies at each of these saves ends as one that does not, the file `also` included."""
    assert run_command(typed(tmp_path / "whole")) == 0
    wanted = compose(typed(tmp_path / "whole")).folder
    for number in numbers:
        root = tmp_path / str(number)
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "save", die_at_save(number, after_tensors=True))
            with pytest.raises(Death):
                run_command(typed(root))
        assert run_command(typed(root)) == 0
        folder = compose(typed(root)).folder
        assert content(folder) == content(wanted)
        assert (folder / also).read_bytes() == (wanted / also).read_bytes()


@RARELY
def test_death_of_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled answers, probes, old weights of LwF, grouped batches: all as if nothing had happened."""
    dies_and_goes_on(language_model, (7, 17), "ability.csv", tmp_path, monkeypatch)


@pytest.mark.parametrize("chosen", some([("slm", "tiny_bert", "prefix"), ("slm_adapter", "tiny_llama", "all")], 2))
def test_death_with_retrieval(chosen: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, values, heads and queries: before a task, inside it, between two."""
    method, backbone, pool = chosen
    options = [f"method={method}", f"backbone={backbone}", f"method.slm.pool={pool}", *tiny_encoder()]
    options += ["method.slm.learning_rate=1e-2", "importance.cache_gb=0"]

    def typed(root: Path) -> list[str]:
        return [o for o in command(root) if not o.startswith(("method=", "backbone="))] + options

    numbers = (1, 7, 18) if backbone == "tiny_bert" else (15,)
    dies_and_goes_on(typed, numbers, "keys.safetensors", tmp_path, monkeypatch)


def start(root: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "cl_runner", *command(root, *more)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@RARELY
def test_kill_at_random_moments(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 of the real process, again and again until it gets through."""
    moments = random.Random(0)
    kills = 0
    over = False
    while kills < 3 and not over:
        with start(tmp_path) as process:  # closes the pipe whether the run is killed or has come to its end
            folder = folder_of(tmp_path)
            while not (folder / "state").is_dir() and process.poll() is None:
                time.sleep(0.02)
            time.sleep(moments.uniform(0.0, 3.0))
            over = process.poll() is not None
            if not over:
                process.kill()
                kills += 1
            process.communicate()
    assert kills > 0, "the run was too fast to be killed"
    assert run_command(command(tmp_path)) == 0
    assert content(folder_of(tmp_path)) == uninterrupted


def test_ctrl_c_saves_says_how_to_go_on_and_ends_with_75(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    process = start(tmp_path)
    folder = folder_of(tmp_path)
    while not (folder / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate()
    assert process.returncode == 75, shown
    assert "The same command goes on: python -m cl_runner" in shown and "Traceback" not in shown
    assert re.search(r"Interrupted, and saved as of (step \d+|the beginning|the first step) of (base|kettles)\.", shown)
    assert run_command(command(tmp_path)) == 0
    assert content(folder_of(tmp_path)) == uninterrupted


def test_a_process_that_a_library_kills_says_where_and_goes_on(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """SIGSEGV, as a fault within a library's own code ends a process."""
    process = start(tmp_path)
    folder = folder_of(tmp_path)
    while not (folder / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGSEGV)
    shown, _ = process.communicate()
    assert process.returncode == -signal.SIGSEGV, shown
    assert "Fatal Python error: Segmentation fault" in shown and "cl_runner/run.py" in shown
    assert run_command(command(tmp_path)) == 0
    assert content(folder_of(tmp_path)) == uninterrupted


def test_finished_run_says_so_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command(tmp_path)) == 0
    folder = folder_of(tmp_path)
    assert (folder / "COMPLETED").is_file() and not (folder / "state").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    began = time.process_time()  # of this process: what else the machine does is not the run's affair
    assert run_command(command(tmp_path)) == 0
    assert "This run is completed: union_accuracy" in capsys.readouterr().out
    assert time.process_time() - began < 2
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_changed_config_is_another_run(tmp_path: Path) -> None:
    one, other = folder_of(tmp_path), folder_of(tmp_path, "method.pe.fraction=0.01")
    assert one != other and one.parent == other.parent
    assert folder_of(tmp_path, "seed=1") != one
    # Where and how often a run writes, and whether W&B listens, is not what it computes.
    assert folder_of(tmp_path, "checkpoint.every_seconds=9", "wandb=offline", "data_root=/elsewhere") == one


def test_changed_data_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"a text number {i},{1 + i % 3} star{'s' if i % 3 else ''}\n" for i in range(300))
    (tmp_path / "reviews.csv").write_text("text,stars\n" + rows)
    local = ("task.reviews.source=files", f"task.reviews.path={tmp_path}/reviews.csv")
    local += ("task.reviews.text=[text]", "task.reviews.label=stars", "training.max_steps=2")
    assert run_command(command(tmp_path, *local)) == 0
    (tmp_path / "reviews.csv").write_text("text,stars\n" + rows.replace("a text", "another text"))
    capsys.readouterr()
    assert run_command(command(tmp_path, *local)) == 2
    said = capsys.readouterr().err
    assert "the data of base, kettles, software changed since this run began" in said and "root=" in said


def test_a_failed_run_keeps_its_reason_and_can_be_tried_again(
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("cl_runner.change.write_snapshot", fail)
        assert run_command(command(tmp_path)) == 1
    folder = folder_of(tmp_path)
    assert "No space left on device" in capsys.readouterr().out
    assert "Traceback" in (folder / "FAILED").read_text()
    assert run_command(command(tmp_path)) == 0
    assert not (folder / "FAILED").exists()
    assert content(folder) == uninterrupted


def test_two_processes_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path)
    with locked(folder / "state"):
        assert run_command(command(tmp_path)) == 2
    assert "another process is running this very run" in capsys.readouterr().err


def test_pack_keeps_types_and_values() -> None:
    import torch

    tree = {"a": torch.arange(3), 1: [True, None, 0.1, "x"], "b": {"c": torch.tensor(2.0)}}
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(checkpoint.pack(tree, tensors)))
    back = checkpoint.unpack(packed, tensors)
    assert list(back) == ["a", 1, "b"] and back[1] == [True, None, 0.1, "x"]
    assert torch.equal(back["a"], tree["a"]) and torch.equal(back["b"]["c"], tree["b"]["c"])


def test_a_state_is_written_one_tensor_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of tensors, one tensor twice, all widths: each as it was, without a copy of all of them at once."""
    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tree = {"part": base[:, 1:3], "turned": base.t(), "again": base, "none": base[:0], "one": torch.tensor(3)}
    tree |= {"flags": torch.tensor([True, False, True]), "half": torch.randn(5).to(torch.bfloat16)}
    copied: list[int] = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copied.append(self.nbytes) or real(self))
    checkpoint.save(tmp_path / "state", {"tree": tree, "step": 3})
    assert len(copied) == len(tree), "each on its way to the file"
    found = checkpoint.load(tmp_path / "state", "cpu")
    assert found is not None and found["step"] == 3
    for name, tensor in tree.items():
        assert found["tree"][name].dtype == tensor.dtype and torch.equal(found["tree"][name], tensor), name


def test_a_damaged_state_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", die_at_save(5, after_tensors=False))
        with pytest.raises(Death):
            run_command(command(tmp_path))
    (path,) = (folder_of(tmp_path) / "state").glob("tensors-*")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert run_command(command(tmp_path)) == 2
    said = capsys.readouterr().err
    assert f"the saved state of this run is damaged: {path}" in said and "rm -r" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_executed_text(number: signal.Signals, tmp_path: Path) -> None:
    """As dataclasses and named tuples are made while modules are imported."""
    (tmp_path / "stopped.py").write_text(
        "import os, sys\nfrom cl_runner import __main__ as command\n"
        f"command._main = lambda typed: exec('os.kill(os.getpid(), {int(number)})')\nsys.exit(command.main([]))\n"
    )
    done = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 75 and "The same command goes on" in done.stderr


def test_signals_before_the_run_begins() -> None:
    """While torch is still being imported."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cl_runner", *TINY], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate()
    assert process.returncode == 75, shown
    assert "The same command goes on" in shown and "Traceback" not in shown
