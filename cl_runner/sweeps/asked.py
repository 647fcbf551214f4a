"""What the commands about submitted sweeps share: which sweep, which of its jobs, one message for a mistake."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cl_runner.arguments import Parser
from cl_runner.overrides import COMMAND
from cl_runner.sweeps.folder import MANIFEST, Sweep, load
from cl_runner.sweeps.states import STATES, JobState


def answered(command: Callable[[], int]) -> int:
    """A command's exit status; 2 after one message for a wrong request."""
    try:
        return command()
    except ValueError as error:
        print(f"cl_runner: {error}", file=sys.stderr)
        return 2


def parser_of(name: str, does: str) -> Parser:
    """The parser of a command about some jobs of a sweep."""
    parser = Parser(prog=f"{COMMAND} {name}", description=does, allow_abbrev=False)
    parser.add_argument("place", nargs="?", default=Path("outputs"), type=Path, help="the sweep's folder")
    parser.add_argument("--jobs", metavar="NUMBERS", help="of these, by commas, as status counts them")
    return parser


def chosen(given: argparse.Namespace, command: str) -> tuple[Sweep, list[int]]:
    """The sweep that is meant, and which of its jobs.

    Raises:
        ValueError: there is none, there are several, or it has no such job.
    """
    sweeps = sweeps_of(given.place)
    if len(sweeps) > 1:
        lines = "\n".join(sweep.line(command) for sweep in sweeps)
        raise ValueError(f"{given.place} holds {len(sweeps)} sweeps. Type one of:\n{lines}")
    (sweep,) = sweeps
    if given.jobs is None:
        return sweep, list(range(len(sweep.jobs)))
    words = given.jobs.split(",")
    wrong = [word for word in words if not word.isdigit() or int(word) >= len(sweep.jobs)]
    if wrong:
        raise ValueError(f"--jobs {wrong[0]}: {sweep.name} has jobs 0 to {len(sweep.jobs) - 1}")
    return sweep, sorted({int(word) for word in words})


def sweeps_of(place: Path) -> list[Sweep]:
    """The sweep of a folder, or those below it.

    Raises:
        ValueError: there is none.
    """
    if (place / MANIFEST).is_file():
        return [load(place)]
    found = sorted(place.glob(f"**/sweeps/*/{MANIFEST}")) if place.is_dir() else []
    if not found:
        raise ValueError(f"no submitted sweep lies in {place}. Submit one: {COMMAND} submit seed=0,1")
    return [load(path.parent) for path in found]


def counts(states: Sequence[JobState]) -> str:
    """How many jobs stand how."""
    found = Counter(state.state for state in states)
    return ", ".join(f"{found[name]} {name}" for name in STATES if found[name])
