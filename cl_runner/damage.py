"""What of a run's folder is not what the run wrote, what is whole, and what to type: damage, and a user's edits."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_runner import digests
from cl_runner.arguments import SNAPSHOT
from cl_runner.digests import Damaged, readable
from cl_runner.tracking.metrics import first_lines

#: What the saved state holds as well: it is written anew, and nothing reads it back.
_REMADE = {"accuracy.csv", "forgetting.csv", "ability.csv", "summary.json"}
#: Folder or file of a run's folder -> what becomes of a run that goes on without it.
_WITHOUT = {
    "config.yaml": "it is written anew from what was typed",
    "overrides.txt": "it is written anew from what was typed",
    "environment.json": "it is written anew and tells of this machine as it is now",
    "data.json": "it is written anew from the data as they are now, changed or not",
    "plan.json": "it is planned anew",
    "predictions": "the scores stay; their intervals and what the report draws of these answers are lost",
    "masks.json": "the report then tells of later tasks' selections alone",
    "fisher.json": "the report draws the next task's instead",
    "generated": "the report then tells of other tasks' written examples alone",
    "keys.safetensors": "the next task writes it anew",
    "queries.safetensors": "the next task writes it anew",
    digests.SUMS: "changes to what lies beside it can then not be noticed any more",
}


def check_begun(folder: Path, log: Sequence[Any]) -> list[str]:
    """Check what a run that goes on reads back, but for its state and its snapshots, which check themselves.

    Args:
        log: lines of metrics.jsonl that belong to the checkpoint, and their digest.

    Returns:
        A line for each damaged file that is written anew.

    Raises:
        ValueError: a file is damaged or was edited; the text says what is whole and what to type.
    """
    said = []
    for error in _damaged(folder):
        if error.path.parent == folder and error.path.name in _REMADE:
            said.append(f"Note: {error}. It is written anew from the saved state")
        else:
            raise ValueError(what_to_type(folder, error))
    try:
        for _ in first_lines(folder / "metrics.jsonl", *log):
            pass
    except Damaged as error:
        raise ValueError(what_to_type(folder, error)) from None
    return said


def what_to_type(folder: Path, error: Damaged) -> str:
    """What to say of a file of a begun run that is damaged or was edited."""
    sums = error.path.name == digests.SUMS
    place = digests.SUMS if sums else error.path.relative_to(folder).parts[0]
    if place in _WITHOUT:
        return (
            f"{error}. Put the file back as it was; or go on without it ({_WITHOUT[place]}): the same command after "
            f"rm {shlex.quote(str(error.path))}"
        )
    said = str(error)
    if place == "state":
        said = f"the saved state of this run is damaged: {error.path} ({error.reason})"
    return (
        f"{said}. The run cannot go on without it.{_whole(folder)} Put the file back as it was, or start anew: the "
        f"same command after rm -r {shlex.quote(str(folder))}"
    )


def check_finished(folder: Path) -> None:
    """Check every file of a finished run's record.

    Raises:
        ValueError: some are damaged or were edited; the text names them, and says what is whole and what to type.
    """
    found = _damaged(folder)
    if found:
        others = "".join(f", {error.path.relative_to(folder)}" for error in found[1:4])
        also = f" (and {len(found) - 1} more{others})" if others else ""
        raise ValueError(
            f"this run is completed, but {found[0]}{also}. What is said there is not to be believed.{_whole(folder)} "
            f"Put the file back as it was, or compute the run again: the same command after rm -r "
            f"{shlex.quote(str(folder))}"
        )


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a run's config.yaml.

    Raises:
        Damaged: it is, or holds something else.
    """
    text = digests.read_text(path)
    with readable(path):
        try:
            found = OmegaConf.to_container(OmegaConf.create(text))
        except (yaml.YAMLError, OmegaConfBaseException, AttributeError, TypeError) as error:
            raise ValueError(str(error)) from None
        if not isinstance(found, dict):
            raise ValueError("it is no configuration")
    return {str(key): value for key, value in found.items()}


def _damaged(folder: Path) -> list[Damaged]:
    """Every file of the record that is there and is not what was written, and of the probes' those that are missing."""
    found = []
    for sums in digests.sums_of(folder):
        try:
            files = digests.recorded(sums.parent)
        except Damaged as error:
            found.append(error)
            continue
        for path in files:
            try:
                if path.is_file() or "probes" in path.relative_to(folder).parts:
                    digests.read(path)
            except Damaged as error:
                found.append(error)
    return found


def _whole(folder: Path) -> str:
    """What of a run can still be used."""
    tasks = sorted(path.stem.partition("_")[2] for path in (folder / "snapshots").glob("*.safetensors"))
    if not tasks:
        return ""
    return (
        f" What tasks changed ({', '.join(tasks)}) can be checked and restored: "
        f"{SNAPSHOT} verify {shlex.quote(str(folder))}."
    )
