"""Giving the jobs of a sweep away: to SLURM as arrays, or to a worker of this machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from cl_runner.sweeps import slurm
from cl_runner.sweeps.folder import Submission, Sweep, place_of
from cl_runner.sweeps.worker import environment


def submit(sweep: Sweep, numbers: Sequence[int]) -> list[Submission]:
    """Submit these jobs, which are of no queue; what was submitted is in sweep.json before this returns.

    Jobs that ask for the same are one array, as long as the cluster takes them.

    Raises:
        ValueError: SLURM refused some; those before it are submitted and noted.
    """
    (sweep.path / "logs").mkdir(parents=True, exist_ok=True)
    before = len(sweep.submissions)
    if sweep.jobs[numbers[0]].slurm is None:
        sweep.add(_to_worker(sweep, numbers))
        return sweep.submissions[before:]
    groups: dict[str, list[int]] = {}
    for number in numbers:
        groups.setdefault(repr(sweep.jobs[number].slurm), []).append(number)
    longest = slurm.largest_array()
    for alike in groups.values():
        for first in range(0, len(alike), longest):
            sweep.add(_to_slurm(sweep, alike[first : first + longest]))
    return sweep.submissions[before:]


def _to_slurm(sweep: Sweep, numbers: Sequence[int]) -> Submission:
    asked = sweep.jobs[numbers[0]].slurm
    assert asked is not None
    path = sweep.path.resolve()
    text = slurm.script(asked, _name(sweep, numbers), numbers, path, sweep.cwd, path / sweep.code)
    submission = Submission(slurm.submit(text), tuple(numbers), time.time())
    (sweep.path / "logs" / f"{submission.id}.sh").write_text(text, encoding="utf-8")
    return submission


def _to_worker(sweep: Sweep, numbers: Sequence[int]) -> Submission:
    log = sweep.path.resolve() / "logs" / "worker.log"
    command = [sys.executable, "-P", "-m", "cl_runner", "work", str(sweep.path.resolve()), *map(str, numbers)]
    began = time.time()
    # By a shell that ends at once, so that the worker is nobody's child and outlives the terminal.
    line = f"{shlex.join(command)} </dev/null >>{shlex.quote(str(log))} 2>&1 & echo $!"
    shell = subprocess.run(
        ["sh", "-c", line],
        cwd=sweep.cwd,
        env=environment(sweep, 0, 1),
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
    )
    return Submission(place_of(int(shell.stdout)), tuple(numbers), began)


def _name(sweep: Sweep, numbers: Sequence[int]) -> str:
    """What SLURM shows of an array: the runs' method and order, where they share them, and the seed of a single one."""
    parts = [sweep.jobs[number].folder.split(os.sep)[-4:] for number in numbers]
    orders, methods, leaves = ({part[place] for part in parts} for place in (0, 2, 3))
    words = [f"{len(methods)}_methods" if len(methods) > 1 else methods.pop()]
    words.append(f"{len(orders)}_orders" if len(orders) > 1 else orders.pop())
    if len(leaves) == 1:
        words.append(leaves.pop().partition("-")[0])
    return "-".join(words)
