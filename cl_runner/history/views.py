"""What the command `snapshot` shows: list, size, verify, diff, overlap.

Each prints and returns the exit status; the user's mistakes and damaged files are ValueErrors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from cl_runner.history.history import (
    Place,
    chain_to,
    check_weights,
    describe_run,
    find_two,
    snapshot_files,
    weights_after,
)
from cl_runner.plain import plain, say
from cl_runner.sparse.atlas import overlap
from cl_runner.sparse.groups import layer_groups
from cl_runner.sparse.snapshots import Description, describe_snapshot, read_snapshot, verify_snapshot
from cl_runner.sparse.versions import common_positions, compare, stored_positions, total


def show_list(run: Path) -> int:
    """One row per snapshot: task, stored values, bytes, share of the model, hashes."""
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


def show_sizes(run: Path, as_json: bool) -> int:
    """One row per snapshot: what its bytes are spent on; and all of them beside a full checkpoint per task."""
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


def verify(path: Path) -> int:
    """Check one file, or all of a run's, the links between them and the weights that they lead to."""
    files = [path] if path.is_file() else snapshot_files(path)
    problems: list[str] = []
    sound: dict[Path, Description] = {}
    known: set[str] = set()  # hashes of weights that can be reached
    for file in files:
        found = verify_snapshot(file)
        problems += found
        if found:
            continue
        snapshot = describe_snapshot(file)
        other = next((one for one, first in sound.items() if first.base != snapshot.base), None)
        if other is not None:
            problems.append(f"{file}: its run began with other weights than that of {other}")
            continue
        if path.is_dir() and not snapshot.whole and snapshot.parent not in {snapshot.base, *known}:
            problems.append(f"{file}: no sound snapshot leads to its parent {snapshot.parent[:8]}")
        else:
            sound[file] = snapshot
        known.add(snapshot.weights)
    unknown = None
    if path.is_dir():
        found, unknown = check_weights(sound, path)
        problems += found
    for problem in problems:
        say(problem)
    if unknown is not None:
        say(f"The weights that they lead to were not computed: {unknown}")
    print(
        f"{len(files)} snapshot{'s' * (len(files) != 1)}, {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}"
    )
    return 1 if problems else 0


def show_diff(first: str, second: str, as_json: bool) -> int:
    """One row per layer, and the sums."""
    places, (a, b) = find_two(first, second)
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
        say(f"The values are not known: {reason}")
    return 0


def show_overlap(run: Path, by_layer: bool, as_json: bool) -> int:
    """A matrix over the tasks, and one for each layer if asked for."""
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
        say(f"Left out, since they stored the whole model: {', '.join(whole)}")
    return 0


def _values(
    places: Sequence[Place], positions: Mapping[str, Tensor]
) -> tuple[tuple[dict[str, Tensor], dict[str, Tensor]] | None, str | None]:
    """(the values after both snapshots at positions, None), or (None, why they cannot be known)."""
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


def _show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is text."""
    table = Table(title=Text(plain(title)))
    for number, column in enumerate(columns):
        table.add_column(
            Text(plain(column)), justify="right" if number and column not in ("parent", "weights") else "left"
        )
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _number(value: float | None, form: str) -> str:
    """A number, or a dash for one that is not known or that there is not."""
    return "-" if value is None else format(value, form)
