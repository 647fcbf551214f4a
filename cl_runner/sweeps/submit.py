"""The command `submit`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cl_runner.arguments import Parser
from cl_runner.overrides import COMMAND, check_once
from cl_runner.sweeps.asked import answered, counts
from cl_runner.sweeps.giving import give, prepared, say_how
from cl_runner.sweeps.jobs import requests_of, say_replaced
from cl_runner.sweeps.states import FREE, states_of


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0, or 2 after one message for a wrong request."""
    return answered(lambda: _submit(_parser().parse_intermixed_args(list(arguments))))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} submit",
        description="Give every run of a line to SLURM (hardware=slurm) or a queue of this machine, and return. What "
        "is done, waits or runs is not submitted again.",
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path)
    return parser


def _submit(given: argparse.Namespace) -> int:
    check_once(given.overrides, given.config_dir, multirun=True)
    requests = requests_of(given.overrides, given.config_dir)
    say_replaced(requests)
    sweep = prepared(requests, given.overrides, given.config_dir)
    states = states_of(sweep)
    free = [number for number, state in enumerate(states) if state.state in FREE]
    print(f"{sweep.name}: {len(sweep.jobs)} jobs, {counts(states)}", flush=True)
    if free:
        give(sweep, free)
    say_how(sweep)
    return 0
