"""The command `snapshot`: list and verify what each task changed, restore or export the model it gave."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cl_runner.arguments import Parser, unwritable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cl_runner.sparse.snapshots import Description


PURPOSES = {
    "list": "what each task of a run stored",
    "verify": "check every byte of a run's snapshots and that they form a chain, or of one file",
    "restore": "write all weights after a task to one safetensors file",
    "export": "write the model after a task to a folder that transformers' from_pretrained loads",
}


def main(arguments: Sequence[str]) -> int:
    """Run `snapshot list|verify|restore|export`.

    Returns:
        0 done; 1 `verify` found damage; 2 the request is wrong, or a damaged file was to be used.
    """
    try:
        if arguments and arguments[0] not in PURPOSES and not arguments[0].startswith("-"):
            raise ValueError(_unknown(arguments[0]))
        asked = _parser().parse_args(arguments)
        if asked.command == "list":
            return _list(asked.run)
        if asked.command == "verify":
            return _verify(asked.run)
        if asked.command == "restore":
            return _restore(asked.run, asked.after, asked.output)
        return _export(asked.run, asked.after, asked.output)
    except ValueError as error:
        print(f"cl_runner: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m cl_runner snapshot", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|verify|restore|export")
    for name, purpose in PURPOSES.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.add_argument("run", type=Path, help="a run's folder" + (" or a file" if name == "verify" else ""))
        if name in ("restore", "export"):
            command.add_argument("--after", required=True, metavar="TASK", help="name of the task, see list")
            kind = "FILE.safetensors" if name == "restore" else "FOLDER"
            command.add_argument("--output", required=True, type=Path, metavar=kind)
    return parser


def _unknown(command: str) -> str:
    """What to say of a command that does not exist."""
    close = difflib.get_close_matches(command, PURPOSES, n=1)
    nearest = f" Nearest: {close[0]!r}. Type: python -m cl_runner snapshot {close[0]}" if close else ""
    return f"snapshot has no command {command!r}; it has {', '.join(PURPOSES)}.{nearest}"


def _list(run: Path) -> int:
    """One row per snapshot: task, stored values, bytes, share of the model, hashes."""
    from rich.console import Console
    from rich.table import Table

    described = _describe(run)
    table = Table(title=str(run))
    table.add_column("task")
    for column in ("stored values", "bytes", "% of the model's bytes"):
        table.add_column(column, justify="right")
    for column in ("parent", "weights"):
        table.add_column(column)
    for found in described.values():
        stored = (f"{found.stored:,}", f"{found.file_bytes:,}", f"{found.share:.2f}")
        table.add_row(found.task, *stored, found.parent[:8], found.weights[:8])
    Console(soft_wrap=True).print(table)
    return 0


def _verify(path: Path) -> int:
    """Check one file, or all of a run's and the links between them."""
    from cl_runner.sparse.snapshots import describe_snapshot, verify_snapshot

    files = [path] if path.is_file() else _files(path)
    problems = []
    known: set[str] = set()  # hashes of weights that can be reached
    for file in files:
        found = verify_snapshot(file)
        problems += found
        if found:
            continue
        snapshot = describe_snapshot(file)
        if path.is_dir() and not snapshot.whole and snapshot.parent not in {snapshot.base, *known}:
            problems.append(f"{file}: no sound snapshot leads to its parent {snapshot.parent[:8]}")
        known.add(snapshot.weights)
    for problem in problems:
        print(problem)
    print(f"{len(files)} snapshots, {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    return 1 if problems else 0


def _restore(run: Path, task: str, output: Path) -> int:
    """All weights after a task, in one file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if output.suffix != ".safetensors":
        raise ValueError(f"--output {output} must be a file name that ends in .safetensors")
    if os.path.isdir(output):
        raise ValueError(f"cannot write {output}: it is a folder")
    chain = _chain(run, task)
    weights = _weights(run, chain, None)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, output, metadata={"format": "pt", "after": task})
    except (OSError, SafetensorError) as error:
        raise unwritable(output, error) from None
    print(f"{output}: {len(weights)} tensors after {task}, restored from {len(chain)} snapshots")
    return 0


def _export(run: Path, task: str, output: Path) -> int:
    """A folder for from_pretrained, with the tokenizer."""
    import torch
    from safetensors import SafetensorError

    if os.path.isdir(output) and any(output.iterdir()):
        raise ValueError(f"--output {output} is not empty; choose a new folder")
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"cannot write {output}: it is not a folder; choose a new one")
    chain = _chain(run, task)
    model, tokenizer = _rebuild(run)
    weights = _weights(run, chain, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(output, ignore_errors=True)  # new or empty before, see above
        raise unwritable(output, error) from None
    print(f"{output}: the model after {task} with its tokenizer; load it with from_pretrained({str(output)!r})")
    return 0


def _files(run: Path) -> list[Path]:
    """A run's snapshots in the order of its tasks."""
    if not run.is_dir():
        raise ValueError(f"there is no folder {run}")
    files = sorted((run / "snapshots").glob("*.safetensors"))
    if not files:
        raise ValueError(f"{run} holds no snapshots; a run's folder has them under snapshots/")
    return files


def _describe(run: Path) -> dict[Path, Description]:
    from cl_runner.sparse.snapshots import describe_snapshot

    return {file: describe_snapshot(file) for file in _files(run)}


def _chain(run: Path, task: str) -> list[Path]:
    """The snapshots that lead to `task`, the first of them whole or a child of the starting model."""
    described = _describe(run)
    last = [file for file, snapshot in described.items() if snapshot.task == task]
    if not last:
        names = [snapshot.task for snapshot in described.values()]
        close = difflib.get_close_matches(task, names, n=1, cutoff=0.5)
        nearest = f"\nNearest: {close[0]!r}. Type: --after {close[0]}" if close else ""
        raise ValueError(f"{run} has no snapshot after task {task!r}; it has {', '.join(names)}.{nearest}")
    chain = [last[0]]
    while not (described[chain[0]].whole or described[chain[0]].parent == described[chain[0]].base):
        child = described[chain[0]]
        earlier = [
            file
            for file, snapshot in described.items()
            if snapshot.weights == child.parent and snapshot.index < child.index
        ]
        if not earlier:
            raise ValueError(
                f"{chain[0]} needs the weights {child.parent[:8]} before it, and no snapshot in {run} leads "
                "there (the run left some out: snapshots.save)"
            )
        chain.insert(0, earlier[-1])
    return chain


def _weights(run: Path, chain: Sequence[Path], model: PreTrainedModel | None) -> dict[str, Tensor]:
    """Weights at the end of a chain; the starting model is built only if the chain needs it."""
    from cl_runner.sparse.snapshots import describe_snapshot, read_weights

    if describe_snapshot(chain[0]).whole:
        return read_weights(chain)
    if model is None:
        model, _ = _rebuild(run)
    return read_weights(chain, dict(model.named_parameters()))


def _rebuild(run: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The untrained starting model of a run and its tokenizer."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} has no config.yaml, so its starting model cannot be built")
    from cl_runner.build import rebuild

    return rebuild(run)
