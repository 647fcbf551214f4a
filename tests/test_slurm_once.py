"""A sweep on a real SLURM of one node, which scripts/slurm_once.sh starts: what happens to jobs, and what they give."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TINY

from cl_runner.sweeps import slurm
from cl_runner.sweeps.folder import Sweep, load
from cl_runner.sweeps.states import states_of


def slurm_is_up() -> bool:
    if shutil.which("sinfo") is None:
        return False
    up = subprocess.run(["sinfo", "-h", "-o", "%P"], capture_output=True, text=True, check=False)
    return up.returncode == 0 and bool(up.stdout.strip())


@pytest.mark.slow
@pytest.mark.skipif(not slurm_is_up(), reason="no SLURM on this machine: bash scripts/slurm_once.sh starts one")
def test_a_sweep_on_a_real_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed terminal, a job over its limit, one killed, one sent back, one that fails; what is missing is submitted
    again; and the report is the one of the same sweep without SLURM."""
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    start = (sys.executable, "-m", "cl_runner")

    def command(*words: str) -> str:
        done = subprocess.run([*start, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    swept = ["method=pe", "task_order=reviews,reviews_plain", "seed=0,1"]
    own = [o for o in TINY if not o.startswith(("method", "hardware", "training.base.epochs"))]
    lines = [*own, *swept, "training.base.epochs=20", "checkpoint.every_seconds=0.2"]
    asked = [f"hardware.slurm.{o}" for o in ("cpus=1", "memory_gb=2", "minutes=8", "signal_seconds=100")]
    terminal = subprocess.Popen(
        ["bash", "-c", '"$@" && sleep 600', "terminal", *start, "submit", "hardware=slurm", *asked, *lines, "root=X"],
        env=environment,
        start_new_session=True,
    )
    until(lambda: any(load(path.parent).submissions for path in Path("X/sweeps").glob("*/sweep.json")))
    sweep = load(next(Path("X/sweeps").iterdir()))
    in_its_way = sweep.run_folder(3)  # the last one in the queue cannot make its folder, and fails
    in_its_way.parent.mkdir(parents=True, exist_ok=True)
    in_its_way.touch()
    os.killpg(terminal.pid, signal.SIGHUP)
    assert terminal.wait() == -signal.SIGHUP

    def stand(**wanted: int) -> bool:
        """Whether so many jobs stand so, by their files and the queue."""
        return Counter(state.state for state in states_of(load(sweep.path))) == wanted

    def said(**wanted: int) -> bool:
        """Whether `status` says so."""
        line = command("status", "X").splitlines()[0]
        return all(f"{number} {state}" in line for state, number in wanted.items())

    def begun(*without: int) -> int:
        """A running job that has saved something, and is none of these; it is held there."""
        found: list[int] = []

        def look() -> bool:
            for number, state in enumerate(states_of(sweep)):
                saved = (sweep.run_folder(number) / "state" / "checkpoint.json").is_file()
                if state.state == "running" and saved and number not in without:
                    signalled("STOP", sweep, number)
                    found.append(number)
                    return True
            return False

        until(look)
        return found[0]

    def stands(number: int, wanted: str) -> bool:
        return states_of(sweep)[number].state == wanted

    late = begun()
    killed = begun(late)
    assert said(running=2, waiting=2)
    place = states_of(sweep)[late].place
    assert "TimeLimit=00:08:00" in slurm.call("scontrol", "show", "job", place)
    slurm.call("scontrol", "update", f"jobid={place}", "TimeLimit=2")
    signalled("KILL", sweep, killed)
    until(lambda: stands(killed, "failed"))
    back = begun(late, killed)
    slurm.call("scontrol", "requeue", states_of(sweep)[back].place)
    signalled("CONT", sweep, back)
    until(lambda: stands(back, "waiting"))
    until(lambda: told(signal.SIGUSR1, sweep, late))  # SLURM says it by itself, and may let it go on
    if stands(late, "running"):
        signalled("CONT", sweep, late)
    until(lambda: stands(late, "waiting"))
    assert re.search(rf"│ {late} │.*│ waiting", command("status", "X"))
    for number in (late, back):  # what goes back waits two minutes
        slurm.call("scontrol", "update", f"jobid={states_of(sweep)[number].place}", "StartTime=now", "TimeLimit=8")
    until(lambda: stand(done=2, failed=2))
    assert said(done=2, failed=2)
    assert [state.state for state in states_of(sweep)][3] == "failed"
    assert {number: len(sweep.attempts(number)) for number in (late, back)} == {late: 2, back: 2}
    in_its_way.unlink()
    command("resubmit", "X")
    until(lambda: stand(done=4))
    assert said(done=4)
    command("-m", *lines, "root=Y", "hardware.threads=1", "sweep.processes=2")
    assert report_of(command("report", "X", "--format", "csv")) == report_of(command("report", "Y", "--format", "csv"))
    assert len(ends_of(Path("X"))) == 4 and ends_of(Path("X")) == ends_of(Path("Y"))


def until(true: Callable[[], bool]) -> None:
    """Wait for it, ten minutes at most; all of them together take one or two on an idle machine."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("in vain")


def signalled(name: str, sweep: Sweep, number: int) -> None:
    """Signal a job's process on this node; scancel would send it again and again once the job has left.

    One that SLURM itself lets go on may have left.
    """
    subprocess.run(["pkill", f"-{name}", "-f", process_of(sweep, number)], check=name != "CONT")


def process_of(sweep: Sweep, number: int) -> str:
    return f"cl_runner job {sweep.path.resolve()} {number}$"


def told(number: int, sweep: Sweep, job: int) -> bool:
    """Whether a signal has been sent to a job's process: it is held and has not seen it yet, or has ended of it."""
    found = subprocess.run(["pgrep", "-f", process_of(sweep, job)], capture_output=True, text=True, check=False)
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in found.stdout.split()]
    pending = [int(line.split()[1], 16) for text in texts for line in text.splitlines() if line.startswith("ShdPnd")]
    return not pending or any(signals >> (number - 1) & 1 for signals in pending)


#: Columns of a report that are measured by a clock, or of the machine.
MEASURED = ("peak_memory", "online_seconds", "offline_seconds", "milliseconds_per_example")


def report_of(text: str) -> list[dict[str, str]]:
    """All numbers of a report, to their last digit, but those that are measured."""
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 2 and all(row["n"] == "2" for row in rows)
    return [{key: value for key, value in row.items() if not key.startswith(MEASURED)} for row in rows]


def ends_of(root: Path) -> dict[str, list[str | bytes]]:
    """What each run of a root gives: weights, matrix, answers."""
    found: dict[str, list[str | bytes]] = {}
    for path in root.glob("reviews*/**/summary.json"):
        files = [path.parent / "accuracy.csv", *sorted(path.parent.glob("predictions/*.jsonl"))]
        weights = str(json.loads(path.read_text())["weights_sha256"])
        found[str(path.parent.relative_to(root))] = [weights, *(file.read_bytes() for file in files)]
    return found
