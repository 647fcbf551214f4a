"""What the command `snapshot` makes: compose, revert, restore; export is in cl_runner/handover.

Each prints what it has written and returns the exit status 0; the user's mistakes and damaged files are ValueErrors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from cl_runner.arguments import SNAPSHOT, unwritable
from cl_runner.digests import give_rights
from cl_runner.history.history import (
    chain_to,
    describe_run,
    find_snapshot,
    find_task,
    find_two,
    weights_after,
    weights_before,
)
from cl_runner.plain import say
from cl_runner.sparse.snapshots import read_snapshot, save_snapshot
from cl_runner.sparse.versions import (
    OnConflict,
    compose_in_sequence,
    compose_siblings,
    conflicts,
    follows,
    undo,
    undoing,
)


def compose(first: str, second: str, on_conflict: OnConflict | None, output: Path) -> int:
    """One snapshot from two."""
    places, (a, b) = find_two(first, second)
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
        raise ValueError(f"{first} follows on {second}. Type: {SNAPSHOT} compose {second} {first} --output {output}")
    else:
        raise ValueError(
            f"{second} neither follows on {first} (it changes weights {b.header.parent[:8]}, those after the first "
            f"are {a.header.weights[:8]}) nor on the same weights as it ({a.header.parent[:8]})"
        )
    size = _write(output, lambda: save_snapshot(output, composed))
    entries = sum(change.bits.numel() for change in composed.changes.values())
    say(f"{output}: {size:,} bytes, {entries:,} entries of {first} and {second}; {told}")
    return 0


def revert(name: str, force: bool, output: Path) -> int:
    """A snapshot that follows on a run's final weights and takes one task out of them."""
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
            f"The weights after an earlier task: {SNAPSHOT} restore {place.run} --after TASK --output FILE.safetensors"
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
    say(f"{output}: {size:,} bytes, {undone.entries:,} entries go back to their values before {header.task}")
    if undone.later:
        kept = "lose the later value" if force else "keep the later value; to set these back too: --force"
        say(f"{undone.later:,} entries that later tasks changed as well {kept}")
    hint = f"{SNAPSHOT} restore {place.run} --after {output} --output FILE.safetensors"
    say(f"The weights without {header.task}: {hint} (or export, for from_pretrained)")
    return 0


def restore(run: Path, after: str, output: Path) -> int:
    """All weights after a task, in one file."""
    _check_file(output, [])
    chain = chain_to(_after(run, after), run)
    weights = weights_after(chain, run)
    _write(output, lambda: save_file(weights, output, metadata={"format": "pt", "after": after}))
    give_rights(output)
    say(f"{output}: {len(weights)} tensors after {after}, restored from {len(chain)} snapshots")
    return 0


def _after(run: Path, after: str) -> Path:
    """The snapshot of a run's task, or the file that `after` names."""
    return Path(after) if after.endswith(".safetensors") else find_task(run, after, "--after TASK")


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
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return write()
    except (OSError, SafetensorError) as error:
        raise unwritable(output, error) from None
