"""The queue of one machine: so many jobs at once, each with its share; what fails, stops, is cancelled and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import TINY, run_command

from cl_runner.sweeps import devices, worker
from cl_runner.sweeps.folder import Job, Sweep, load
from cl_runner.sweeps.states import states_of
from cl_runner.sweeps.worker import environment

SHORT = [o for o in TINY if not o.startswith("method")] + ["training.max_steps=2"]


def sweep_of(path: Path, jobs: int, **options: object) -> Sweep:
    """A sweep whose jobs are made up."""
    made = Sweep(path / "sweep-x", (), str(path), tuple(Job((), f"run{i}", f"job {i}") for i in range(jobs)))
    for name, value in options.items():
        setattr(made, name, value)
    made.save()
    return made


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What job n does, as a program; each writes into its sweep's folder that it ran, and where."""
    texts: dict[int, str] = {}

    def start(sweep: Sweep, number: int, place: int, slots: int) -> subprocess.Popen[bytes]:
        note = f"open({str(sweep.path / 'ran')!r}, 'a').write('{number}.{place} ')\n"
        return subprocess.Popen(python(note + texts.get(number, "")), start_new_session=True)

    monkeypatch.setattr(worker, "start", start)
    monkeypatch.setattr(worker, "PAUSE", 0.01)
    return texts


def ran(sweep: Sweep) -> list[str]:
    return (sweep.path / "ran").read_text().split()


def test_so_many_at_once_and_the_next_one_takes_the_place_that_is_free(
    tmp_path: Path, processes: dict[int, str]
) -> None:
    sweep = sweep_of(tmp_path, 5, processes=2)
    processes[0] = "import time; time.sleep(3)"
    assert worker.work(sweep, range(5)) == 0
    assert sorted(ran(sweep)) == ["0.0", "1.1", "2.1", "3.1", "4.1"]


@pytest.mark.parametrize(("on_error", "begun"), [("continue", 3), ("stop", 1)])
def test_after_a_failure_the_others_begin_or_not(
    on_error: str, begun: int, tmp_path: Path, processes: dict[int, str]
) -> None:
    sweep = sweep_of(tmp_path, 3, on_error=on_error)
    processes[0] = "raise SystemExit(1)"
    assert worker.work(sweep, range(3)) == 1
    assert len(ran(sweep)) == begun


def test_a_signal_goes_on_to_the_jobs_and_none_begins_after_it(tmp_path: Path, processes: dict[int, str]) -> None:
    sweep = sweep_of(tmp_path, 3)
    said = tmp_path / "heard"
    processes[0] = (
        "import signal, time, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(said)!r}, 'w').write('x'), sys.exit(75)))\n"
        "while True: time.sleep(0.05)\n"
    )
    looks: list[float] = []

    def look() -> None:
        looks.append(time.monotonic())
        if len(looks) > 1 and looks[-1] - looks[0] > 2:
            looks.clear()
            os.kill(os.getpid(), signal.SIGINT)

    assert worker.work(sweep, range(3), look) == 75
    assert ran(sweep) == ["0.0"] and said.is_file()


def test_each_has_its_share_of_cores_and_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    sweep = sweep_of(tmp_path, 4, processes=4)
    found = [environment(sweep, place, 4) for place in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["2", "5", "2", "5"]
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}
    assert "OMP_NUM_THREADS" not in environment(sweep, 0, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match="this machine shows no GPU. Type: sweep.processes=NUMBER"):
        devices.count_of("gpus")


@pytest.mark.slow
def test_a_multirun_of_two_at_once_tells_what_becomes_of_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    line = ["-m", *SHORT, "method=seq_ft", "seed=0,1", "sweep.processes=2", "root=X"]
    assert run_command(line) == 0
    said = capsys.readouterr().out
    assert "2 jobs, 0 of them completed before" in said and said.count("completed") == 3
    for seed in (0, 1):
        assert said.count(f"seed={seed}: running\n") == 1 and said.count(f"seed={seed}: done\n") == 1
    (path,) = Path("X/sweeps").iterdir()
    assert {state.state for state in states_of(load(path))} == {"done"}
    assert run_command(line) == 0
    assert len(load(path).submissions) == 1


@pytest.mark.slow
def test_a_queue_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is submitted, cancelled, submitted again, and ends as a plain multirun does, to the bit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    long = [o for o in SHORT if "epochs" not in o and "max_steps" not in o]
    line = [*long, "training.base.epochs=60", "training.incremental.epochs=1", "method=pe", "seed=0,1"]
    assert run_command(["submit", *line, "root=X", "sweep.processes=2"]) == 0
    (path,) = Path("X/sweeps").iterdir()

    def wait(*wanted: str) -> None:
        for _ in range(6000):
            if {state.state for state in states_of(load(path))} <= set(wanted):
                return
            time.sleep(0.1)
        raise AssertionError(states_of(load(path)))

    wait("running")
    for number in (0, 1):
        manifest = load(path).run_folder(number) / "state" / "checkpoint.json"
        for _ in range(6000):
            if manifest.is_file():
                break
            time.sleep(0.1)
    assert run_command(["cancel", "X"]) == 0
    wait("missing")
    capsys.readouterr()
    assert run_command(["status", "X"]) == 0
    assert "2 missing" in capsys.readouterr().out
    assert run_command(["resubmit", "X"]) == 0
    wait("done")
    assert run_command(["-m", *line, "root=Y"]) == 0
    ends = [
        {json.loads(file.read_text())["weights_sha256"] for file in Path(root).glob("reviews/**/summary.json")}
        for root in "XY"
    ]
    assert len(ends[0]) == 2 and ends[0] == ends[1]
