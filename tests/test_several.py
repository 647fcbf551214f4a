"""Several processes of one run: the same numbers, one record, one end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EVERY_FAMILY, run_command, tiny, tiny_encoder, without_report

from cl_runner.distributed import launched
from cl_runner.sparse.snapshots import read_snapshot

HERE = Path(__file__).parent
#: Passes of two examples, on which dropout is drawn alike in any number of processes.
PASSES = ("training.base.micro_batch=2", "training.incremental.micro_batch=2")
#: One of each kind of method: what trains, what is added to the loss, to the gradient, to the data, what is kept.
LINES = {"importance and penalties": ("method=pe", *PASSES)}
MORE = {
    "dense": ("method=seq_ft", *PASSES),
    "importance": ("method=piece_s", "backbone=tiny_llama", *PASSES),
    "passes are kept": ("method=der", *PASSES),
    "recorded outputs": ("method=lwf", *PASSES),
    "gradients in a step": ("method=gem", *PASSES),
    "replay": ("method=replay", "backbone=tiny_t5", *PASSES),
    "adapters": ("method=seq_lora", "backbone=tiny_gpt2", *PASSES),
    "retrieval": ("method=slm", *PASSES),
    "a prompt": ("method=l2p", "backbone=tiny_t5", *PASSES),
    "a whole batch": ("method=piece_f", "backbone=tiny_llama"),
    "its own answers": ("method=sdft", "backbone=tiny_llama", *PASSES),
    "answers with memory": ("method=mbpa_1", *PASSES),
    "magnitudes": ("method=magnitude_largest", "backbone=tiny_t5", *PASSES),
    "probes": ("method=pe_rand", "backbone=tiny_llama", "probe=task_loss", *PASSES),
}


def line(root: Path, *overrides: str) -> list[str]:
    encoder = tiny_encoder() if any(o.startswith("method=slm") for o in overrides) else ()
    return tiny(root, "task_order=reviews", *overrides, *encoder)


def start(number: int, *command: str) -> list[subprocess.Popen[str]]:
    """So many processes of one command, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": str(number), "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            **pipes,
        )
        for rank in range(number)
    ]


def ended(processes: Sequence[subprocess.Popen[str]], minutes: float = 6) -> list[tuple[int, str, str]]:
    """(exit status, what was printed, what was said of errors) of each."""
    told = [process.communicate(timeout=60 * minutes) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]


def run_of(root: Path) -> Path:
    (folder,) = (path.parent for path in root.rglob("config.yaml"))
    return folder


def lines_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def check_alike(one: Path, many: Path, exactly: bool = False) -> None:
    """The same losses, weights and answers, but for the order in which numbers were added; the same selection."""
    losses = [[row["loss"] for row in lines_of(folder, "train")] for folder in (one, many)]
    assert losses[1] == (losses[0] if exactly else pytest.approx(losses[0], rel=1e-5, abs=1e-6))
    assert (one / "accuracy.csv").read_text() == (many / "accuracy.csv").read_text()
    names = [sorted(path.name for path in folder.glob("snapshots/*.safetensors")) for folder in (one, many)]
    assert names[0] == names[1]
    for name in names[0]:
        changes = [read_snapshot(folder / "snapshots" / name).changes for folder in (one, many)]
        assert list(changes[0]) == list(changes[1])
        for key, own in changes[0].items():
            other = changes[1][key]
            if own.index is not None:
                assert torch.equal(own.index, other.index), f"{name}: {key}"
            if exactly:
                assert torch.equal(own.bits, other.bits)


@pytest.mark.parametrize("number", [2, 4] if EVERY_FAMILY else [2])
def test_several_processes_learn_what_one_learns(number: int, tmp_path: Path) -> None:
    """The table of methods with dropout on: losses within 1e-5 of themselves, the same selections, the same answers."""
    chosen = LINES | (MORE if EVERY_FAMILY else {})
    lines = {kind: line(tmp_path / "many" / kind.replace(" ", "_"), *of) for kind, of in chosen.items()}
    (tmp_path / "lines.json").write_text(json.dumps(list(lines.values())))
    told = ended(start(number, str(HERE / "several.py"), str(tmp_path / "lines.json")))
    assert [status for status, *_ in told] == [0] * number, told
    assert not any(printed for _, printed, _ in told[1:]), "one of them speaks"
    for kind, of in chosen.items():
        name = kind.replace(" ", "_")
        with without_report():
            assert run_command(line(tmp_path / "one" / name, *of)) == 0
        one, many = run_of(tmp_path / "one" / name), run_of(tmp_path / "many" / name)
        check_alike(one, many)
        # What is sent in a step is what trains, 4 bytes each, and nothing where every process does all passes.
        for detail in json.loads((many / "summary.json").read_text())["tasks_detail"]:
            assert detail["processes"]["number"] == number
            if kind not in ("passes are kept", "recorded outputs", "answers with memory", "a whole batch"):
                assert detail["processes"]["sent_bytes_per_step"] == 4 * detail["trainable"], kind


LONG = ("method=pe", "training.base.epochs=20", "training.incremental.epochs=3", "checkpoint.every_seconds=0.01")


def until_trained(root: Path, steps: int, processes: Sequence[subprocess.Popen[str]]) -> Path:
    """Wait until a run that is under way has made so many steps."""
    for _ in range(6000):  # four processes begin slowly on two cores
        if all(process.poll() is not None for process in processes):
            raise AssertionError(ended(processes))
        found = list(root.rglob("metrics.jsonl"))
        if found and found[0].read_text().count('"kind": "train"') >= steps:
            return found[0].parent
        time.sleep(0.05)
    raise AssertionError("it does not train")


@pytest.mark.skipif(not EVERY_FAMILY, reason="starts many processes: CL_RUNNER_EVERY_FAMILY=1")
def test_a_process_that_dies_ends_all_and_the_run_goes_on(tmp_path: Path) -> None:
    """One message, what was saved stays, and the end is the one of a run that nothing happened to."""
    command = ("-m", "cl_runner", *line(tmp_path / "killed", *LONG, *PASSES))
    processes = start(2, *command)
    folder = until_trained(tmp_path / "killed", 8, processes)
    processes[1].kill()
    (status, printed, said), (killed, _, quiet) = ended(processes)
    assert (status, killed) == (1, -signal.SIGKILL)
    assert "Another of the run's 2 processes ended without a word" in printed and not said.count("Traceback")
    assert not quiet.strip() and (folder / "FAILED").is_file()
    assert [status for status, *_ in ended(start(2, *command))] == [0, 0]
    whole = ended(start(2, "-m", "cl_runner", *line(tmp_path / "whole", *LONG, *PASSES)))
    assert [status for status, *_ in whole] == [0, 0]
    check_alike(run_of(tmp_path / "whole"), folder, exactly=True)


@pytest.mark.skipif(not EVERY_FAMILY, reason="starts many processes: CL_RUNNER_EVERY_FAMILY=1")
def test_a_signal_to_one_stops_all_and_another_number_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "stopped"
    processes = start(2, "-m", "cl_runner", *line(root, *LONG, *PASSES))
    folder = until_trained(root, 8, processes)
    processes[1].send_signal(signal.SIGTERM)
    (status, printed, _), (other, *_) = ended(processes)
    assert (status, other) == (75, 75) and "Interrupted, and saved" in printed and "as 2 processes" in printed
    # One process adds in another order: the run says so before it goes on.
    assert run_command(line(root, *LONG, *PASSES)) == 2
    assert run_command([*line(root, *LONG, *PASSES), "resume=warn"]) == 0
    assert run_command(line(tmp_path / "one", *LONG, *PASSES)) == 0
    check_alike(run_of(tmp_path / "one"), folder)


def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    told = ended(start(2, "-m", "cl_runner", *line(tmp_path, "method=pe", "method.pe.fraction=0.000001")))
    assert [status for status, *_ in told] == [2, 2]
    assert sorted(said.count("cl_runner: ") for *_, said in told) == [0, 1], "the one that found it first"


def test_several_processes_are_refused_a_multirun(tmp_path: Path) -> None:
    command = ("-m", "cl_runner", "-m", *line(tmp_path, "method=pe", "seed=0,1"))
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "sweep.processes" in done.stderr


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1, 0)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (0, 1, 0)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, (3, 4, 1)),  # torchrun, accelerate launch
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, (1, 2, 0)),  # srun
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 1, 0)),  # a plain process in what salloc or sbatch gave
    ],
)
def test_which_process_this_is(environment: dict[str, str], place: tuple[int, int, int]) -> None:
    assert launched(environment) == place


def test_a_launcher_that_does_not_say_which_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RANK is not set.*torchrun"):
        launched({"WORLD_SIZE": "4"})
