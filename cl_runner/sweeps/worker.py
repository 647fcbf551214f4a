"""The queue of one machine: so many jobs of a sweep at once, each in a process with its share of cores and GPUs."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from cl_runner.arguments import Parser
from cl_runner.interrupt import stopping
from cl_runner.sweeps.asked import answered
from cl_runner.sweeps.devices import visible_devices
from cl_runner.sweeps.folder import Sweep, load

#: Seconds between two looks at what runs.
PAUSE = 0.2
#: Seconds between two calls of who wants to look as well, at the files of all jobs.
LOOK = 1.0


def main(arguments: Sequence[str]) -> int:
    """Run the command, which `submit` starts in the background; 2 after one message for a wrong request."""
    return answered(lambda: _work(_parser().parse_args(list(arguments))))


def _work(given: argparse.Namespace) -> int:
    return work(load(given.sweep), given.numbers)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m cl_runner work", description="Run jobs of a submitted sweep on this machine.")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("numbers", type=int, nargs="+")
    return parser


def work(sweep: Sweep, numbers: Sequence[int], look: Callable[[], object] = lambda: None) -> int:
    """Run these jobs; 0 if all are done, 1 if some failed, 75 if a signal ended it.

    A signal goes on to the jobs, which save and end; what has not begun does not begin.

    Args:
        look: called now and then.
    """
    waiting, status, due = list(numbers), 0, 0.0
    slots: list[subprocess.Popen[bytes] | None] = [None] * min(sweep.processes, len(waiting))
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in slots:
            if process is not None:
                process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in stopping()}
    try:
        while any(slots) or (waiting and not asked):
            for place, process in enumerate(slots):
                if process is not None and process.poll() is not None:
                    status = status or int(process.returncode != 0)
                    slots[place] = None
                    if process.returncode not in (0, 75) and sweep.on_error == "stop":
                        waiting.clear()
                if slots[place] is None and waiting and not asked:
                    slots[place] = start(sweep, waiting.pop(0), place, len(slots))
            if time.monotonic() >= due:
                look()
                due = time.monotonic() + LOOK
            time.sleep(PAUSE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 75 if asked else status


def start(sweep: Sweep, number: int, place: int, slots: int) -> subprocess.Popen[bytes]:
    """A process for a job, in a group of its own, so that Ctrl-C reaches it once and by its parent."""
    log = sweep.path / "logs" / f"{number}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "cl_runner", "job", str(sweep.path.resolve()), str(number)]
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=sweep.cwd,
            env=environment(sweep, place, slots),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def environment(sweep: Sweep, place: int, slots: int) -> dict[str, str]:
    """A job's variables: the program that was submitted, a fair share of the cores, one of the devices."""
    code = str((sweep.path / sweep.code).resolve())
    path = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": path}
    if slots > 1:
        share = max(1, len(os.sched_getaffinity(0)) // slots)
        found.setdefault("OMP_NUM_THREADS", str(share))
        devices = visible_devices()
        if devices:
            found["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return found
