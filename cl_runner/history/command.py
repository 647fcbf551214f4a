"""The command `snapshot`: what each task changed in the model, as versions to list, compare, compose, undo and restore.

A snapshot is named by its file or as RUN:TASK.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_runner.arguments import COMPARED, SNAPSHOT, Parser
from cl_runner.plain import plain_lines

PURPOSES = {
    "list": "what each task of a run stored",
    "size": "where the bytes go: positions, values, header, per value, beside full checkpoints",
    "verify": "check every byte of a run's snapshots and that they form a chain, or of one file",
    "diff": "two snapshots side by side, by layer: entries of one and of both, and how their values differ",
    "overlap": "Jaccard index of the positions that the tasks of a run stored",
    "compose": "one snapshot from two that follow on each other or on the same weights",
    "revert": "undo one task of a run in its final weights, bit by bit, as a snapshot that follows on them",
    "restore": "write all weights after a task to one safetensors file",
    "export": "write the model after a task to a folder that transformers, peft or cl_runner.load loads, with its card",
}


def main(arguments: Sequence[str]) -> int:
    """Run one of `PURPOSES`.

    Returns:
        0 done; 1 `verify` found damage, or what `export` wrote does not answer as the run did; 2 the request is wrong,
            or a damaged file was to be used.
    """
    try:
        if arguments and arguments[0] not in PURPOSES and not arguments[0].startswith("-"):
            raise ValueError(_unknown(arguments[0]))
        asked = _parser().parse_args(arguments)
        from cl_runner.history import outputs, views  # torch, which a mistyped request does not wait for

        match asked.command:
            case "list":
                return views.show_list(asked.run)
            case "size":
                return views.show_sizes(asked.run, asked.json)
            case "verify":
                return views.verify(asked.run)
            case "diff":
                return views.show_diff(asked.first, asked.second, asked.json)
            case "overlap":
                return views.show_overlap(asked.run, asked.by == "layer", asked.json)
            case "compose":
                return outputs.compose(asked.first, asked.second, asked.on_conflict, asked.output)
            case "revert":
                return outputs.revert(asked.snapshot, asked.force, asked.output)
            case "restore":
                return outputs.restore(asked.run, asked.after, asked.output)
            case _:
                from cl_runner.handover.export import Asked, export

                every = (asked.run, asked.after, asked.output, asked.merge, asked.check, asked.push, asked.private)
                return export(Asked(*every))
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=SNAPSHOT, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(PURPOSES))
    for name, purpose in PURPOSES.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        if name in ("diff", "compose"):
            for place, metavar in (("first", "A"), ("second", "B")):
                command.add_argument(place, metavar=metavar, help="a snapshot: its file, or RUN:TASK")
        elif name == "revert":
            command.add_argument("snapshot", metavar="RUN:TASK", help="the task to undo")
            command.add_argument("--force", action="store_true", help="also entries that later tasks changed as well")
        else:
            command.add_argument("run", type=Path, help="a run's folder" + (" or a file" if name == "verify" else ""))
        if name in ("size", "diff", "overlap"):
            command.add_argument("--json", action="store_true", help="print JSON instead of a table")
        if name == "overlap":
            command.add_argument("--by", choices=("layer",), help="also for each layer")
        if name == "compose":
            help = "what an entry becomes that both change to different values: that of B, or the mean"
            command.add_argument("--on-conflict", choices=("last", "mean"), help=help)
        if name in ("restore", "export"):
            help = "name of the task, see list; or the file of a snapshot that follows on one of the run's"
            command.add_argument("--after", required=True, metavar="TASK", help=help)
        if name in ("compose", "revert", "restore", "export"):
            kind = "FOLDER" if name == "export" else "FILE.safetensors"
            command.add_argument("--output", required=True, type=Path, metavar=kind)
        if name == "export":
            command.add_argument("--merge", action="store_true", help="low-rank adapters join the weights: one model")
            help = (
                "test examples that the folder is asked and the run's answers compared with: a number, or all; 0 = none"
            )
            command.add_argument(
                "--check", type=_count, default=COMPARED, metavar="COUNT", help=f"{help} (default: {COMPARED})"
            )
            help = "write the folder to the hub as well; needs a token: hf auth login"
            command.add_argument("--push", metavar="NAMESPACE/NAME", help=help)
            command.add_argument("--private", action="store_true", help="others do not see it there")
    return parser


def _count(text: str) -> int | None:
    """Examples; None = all.

    Raises:
        ArgumentTypeError: it is no number of any.
    """
    if text == "all":
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of examples. Type: --check 100 (or all, or 0)")
    return int(text)


def _unknown(command: str) -> str:
    """What to say of a command that does not exist."""
    close = difflib.get_close_matches(command, PURPOSES, n=1)
    nearest = f" Nearest: {close[0]!r}. Type: {SNAPSHOT} {close[0]}" if close else ""
    return f"snapshot has no command {command!r}; it has {', '.join(PURPOSES)}.{nearest}"
