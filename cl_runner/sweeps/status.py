"""The command `status`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cl_runner.arguments import Parser
from cl_runner.overrides import COMMAND
from cl_runner.sweeps.asked import answered, counts, sweeps_of
from cl_runner.sweeps.folder import Sweep
from cl_runner.sweeps.states import FREE, JobState, states_of


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0, or 2 after one message for a wrong request."""
    return answered(lambda: _status(_parser().parse_args(list(arguments))))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} status",
        description="How the jobs of submitted sweeps stand: planned, waiting and why, running and what they printed "
        "last, done, failed and why, missing (cancelled, interrupted or lost).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "place", nargs="?", default=Path("outputs"), type=Path, help="a sweep's folder, or what has some"
    )
    return parser


def _status(given: argparse.Namespace) -> int:
    sweeps = sweeps_of(given.place)
    if len(sweeps) > 1:
        for sweep in sweeps:
            print(f"{os.path.relpath(sweep.path)}: {counts(states_of(sweep))}")
        print(f"One of them: {COMMAND} status FOLDER")
        return 0
    (sweep,) = sweeps
    states = states_of(sweep)
    _show(sweep, states)
    if any(state.state in FREE for state in states):
        print(f"What failed or is missing runs again by: {sweep.line('resubmit')}")
    elif all(state.state == "done" for state in states):
        print(f"Their report: {COMMAND} report {os.path.relpath(sweep.path.parents[1])}")
    return 0


def _show(sweep: Sweep, states: Sequence[JobState]) -> None:
    """A line for each job."""
    console = Console()
    table = Table(title=f"{sweep.name}: {counts(states)}", title_justify="left")
    for column in ("", "job", "state", "where"):
        table.add_column(column, overflow="fold")
    for number, (job, state) in enumerate(zip(sweep.jobs, states, strict=True)):
        said = f"{state.state}: {state.why}" if state.why else state.state
        table.add_row(*map(Text, (str(number), job.varied, said, state.place)))
    console.print(table)
    print(f"What they print: {os.path.relpath(sweep.path / 'logs')}", flush=True)
