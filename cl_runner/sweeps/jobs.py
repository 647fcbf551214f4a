"""The jobs of a multirun, composed and checked before the first one starts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_runner.compose import Chosen, Request, compose
from cl_runner.digests import digest_of
from cl_runner.overrides import command_line, jobs_of, key_of, quoted


def requests_of(overrides: Sequence[str], folders: Sequence[Path]) -> list[Request]:
    """Every job of a line, in the order in which Hydra's sweeper runs them; they share the sweep's name.

    Raises:
        ValueError: a job's request is wrong, or the line makes no jobs, or two that are one run.
    """
    placed = [o for o in overrides if key_of(o).startswith(("hydra.sweep.", "hydra.run."))]
    if placed:
        line = command_line([o for o in overrides if o not in placed], folders, multirun=True)
        raise ValueError(f"{placed[0]}: where runs write is root=DIR. Type: {line}")
    made_before: dict[tuple[str, ...], Chosen] = {}
    requests = [_request(job, folders, made_before) for job in jobs_of(overrides, folders)]
    if not requests:
        raise ValueError("this multirun has no jobs: a range or list is empty")
    idle = set.intersection(*({one.key for one in request.unread} for request in requests))
    if idle:
        raise ValueError(next(one.reason for one in requests[0].unread if one.key in idle))
    seen: set[Path] = set()
    for request in requests:
        if request.folder in seen:
            raise ValueError(f"two jobs of this multirun are the same run {request.folder}: leave a repeated value out")
        seen.add(request.folder)
    name = sweep_name(requests)
    return [dataclasses.replace(request, sweep=name) for request in requests]


def say_replaced(requests: Sequence[Request]) -> None:
    """Say first what the user's files replace, and which methods are idle, once for all jobs."""
    for line in dict.fromkeys(line for request in requests for line in request.replaced):
        print(line, file=sys.stderr, flush=True)


def sweep_name(requests: Sequence[Request]) -> str:
    """The name of a multirun: the same runs are the same sweep, however they were typed, whatever they ask of SLURM."""
    text = "\n".join(sorted(request.identity for request in requests))
    return f"sweep-{digest_of(text.encode())[:8]}"


def varied_of(requests: Sequence[Request]) -> list[str]:
    """Of each job the overrides that not all of them have; of a single one what says so."""
    shared = set.intersection(*(set(request.overrides) for request in requests))
    return [" ".join(o for o in request.overrides if o not in shared) or "(the only one)" for request in requests]


def _request(job: Sequence[str], folders: Sequence[Path], made_before: dict[tuple[str, ...], Chosen]) -> Request:
    """One job; of its mistakes it is said that they are this job's, of which they name the whole line."""
    try:
        return compose(job, folders, sweep="", made_before=made_before)
    except ValueError as error:
        raise ValueError(f"in the job {' '.join(map(quoted, job))}: {error}") from None
