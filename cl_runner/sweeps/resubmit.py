"""The command `resubmit`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cl_runner.sweeps.asked import answered, chosen, counts, parser_of
from cl_runner.sweeps.giving import give, prepared, say_how
from cl_runner.sweeps.jobs import requests_of
from cl_runner.sweeps.states import FREE, states_of


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0, or 2 after one message for a wrong request."""
    return answered(lambda: _resubmit(_parser().parse_args(list(arguments))))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("resubmit", "Submit again what of a sweep failed or is missing; runs go on where they were.")
    parser.add_argument("--new-code", action="store_true", help="by the program and configuration as they are now")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path, help="with --new-code")
    return parser


def _resubmit(given: argparse.Namespace) -> int:
    sweep, numbers = chosen(given, "resubmit")
    if given.config_dir and not given.new_code:
        raise ValueError("--config-dir says where configuration lies that is read anew. Add --new-code")
    if given.new_code:
        folders = [folder.resolve() for folder in given.config_dir]
        os.chdir(sweep.cwd)
        sweep = prepared(requests_of(sweep.typed, folders), sweep.typed, folders)
    states = states_of(sweep)
    again = [number for number in numbers if states[number].state in FREE]
    if not again:
        print(f"{sweep.name}: nothing failed or is missing ({counts(states)})")
        return 0
    give(sweep, again)
    say_how(sweep)
    return 0
