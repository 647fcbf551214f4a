"""The command `fork`: a new run that goes on from another one's state after a task, under other settings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cl_runner.arguments import Parser
from cl_runner.compose import Request, compose
from cl_runner.data.task import build_tasks
from cl_runner.digests import read_text
from cl_runner.groups import GROUPS
from cl_runner.job import run_request
from cl_runner.overrides import COMMAND, check_once, key_of, written
from cl_runner.plain import plain_lines

if TYPE_CHECKING:
    from cl_runner.parent import Parent


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} fork",
        description="A new run that goes on from RUN's state after TASK. It is typed as RUN was, with what is typed "
        "here instead. Its line is printed first: after an interruption that goes on.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("overrides", nargs="*", metavar="GROUP=OPTION | KEY=VALUE", help="for the tasks after TASK")
    parser.add_argument("--at", required=True, metavar="TASK", help="the last task that is RUN's")
    parser.add_argument("--show", action="store_true", help="check and print the line, and run nothing")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path, metavar="DIR")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; the run's exit status, or 2 after one message for a wrong request."""
    try:
        asked = _parser().parse_intermixed_args(list(arguments))
        check_once(asked.overrides, asked.config_dir)
        words = line_of(asked.run, asked.at, asked.overrides)
        request = compose(words, asked.config_dir)
        if request.config.hardware.slurm is not None:
            raise ValueError(f"a run on SLURM is submitted. Type: {request.command}")
        from cl_runner.parent import read_parent  # torch takes seconds to import

        parent = read_parent(asked.run, asked.at)
        print(request.command, flush=True)
        return _check(request, parent) if asked.show else run_request(request)
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2


def _check(request: Request, parent: Parent) -> int:
    """All that a run checks before it loads weights."""
    from cl_runner.prepared import prepare

    tasks = build_tasks(request.config.task_order, request.config.task)
    parent.check(request.config, tasks, prepare(request.config, tasks).method)
    print(f"It would write to {request.folder}")
    return 0


def line_of(run: Path, at: str, overrides: Sequence[str]) -> list[str]:
    """What is typed for the new run: what was typed for the other one, but for what is typed anew.

    A group's choice that is typed anew takes what was typed below the old one with it, such as method.pe.fraction.

    Raises:
        ValueError: there is no such run.
    """
    path = run / "overrides.txt"
    if not path.is_file():
        raise ValueError(f"{run} is no run: it has no overrides.txt. A run is named by its folder, which it prints")
    typed = [word for word in read_text(path).split("\n") if word]
    anew = {key_of(word) for word in overrides}
    chosen = tuple(f"{key}." for key in anew if key in GROUPS)
    kept = [
        word
        for word in typed
        if key_of(word) not in anew and not key_of(word).startswith(("fork.", *chosen)) and key_of(word) != "fork"
    ]
    return [*kept, *overrides, f"fork.run={written(str(run))}", f"fork.at={written(at)}"]
