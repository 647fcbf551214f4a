"""Multirun: every job is composed and checked before the first one starts, and the sweep ends with one table.

Typing the line again goes on: finished jobs say so, interrupted ones resume.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cl_runner.compose import Request, compose
from cl_runner.digests import Damaged, digest_of
from cl_runner.distributed import launched
from cl_runner.job import finished_metrics
from cl_runner.matrix import headline
from cl_runner.overrides import command_line, key_of, parse
from cl_runner.sweeps.folder import Submission, Sweep, place_of
from cl_runner.sweeps.giving import give, prepared
from cl_runner.sweeps.jobs import requests_of, say_replaced, varied_of
from cl_runner.sweeps.states import BUSY, FREE, failure_of, states_of
from cl_runner.sweeps.worker import work

_OPTUNA = "hydra_plugins.hydra_optuna_sweeper"
#: Seconds between two looks at SLURM's queue.
LOOK = 5.0


def run_sweep(overrides: Sequence[str], folders: Sequence[Path], launch: Callable[[str], int]) -> int:
    """Check all jobs, run them here, by SLURM or by Hydra's launcher, and return 0 only if every one is completed.

    Args:
        launch: runs the jobs of the sweep of this name by Hydra, one after the other unless a launcher was typed.

    Raises:
        ValueError: a job's request is wrong; nothing was started.
    """
    line = command_line(overrides, folders, multirun=True)
    if launched(os.environ)[1] > 1:
        raise ValueError(
            "several processes compute one run, and -m is many. Start them without torchrun or srun; sweep.processes=N "
            f"computes N of them at once. Type: {line}"
        )
    if any(key_of(o) == "hydra/sweeper" and not o.endswith("=basic") for o in overrides):
        return _told(_searched(overrides, folders, launch, line), line)
    requests = requests_of(overrides, folders)
    by_slurm = any(request.config.hardware.slurm is not None for request in requests)
    away = by_slurm or requests[0].config.sweep.processes != 1
    launcher = next((o for o in overrides if key_of(o) == "hydra/launcher"), None)
    if launcher is not None and away:
        right = command_line([o for o in overrides if o != launcher], folders, multirun=True)
        asked = "hardware=slurm submits its jobs" if by_slurm else "sweep.processes runs them"
        raise ValueError(f"{launcher} and {asked} itself: one of them. Type: {right}")
    say_replaced(requests)
    done = sum((request.folder / "COMPLETED").is_file() for request in requests)
    name = requests[0].sweep
    assert name is not None
    print(f"{name}: {len(requests)} jobs, {done} of them completed before", flush=True)
    status = _away(prepared(requests, overrides, folders)) if away else _by_hydra(name, launch)
    return _told(status, line) if status == 75 else summarise(requests, line)


def _told(status: int, line: str) -> int:
    """An exit status; of a multirun that was interrupted it is said how it goes on."""
    if status == 75:
        print(f"The same line goes on with this multirun: {line}")
    return status


def _by_hydra(name: str, launch: Callable[[str], int]) -> int:
    try:
        launch(name)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _searched(overrides: Sequence[str], folders: Sequence[Path], launch: Callable[[str], int], line: str) -> int:
    """A sweeper that chooses its jobs itself, as Optuna does: what it is told of each, and which way is better."""
    if "hydra/sweeper=optuna" in overrides and importlib.util.find_spec(_OPTUNA) is None:
        raise ValueError("hydra/sweeper=optuna is a package of its own. Type: pip install hydra-optuna-sweeper")
    swept = [o for o, one in zip(overrides, parse(overrides, folders), strict=True) if one.is_sweep_override()]
    plain = [o for o in overrides if o not in swept and not key_of(o).startswith("hydra")]
    request = compose(plain, folders, sweep="")
    name = f"sweep-{digest_of(line.encode())[:8]}"
    told = request.config.sweep.objective or "the accuracy that its last line names"
    direction = next((o.partition("=")[2] for o in overrides if key_of(o) == "hydra.sweeper.direction"), None)
    if direction is None:
        right = command_line([*overrides, "hydra.sweeper.direction=maximize"], folders, multirun=True)
        raise ValueError(f"the sweeper does not know which way {told} is better. Type: {right} (or minimize)")
    print(f"{name}: {direction} {told}, of the {request.config.evaluation.split} examples", flush=True)
    if request.config.evaluation.split == "test":
        print("Note: what is chosen by test examples is not measured by them: evaluation.split=validation", flush=True)
    status = _by_hydra(name, launch)
    if status == 0:
        print(f"What it found: {Path(request.config.root) / 'sweeps' / name}")
    return status


def _away(sweep: Sweep) -> int:
    """Submit what is of no queue yet, and tell what becomes of it until nothing waits or runs."""
    told = states_of(sweep)
    free = [n for n, state in enumerate(told) if state.state in FREE]

    def look() -> bool:
        """Whether something still waits or runs; each job whose state is another one has a line."""
        states = states_of(sweep)
        for number, state in enumerate(states):
            if state.state != told[number].state:
                why = f": {state.why}" if state.why and state.state != "running" else ""
                print(f"{sweep.jobs[number].varied}: {state.state}{why}", flush=True)
        told[:] = states
        return any(state.state in BUSY for state in states)

    if sweep.jobs[0].slurm is None:
        if free:
            sweep.add(Submission(place_of(os.getpid()), tuple(free), time.time()))
        status = work(sweep, free, look)
        look()
        return status
    if free:
        give(sweep, free)
    try:
        while look():
            time.sleep(LOOK)
    except KeyboardInterrupt:
        print(f"The jobs go on. See them: {sweep.line('status')}\nStop them: {sweep.line('cancel')}")
        return 75
    return 0


def summarise(requests: Sequence[Request], line: str) -> int:
    """Print a line per job; 0 if all are completed, otherwise 1, and which `line` runs the others again."""
    from rich.console import Console
    from rich.table import Table

    scores = [_scores(request) for request in requests]
    shown = headline(set.intersection(*(set(found) for found in scores if found)) if any(scores) else ())
    table = Table(title=requests[0].sweep, title_justify="left")
    for column in ("job", "status", f"{shown}, %", "folder"):
        table.add_column(column, overflow="fold")
    failed = 0
    for request, found, varied in zip(requests, scores, varied_of(requests), strict=True):
        folder = request.folder
        completed = (folder / "COMPLETED").is_file()
        failed += not found
        begun = (folder / "state").is_dir()
        done = "completed" if found else "completed, but damaged: the reason stands above"
        status = done if completed else "not finished" if begun else "not begun: the reason stands above"
        failure = failure_of(folder)
        if failure is not None:
            status = f"failed: {failure}" if failure else "failed"
        score = f"{found[shown]:.1f}" if found else ""
        table.add_row(varied, status, score, str(folder))
    console = Console()
    console.print(table)
    if failed:
        again = f"Once the causes are mended, this runs them again: {line}"
        console.print(f"{failed} of {len(requests)} jobs did not complete. {again}", markup=False, soft_wrap=True)
    sys.stdout.flush()
    return 1 if failed else 0


def _scores(request: Request) -> dict[str, float]:
    """The derived numbers of a completed job, else none."""
    if not (request.folder / "COMPLETED").is_file():
        return {}
    try:
        return finished_metrics(request.folder)
    except Damaged:  # which the job itself has said
        return {}
