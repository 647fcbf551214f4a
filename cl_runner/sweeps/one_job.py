"""One job of a submitted sweep, as a batch script or a worker starts it: it runs, says how it ended, waits again.

A job that SLURM tells to stop before its time limit, or that has to make room, saves its state, goes back into the
queue and goes on from there. One that somebody cancels does not.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from cl_runner import interrupt
from cl_runner.arguments import Parser
from cl_runner.compose import compose
from cl_runner.digests import digest_of
from cl_runner.distributed import launched
from cl_runner.job import run_request
from cl_runner.sweeps import slurm
from cl_runner.sweeps.asked import answered
from cl_runner.sweeps.folder import Sweep, load, place_of
from cl_runner.sweeps.frozen import configurations, running

#: How SLURM calls a job that it ends to start it again: of a signal that says no more than to stop.
_MAKES_ROOM = ("PREEMPTED", "NODE_FAIL", "REQUEUED", "TIMEOUT")


def main(arguments: Sequence[str]) -> int:
    """Run the command; the run's exit status, or 2 after one message for a wrong request."""
    return answered(lambda: _job(_parser().parse_args(list(arguments))))


def _job(given: argparse.Namespace) -> int:
    sweep = load(given.sweep)
    if not 0 <= given.number < len(sweep.jobs):
        raise ValueError(f"{sweep.name} has jobs 0 to {len(sweep.jobs) - 1}, got {given.number}")
    return run_job(sweep, given.number)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m cl_runner job", description="One job of a submitted sweep, in this process.")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("number", type=int)
    return parser


def run_job(sweep: Sweep, number: int) -> int:
    """Run a job and note how it ended; its exit status. Of several processes the first one notes it."""
    if launched(os.environ)[0]:
        return _run(sweep, number)
    place, log = _place(sweep, number)
    sweep.begin(number, place, str(log))
    try:
        status = _run(sweep, number)
    except KeyboardInterrupt:  # before there was anything to save
        status = 75
    saved = _saved(sweep, number) if status == 75 else None
    requeued = status == 75 and _waits_again(sweep, number, saved)
    sweep.end(number, status, requeued, saved)
    if requeued:
        print(f"Back into the queue as job {_slurm_job()}; it goes on there.", flush=True)
        slurm.requeue(_slurm_job())
    return status


def _run(sweep: Sweep, number: int) -> int:
    job = sweep.jobs[number]

    def run() -> int:
        code = running() or sweep.path / sweep.code
        request = compose(job.overrides, configurations(code), sweep.name)
        if str(request.folder) != job.folder:
            raise ValueError(
                f"the configuration that was submitted composes to {request.folder} now, and was {job.folder}: an "
                "environment variable or a file that it reads is another one. Submit it anew"
            )
        return run_request(request)

    return answered(run)


def _slurm_job() -> str:
    """SLURM's number of this job as its commands take it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _place(sweep: Sweep, number: int) -> tuple[str, Path]:
    """Where this job runs, and the file that has what it prints."""
    if "SLURM_JOB_ID" in os.environ and sweep.jobs[number].slurm is not None:
        return _slurm_job(), sweep.path / "logs" / f"{_slurm_job()}.log"
    return place_of(os.getpid()), sweep.path / "logs" / f"{number}.log"


def _saved(sweep: Sweep, number: int) -> str | None:
    """What tells the state that a run has saved."""
    from cl_runner.checkpoint import MANIFEST  # which imports torch, as the run has

    manifest = sweep.run_folder(number) / "state" / MANIFEST
    return digest_of(manifest.read_bytes()) if manifest.is_file() else None


def _waits_again(sweep: Sweep, number: int, saved: str | None) -> bool:
    """Whether a job that was interrupted goes back into the queue.

    Args:
        saved: what tells its state now.
    """
    options = sweep.jobs[number].slurm
    if options is None or "SLURM_JOB_ID" not in os.environ:
        return False
    before = sweep.attempts(number)[:-1]
    if before and before[-1].requeued and before[-1].saved == saved:
        print(
            f"Not back into the queue: this try got no further than the one before. Ask for more than "
            f"hardware.slurm.minutes={options.minutes}",
            flush=True,
        )
        return False
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= options.requeues:
        print(f"Not back into the queue: hardware.slurm.requeues={options.requeues}", flush=True)
        return False
    if interrupt.last_heard in interrupt.EARLY:
        return True
    # SIGTERM comes of whoever cancels as well.
    return interrupt.last_heard == signal.SIGTERM and slurm.ended([_slurm_job()]).get(_slurm_job()) in _MAKES_ROOM
