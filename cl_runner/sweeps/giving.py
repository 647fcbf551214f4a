"""From a line to a submitted sweep: composed, frozen, written down, given away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cl_runner.compose import Request
from cl_runner.overrides import command_line
from cl_runner.sweeps import launch, slurm
from cl_runner.sweeps.folder import MANIFEST, Sweep, load, made
from cl_runner.sweeps.frozen import freeze


def prepared(requests: Sequence[Request], overrides: Sequence[str], folders: Sequence[Path]) -> Sweep:
    """The sweep of a line's jobs, with its code frozen and its manifest written; one that was submitted before goes on.

    Raises:
        ValueError: SLURM is asked for where there is none, or by some of the jobs alone.
    """
    sweep = made(requests, overrides)
    kinds = {job.slurm is not None for job in sweep.jobs}
    if len(kinds) > 1:
        raise ValueError("some jobs of this line go to SLURM and some do not. Submit them by two lines")
    if kinds == {True} and not slurm.has():
        line = command_line([o for o in overrides if not o.startswith("hardware")], folders, multirun=True)
        raise ValueError(
            f"this machine has no sbatch: type the line on a machine of the cluster, or run it here: {line}"
        )
    if (sweep.path / MANIFEST).is_file():
        before = load(sweep.path)
        jobs = {job.folder: job for job in sweep.jobs}
        if jobs.keys() == {job.folder for job in before.jobs}:
            sweep.jobs = tuple(jobs[job.folder] for job in before.jobs)  # numbers stay what they are
            sweep.submissions = before.submissions
    sweep.code = str(freeze(sweep.path, requests, folders).relative_to(sweep.path))
    sweep.save()
    return sweep


def give(sweep: Sweep, numbers: Sequence[int]) -> None:
    """Submit jobs, and say where they are."""
    for submission in launch.submit(sweep, numbers):
        several = "1 job" if len(submission.jobs) == 1 else f"{len(submission.jobs)} jobs"
        if submission.here:
            logs = f"{sweep.path}/logs/<number>.log"
            print(f"{several} for process {submission.id}, {sweep.processes} at once; logs: {logs}", flush=True)
        else:
            logs = f"{sweep.path}/logs/{submission.id}_*.log"
            print(f"{several} submitted as {submission.id}; logs: {logs}", flush=True)
    asked = sweep.jobs[numbers[0]].slurm
    if asked is not None and asked.requeues:
        print(
            f"A job saves {asked.signal_seconds} s before its limit of {asked.minutes} min, or up to a minute "
            "earlier, waits again and goes on",
            flush=True,
        )


def say_how(sweep: Sweep) -> None:
    """What to type about a sweep that was submitted."""
    print(f"See how they stand: {sweep.line('status')}\nStop them: {sweep.line('cancel')}")
