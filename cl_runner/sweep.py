"""Multirun: every job is composed and checked before the first one starts, and the sweep ends with one table.

Typing the line again goes on: finished jobs say so, interrupted ones resume.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cl_runner.compose import Request, compose
from cl_runner.digests import Damaged
from cl_runner.job import finished_metrics
from cl_runner.matrix import headline
from cl_runner.overrides import command_line, jobs_of, key_of, quoted, sweep_id


def run_sweep(overrides: Sequence[str], folders: Sequence[Path], launch: Callable[[str], int]) -> int:
    """Check all jobs, launch them by Hydra, and return 0 only if every one is completed.

    Raises:
        ValueError: a job's request is wrong; nothing was started.
    """
    placed = [o for o in overrides if key_of(o).startswith(("hydra.sweep.", "hydra.run."))]
    if placed:
        line = command_line([o for o in overrides if o not in placed], folders, multirun=True)
        raise ValueError(f"{placed[0]}: where runs write is root=DIR. Type: {line}")
    sweep = sweep_id(overrides)
    requests = [_compose(job, folders, sweep) for job in jobs_of(overrides, folders)]
    if not requests:
        raise ValueError("this multirun has no jobs: a range or list is empty")
    idle = set.intersection(*({one.key for one in request.unread} for request in requests))
    if idle:
        raise ValueError(next(one.reason for one in requests[0].unread if one.key in idle))
    folders_of_jobs = [request.folder for request in requests]
    for i, folder in enumerate(folders_of_jobs):
        if folder in folders_of_jobs[:i]:
            raise ValueError(f"two jobs of this multirun are the same run {folder}: leave a repeated value out")
    done = sum((folder / "COMPLETED").is_file() for folder in folders_of_jobs)
    for line in dict.fromkeys(line for request in requests for line in request.replaced):
        print(line, file=sys.stderr, flush=True)
    print(f"{sweep}: {len(requests)} jobs, {done} of them completed before", flush=True)
    try:
        launch(sweep)
    except SystemExit as stop:
        if stop.code == 75:
            print(f"The same line goes on with this multirun: {command_line(overrides, folders, multirun=True)}")
            return 75
    return summarise(requests, command_line(overrides, folders, multirun=True))


def _compose(job: Sequence[str], folders: Sequence[Path], sweep: str) -> Request:
    """One job; of its mistakes it is said that they are this job's, of which they name the whole line."""
    try:
        return compose(job, folders, sweep)
    except ValueError as error:
        raise ValueError(f"in the job {' '.join(map(quoted, job))}: {error}") from None


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
