"""The command `snapshot`: what each task changed in the model, as versions to list, compare, compose, undo and restore.

A snapshot is named by its file or as RUN:TASK.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_runner.arguments import Parser, unwritable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cl_runner.sparse.history import Place
    from cl_runner.sparse.snapshots import Snapshot
    from cl_runner.sparse.versions import OnConflict

PROGRAM = "python -m cl_runner snapshot"

PURPOSES = {
    "list": "what each task of a run stored",
    "size": "where the bytes go: positions, values, header, per value, beside full checkpoints",
    "verify": "check every byte of a run's snapshots and that they form a chain, or of one file",
    "diff": "two snapshots side by side, by layer: entries of one and of both, and how their values differ",
    "overlap": "Jaccard index of the positions that the tasks of a run stored",
    "compose": "one snapshot from two that follow on each other or on the same weights",
    "revert": "undo one task of a run in its final weights, bit by bit, as a snapshot that follows on them",
    "restore": "write all weights after a task to one safetensors file",
    "export": "write the model after a task to a folder that transformers' from_pretrained loads",
}


def main(arguments: Sequence[str]) -> int:
    """Run one of `PURPOSES`.

    Returns:
        0 done; 1 `verify` found damage; 2 the request is wrong, or a damaged file was to be used.
    """
    try:
        if arguments and arguments[0] not in PURPOSES and not arguments[0].startswith("-"):
            raise ValueError(_unknown(arguments[0]))
        asked = _parser().parse_args(arguments)
        match asked.command:
            case "list":
                return _list(asked.run)
            case "size":
                return _size(asked.run, asked.json)
            case "verify":
                return _verify(asked.run)
            case "diff":
                return _diff(asked.first, asked.second, asked.json)
            case "overlap":
                return _overlap(asked.run, asked.by == "layer", asked.json)
            case "compose":
                return _compose(asked.first, asked.second, asked.on_conflict, asked.output)
            case "revert":
                return _revert(asked.snapshot, asked.force, asked.output)
            case "restore":
                return _restore(asked.run, asked.after, asked.output)
            case _:
                return _export(asked.run, asked.after, asked.output)
    except ValueError as error:
        print(f"cl_runner: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description=__doc__)
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
    return parser


def _unknown(command: str) -> str:
    """What to say of a command that does not exist."""
    close = difflib.get_close_matches(command, PURPOSES, n=1)
    nearest = f" Nearest: {close[0]!r}. Type: {PROGRAM} {close[0]}" if close else ""
    return f"snapshot has no command {command!r}; it has {', '.join(PURPOSES)}.{nearest}"


# what there is


def _list(run: Path) -> int:
    """One row per snapshot: task, stored values, bytes, share of the model, hashes."""
    from cl_runner.sparse.history import describe_run

    _show(
        str(run),
        ("task", "stored values", "bytes", "% of the model's bytes", "parent", "weights"),
        [
            (
                found.task,
                f"{found.stored:,}",
                f"{found.file_bytes:,}",
                f"{found.share:.2f}",
                found.parent[:8],
                found.weights[:8],
            )
            for found in describe_run(run).values()
        ],
    )
    return 0


def _size(run: Path, as_json: bool) -> int:
    """One row per snapshot: what its bytes are spent on; and all of them beside a full checkpoint per task."""
    from cl_runner.sparse.history import describe_run

    described = list(describe_run(run).values())
    stored = sum(found.file_bytes for found in described)
    full = sum(found.model_bytes for found in described)
    rows = [
        {
            "task": found.task,
            "values": found.stored,
            "position_bytes": found.position_bytes,
            "value_bytes": found.value_bytes,
            "header_bytes": found.header_bytes,
            "bytes": found.file_bytes,
            "bytes_per_value": found.file_bytes / found.stored if found.stored else None,
            "percent_of_model": found.share,
        }
        for found in described
    ]
    if as_json:
        print(json.dumps({"run": str(run), "tasks": rows, "bytes": stored, "checkpoint_bytes": full}, indent=1))
        return 0
    _show(
        f"{run}: bytes",
        ("task", "values", "positions", "changes", "header", "in all", "per value", "% of the model's"),
        [
            (
                found.task,
                *(f"{n:,}" for n in (found.stored, found.position_bytes, found.value_bytes, found.header_bytes)),
                f"{found.file_bytes:,}",
                f"{found.file_bytes / found.stored:.2f}" if found.stored else "-",
                f"{found.share:.3f}",
            )
            for found in described
        ],
    )
    print(f"{stored:,} bytes; a full checkpoint after each task: {full:,} bytes, {full / stored:,.1f} times as much")
    return 0


def _verify(path: Path) -> int:
    """Check one file, or all of a run's and the links between them."""
    from cl_runner.sparse.history import snapshot_files
    from cl_runner.sparse.snapshots import describe_snapshot, verify_snapshot

    files = [path] if path.is_file() else snapshot_files(path)
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
    print(
        f"{len(files)} snapshot{'s' * (len(files) != 1)}, {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}"
    )
    return 1 if problems else 0


# two or more beside each other


def _diff(first: str, second: str, as_json: bool) -> int:
    """One row per layer, and the sums."""
    from cl_runner.sparse.versions import common_positions, compare, total

    places, (a, b) = _two(first, second)
    values, reason = _values(places, common_positions(a, b))
    rows = compare(a, b, values)
    rows.append(total(rows))
    if as_json:
        layers = [{**dataclasses.asdict(row), "jaccard": row.jaccard} for row in rows]
        # JSON has no NaN and no infinity.
        for layer in layers:
            layer["largest"] = layer["largest"] if math.isfinite(layer["largest"] or 0.0) else str(layer["largest"])
        print(json.dumps({"first": first, "second": second, "layers": layers, "unknown": reason}, indent=1))
        return 0
    _show(
        f"A: {first}   B: {second}",
        ("layer", "only A", "only B", "both", "Jaccard", "equal", "unequal", "largest |A - B|"),
        [
            (
                row.layer,
                *(f"{count:,}" for count in (row.only_first, row.only_second, row.both)),
                _number(row.jaccard, ".4f"),
                _number(row.equal, ","),
                _number(None if row.equal is None else row.both - row.equal, ","),
                _number(row.largest, ".3g"),
            )
            for row in rows
        ],
    )
    if reason is not None:
        print(f"The values are not known: {reason}")
    return 0


def _overlap(run: Path, by_layer: bool, as_json: bool) -> int:
    """A matrix over the tasks, and one for each layer if asked for."""
    from cl_runner.sparse.atlas import overlap
    from cl_runner.sparse.history import describe_run
    from cl_runner.sparse.selection import layer_groups
    from cl_runner.sparse.snapshots import read_snapshot
    from cl_runner.sparse.versions import stored_positions

    described = describe_run(run)
    files = {found.task: file for file, found in described.items() if not found.whole}
    whole = [found.task for found in described.values() if found.whole]
    if not files:
        raise ValueError(f"every task of {run} stored the whole model: there are no positions to compare")
    positions = {task: stored_positions(read_snapshot(file)) for task, file in files.items()}
    groups = layer_groups(list(next(iter(described.values())).shapes), "layer")
    found = {
        (a, b): overlap(positions[a], positions[b], groups) if positions[a] or positions[b] else {"layers": {}}
        for a in files
        for b in files
    }
    matrices = {"all": [[found[a, b].get("all") for b in files] for a in files]}
    if by_layer:
        for layer in dict.fromkeys(groups.values()):
            matrices[layer] = [[found[a, b]["layers"].get(layer) for b in files] for a in files]
    if as_json:
        print(json.dumps({"run": str(run), "tasks": list(files), "jaccard": matrices, "left_out": whole}, indent=1))
        return 0
    for title, matrix in matrices.items():
        rows = [(task, *(_number(value, ".4f") for value in row)) for task, row in zip(files, matrix, strict=True)]
        _show(f"Jaccard index of stored positions: {title}", ("", *files), rows)
    if whole:
        print(f"Left out, since they stored the whole model: {', '.join(whole)}")
    return 0


# new versions


def _compose(first: str, second: str, on_conflict: OnConflict | None, output: Path) -> int:
    """One snapshot from two."""
    from cl_runner.sparse.history import chain_to, weights_before
    from cl_runner.sparse.snapshots import save_snapshot
    from cl_runner.sparse.versions import compose_in_sequence, compose_siblings, conflicts, follows

    places, (a, b) = _two(first, second)
    _check_file(output, [place.file for place in places])
    if a.header.parent == b.header.parent:
        for name, side in ((first, a), (second, b)):
            if side.header.whole:
                raise ValueError(f"{name} stores the whole model, not what changed in it, so it cannot be joined")
        count = conflicts(a, b)
        if count and on_conflict is None:
            raise ValueError(
                f"{first} and {second} change {count:,} entries to different values. Type: --on-conflict last (the "
                "values of the second) or --on-conflict mean"
            )
        weights = weights_before(chain_to(places[0].file, places[0].run), places[0].run)
        composed = compose_siblings(a, b, weights, on_conflict or "last")
        told = f"{count:,} of them changed by both" + (f", {on_conflict} taken" if count else "")
    elif follows(a, b):
        if on_conflict == "mean":
            raise ValueError(
                f"{second} follows on {first}, so its values are meant to replace those. Type: --on-conflict last"
            )
        composed, told = compose_in_sequence(a, b), "the second follows on the first"
    elif follows(b, a):
        raise ValueError(f"{first} follows on {second}. Type: {PROGRAM} compose {second} {first} --output {output}")
    else:
        raise ValueError(
            f"{second} neither follows on {first} (it changes weights {b.header.parent[:8]}, those after the first "
            f"are {a.header.weights[:8]}) nor on the same weights as it ({a.header.parent[:8]})"
        )
    size = _write(output, lambda: save_snapshot(output, composed))
    entries = sum(change.bits.numel() for change in composed.changes.values())
    print(f"{output}: {size:,} bytes, {entries:,} entries of {first} and {second}; {told}")
    return 0


def _revert(name: str, force: bool, output: Path) -> int:
    """A snapshot that follows on a run's final weights and takes one task out of them."""
    from cl_runner.sparse.history import chain_to, describe_run, find_snapshot, weights_after
    from cl_runner.sparse.snapshots import read_snapshot, save_snapshot
    from cl_runner.sparse.versions import undo, undoing

    place = find_snapshot(name)
    if place.run is None:
        raise ValueError(f"the run of {name} is not known, and its later tasks are needed. Name the task as RUN:TASK")
    _check_file(output, [place.file])
    described = describe_run(place.run)
    last = list(described)[-1]
    header, final = described[place.file], described[last]
    if header.whole:
        raise ValueError(
            f"{header.task} stored the whole model and nothing of the weights before it, so it cannot be undone. "
            f"The weights after an earlier task: {PROGRAM} restore {place.run} --after TASK --output FILE.safetensors"
        )
    chain = chain_to(last, place.run)
    if place.file not in chain:
        raise ValueError(
            f"the final weights of {place.run}, those after {final.task}, do not come from {header.task}: "
            f"they come from {', '.join(described[file].task for file in chain)}"
        )
    later = chain[chain.index(place.file) + 1 :]
    undone = undo(read_snapshot(place.file), (read_snapshot(file) for file in later), force)
    weights = weights_after(chain, place.run)
    reverting = undoing(undone, header, final, weights, force)
    size = _write(output, lambda: save_snapshot(output, reverting))
    print(f"{output}: {size:,} bytes, {undone.entries:,} entries go back to their values before {header.task}")
    if undone.later:
        kept = "lose the later value" if force else "keep the later value; to set these back too: --force"
        print(f"{undone.later:,} entries that later tasks changed as well {kept}")
    hint = f"{PROGRAM} restore {place.run} --after {output} --output FILE.safetensors"
    print(f"The weights without {header.task}: {hint} (or export, for from_pretrained)")
    return 0


# weights and models


def _restore(run: Path, after: str, output: Path) -> int:
    """All weights after a task, in one file."""
    from safetensors.torch import save_file

    from cl_runner.sparse.history import chain_to, weights_after

    _check_file(output, [])
    chain = chain_to(_after(run, after), run)
    weights = weights_after(chain, run)
    _write(output, lambda: save_file(weights, output, metadata={"format": "pt", "after": after}))
    print(f"{output}: {len(weights)} tensors after {after}, restored from {len(chain)} snapshots")
    return 0


def _export(run: Path, after: str, output: Path) -> int:
    """A folder for from_pretrained, with the tokenizer."""
    from safetensors import SafetensorError

    from cl_runner.sparse.history import chain_to, rebuild_model
    from cl_runner.sparse.snapshots import apply_chain

    if os.path.isdir(output) and any(output.iterdir()):
        raise ValueError(f"--output {output} is not empty; choose a new folder")
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"cannot write {output}: it is not a folder; choose a new one")
    chain = chain_to(_after(run, after), run)
    model, tokenizer = rebuild_model(run)
    added = _added(model)
    if added:
        raise ValueError(
            f"the method of {run} added {len(added)} tensors, such as {added[0]}, which a model of from_pretrained has "
            f"no place for. All weights in one file: {PROGRAM} restore {run} --after {after} --output FILE.safetensors"
        )
    apply_chain(dict(model.named_parameters()), chain)
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(output, ignore_errors=True)  # new or empty before, see above
        raise unwritable(output, error) from None
    print(f"{output}: the model after {after} with its tokenizer; load it with from_pretrained({str(output)!r})")
    return 0


def _added(model: PreTrainedModel) -> list[str]:
    """Names of parameters that from_pretrained would not create."""
    import torch

    with torch.device("meta"):
        plain = type(model)(model.config)
    own = {name for name, _ in plain.named_parameters()}
    return [name for name, _ in model.named_parameters() if name not in own]


def _after(run: Path, after: str) -> Path:
    """The snapshot of a run's task, or the file that `after` names."""
    from cl_runner.sparse.history import find_task

    return Path(after) if after.endswith(".safetensors") else find_task(run, after, "--after TASK")


# what the commands share


def _two(first: str, second: str) -> tuple[list[Place], list[Snapshot]]:
    """Two snapshots of the same model. A file that lies in no run is taken to follow on the other's run."""
    from cl_runner.sparse.history import find_snapshot
    from cl_runner.sparse.snapshots import check_same_model, read_snapshot

    places = [find_snapshot(name) for name in (first, second)]
    run = next((place.run for place in places if place.run is not None), None)
    places = [dataclasses.replace(place, run=place.run or run) for place in places]
    a, b = (read_snapshot(place.file) for place in places)
    check_same_model(a.header, first, b.header.shapes, b.header.dtypes, second)
    return places, [a, b]


def _values(
    places: Sequence[Place], positions: Mapping[str, Tensor]
) -> tuple[tuple[dict[str, Tensor], dict[str, Tensor]] | None, str | None]:
    """(the values after both snapshots at positions, None), or (None, why they cannot be known)."""
    from cl_runner.sparse.history import chain_to, weights_after

    if not positions:
        return ({}, {}), None
    found = []
    for place in places:
        try:
            weights = weights_after(chain_to(place.file, place.run), place.run)
        except ValueError as error:
            return None, str(error)
        found.append({name: weights[name].reshape(-1)[index] for name, index in positions.items()})
        del weights  # those of a large model twice may not fit
    return (found[0], found[1]), None


def _check_file(output: Path, sources: Sequence[Path]) -> None:
    """Raise ValueError if a safetensors file cannot or should not be written there."""
    if output.suffix != ".safetensors":
        raise ValueError(f"--output {output} must be a file name that ends in .safetensors")
    if os.path.isdir(output):
        raise ValueError(f"cannot write {output}: it is a folder")
    if output.resolve() in {source.resolve() for source in sources} or output.absolute().parent.name == "snapshots":
        raise ValueError(f"--output {output} lies among a run's own snapshots, or is a source; choose another place")


def _write(output: Path, write: Callable[[], Any]) -> Any:
    """Make the folder of a file and write it, with one message if that fails."""
    from safetensors import SafetensorError

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return write()
    except (OSError, SafetensorError) as error:
        raise unwritable(output, error) from None


def _show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is text."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and column not in ("parent", "weights") else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _number(value: float | None, form: str) -> str:
    """A number, or a dash for one that is not known or that there is not."""
    return "-" if value is None else format(value, form)
