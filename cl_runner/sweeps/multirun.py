"""Multirun: every job is composed and checked before the first one starts, and the sweep ends with one table.

Typing the line again goes on: finished jobs say so, interrupted ones resume.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cl_runner.compose import Request, compose
from cl_runner.digests import Damaged, digest_of
from cl_runner.job import finished_metrics
from cl_runner.matrix import headline
from cl_runner.overrides import command_line, key_of, parse
from cl_runner.sweeps.folder import Sweep
from cl_runner.sweeps.giving import FREE, give, prepared
from cl_runner.sweeps.jobs import requests_of
from cl_runner.sweeps.states import JobState, states_of
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
    if any(key_of(o) == "hydra/sweeper" and not o.endswith("=basic") for o in overrides):
        return _searched(overrides, folders, launch, line)
    requests = requests_of(overrides, folders)
    by_slurm = any(request.config.hardware.slurm is not None for request in requests)
    launcher = next((o for o in overrides if key_of(o) == "hydra/launcher"), None)
    if launcher is not None and (by_slurm or requests[0].config.sweep.processes != 1):
        right = command_line([o for o in overrides if o != launcher], folders, multirun=True)
        asked = "hardware=slurm submits its jobs" if by_slurm else "sweep.processes runs them"
        raise ValueError(f"{launcher} and {asked} itself: one of them. Type: {right}")
    for said in dict.fromkeys(said for request in requests for said in request.replaced):
        print(said, file=sys.stderr, flush=True)
    done = sum((request.folder / "COMPLETED").is_file() for request in requests)
    print(f"{requests[0].sweep}: {len(requests)} jobs, {done} of them completed before", flush=True)
    if by_slurm or requests[0].config.sweep.processes != 1:
        status = _away(prepared(overrides, folders))
    else:
        status = _by_hydra(requests, launch)
    if status == 75:
        print(f"The same line goes on with this multirun: {line}")
        return 75
    return summarise(requests, line)


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
    try:
        launch(name)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        if status == 75:
            print(f"The same line goes on with this multirun: {line}")
        return status
    print(f"What it found: {Path(request.config.root) / 'sweeps' / name}")
    return 0


def _by_hydra(requests: Sequence[Request], launch: Callable[[str], int]) -> int:
    assert requests[0].sweep is not None
    try:
        launch(requests[0].sweep)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _away(sweep: Sweep) -> int:
    """Submit what is of no queue yet, and tell what becomes of it until nothing waits or runs."""
    states = states_of(sweep)
    free = [n for n, state in enumerate(states) if state.state in FREE]
    told: list[JobState] = list(states)

    def look() -> None:
        for number, state in enumerate(states_of(sweep)):
            if (state.state, state.why) != (told[number].state, told[number].why):
                words = [sweep.jobs[number].varied or "the job", state.state]
                print(": ".join([*words, *([state.why] if state.why else [])]), flush=True)
                told[number] = state

    if sweep.jobs[0].slurm is None:
        return work(sweep, free, look)
    if free:
        give(sweep, free)
    try:
        while any(state.state in ("waiting", "running") for state in states_of(sweep)):
            look()
            time.sleep(LOOK)
        look()
    except KeyboardInterrupt:
        print(f"The jobs go on. See them: {sweep.line('status')}\nStop them: {sweep.line('cancel')}")
        return 75
    return 0


def summarise(requests: Sequence[Request], line: str) -> int:
    """Print a line per job; 0 if all are completed, otherwise 1, and which `line` runs the others again."""
    from rich.console import Console
    from rich.table import Table

    shared = set.intersection(*(set(request.overrides) for request in requests))
    scores = [_scores(request) for request in requests]
    shown = headline(set.intersection(*(set(found) for found in scores if found)) if any(scores) else ())
    table = Table(title=requests[0].sweep, title_justify="left")
    for column in ("job", "status", f"{shown}, %", "folder"):
        table.add_column(column, overflow="fold")
    failed = 0
    for request, found in zip(requests, scores, strict=True):
        folder = request.folder
        completed = (folder / "COMPLETED").is_file()
        failed += not found
        begun = (folder / "state").is_dir()
        done = "completed" if found else "completed, but damaged: the reason stands above"
        status = done if completed else "not finished" if begun else "not begun: the reason stands above"
        if (folder / "FAILED").is_file():
            lines = (folder / "FAILED").read_text(encoding="utf-8", errors="replace").splitlines()
            status = f"failed: {lines[-1]}" if lines else "failed"
        score = f"{found[shown]:.1f}" if found else ""
        varied = " ".join(o for o in request.overrides if o not in shared) or "(the only one)"
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
