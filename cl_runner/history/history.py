"""A run's snapshots as a history: the file of a task, the chain that leads to it, and the weights at its end."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from torch import Tensor

from cl_runner.sparse.bits import weights_hash
from cl_runner.sparse.chain import (
    apply_chain,
    apply_snapshot,
    begin_parameters,
    check_same_model,
    empty_weights,
    kinds,
    read_weights,
)
from cl_runner.sparse.snapshots import Description, Snapshot, describe_snapshot, read_snapshot
from cl_runner.sparse.stored_header import Unusable

if TYPE_CHECKING:
    from cl_runner.build import Rebuilt


@dataclass(frozen=True)
class Place:
    """A snapshot's file, and the run that it belongs to, if it is known; `name` is what the user typed."""

    name: str
    file: Path
    run: Path | None


def _why_none(run: Path) -> str:
    """What a folder without snapshots is, and what to type."""
    written = run / "config.yaml"
    content = yaml.safe_load(written.read_text(encoding="utf-8")) if written.is_file() else None
    if isinstance(content, dict) and (content.get("snapshots") or {}).get("save") == "none":
        return "it was made with snapshots.save=none. A run that keeps them: type its line with snapshots.save=all"
    return "a run's folder has them under snapshots/"


def snapshot_files(run: Path) -> list[Path]:
    """A run's snapshots in the order of its tasks."""
    if not run.is_dir():
        raise ValueError(f"there is no folder {run}")
    # Their names begin with the task's position, of two digits or more.
    files = sorted((run / "snapshots").glob("*.safetensors"), key=lambda path: (path.name.find("_"), path.name))
    if not files:
        raise ValueError(f"{run} holds no snapshots; {_why_none(run)}")
    return files


def describe_run(run: Path) -> dict[Path, Description]:
    """Every snapshot of a run in the order of its tasks."""
    return {file: describe_snapshot(file) for file in snapshot_files(run)}


def find_task(run: Path, task: str, typed: str) -> Path:
    """The snapshot of a run's task; `typed` is what to type for the nearest name, with TASK in its place."""
    described = describe_run(run)
    for file, snapshot in described.items():
        if snapshot.task == task:
            return file
    names = [snapshot.task for snapshot in described.values()]
    close = difflib.get_close_matches(task, names, n=1, cutoff=0.5)
    nearest = f"\nNearest: {close[0]!r}. Type: {typed.replace('TASK', close[0])}" if close else ""
    raise ValueError(f"{run} has no snapshot after task {task!r}; it has {', '.join(names)}.{nearest}")


def find_snapshot(name: str) -> Place:
    """The snapshot that is named by its file or as RUN:TASK.

    Raises:
        ValueError: there is none; the text says what to type.
    """
    path = Path(name)
    if path.is_file():
        within = path.parent.name == "snapshots" and path.suffix == ".safetensors"
        return Place(name, path, path.parent.parent if within else None)
    run, _, task = name.rpartition(":")
    if run and not path.is_dir():
        return Place(name, find_task(Path(run), task, f"{run}:TASK"), Path(run))
    if not path.is_dir():
        raise ValueError(f"there is no file {name}. A snapshot is named by its file or as RUN:TASK")
    names = [snapshot.task for snapshot in describe_run(path).values()]
    raise ValueError(f"{name} is a folder; name one of its tasks ({', '.join(names)}). Type: {name}:{names[-1]}")


def find_two(first: str, second: str) -> tuple[list[Place], list[Snapshot]]:
    """Two snapshots of the same model. A file that lies in no run is taken to follow on the other's run.

    Raises:
        ValueError: one is missing or damaged, or they are of different models.
    """
    places = [find_snapshot(name) for name in (first, second)]
    run = next((place.run for place in places if place.run is not None), None)
    places = [replace(place, run=place.run or run) for place in places]
    a, b = (read_snapshot(place.file) for place in places)
    check_same_model(a.header, first, b.header.shapes, b.header.dtypes, second)
    return places, [a, b]


def chain_to(file: Path, run: Path | None) -> list[Path]:
    """The snapshots that lead to the weights after the one in `file`, which is the last of them.

    The first is whole or a child of the starting model.

    Args:
        file: a snapshot of the run, or one that follows on one of the run's.
    """
    chain, first = [file], describe_snapshot(file)
    earlier = [] if run is None else list(describe_run(run).items())
    places = [place for place, (other, _) in enumerate(earlier) if other.resolve() == file.resolve()]
    if places:
        earlier = earlier[: places[0]]  # a task that changed nothing has its parent's hash: never look ahead
    while not (first.whole or first.parent == first.base):
        places = [place for place, (_, snapshot) in enumerate(earlier) if snapshot.weights == first.parent]
        if not places:
            where = "its run is not known. Name it as RUN:TASK, or by its file in RUN/snapshots"
            if run is not None:
                where = f"no snapshot in {run} leads there (the run left some out: snapshots.save)"
            raise ValueError(f"{chain[0]} needs the weights {first.parent[:8]} before it, and {where}")
        path, first = earlier[places[-1]]
        chain.insert(0, path)
        earlier = earlier[: places[-1]]
    return chain


def weights_after(chain: Sequence[Path], run: Path | None) -> dict[str, Tensor]:
    """All weights at the end of a chain, on the CPU; the starting model is built only if the chain needs it."""
    if describe_snapshot(chain[0]).whole:
        return read_weights(chain)
    weights = starting_weights(run)
    apply_chain(weights, chain)
    return weights


def weights_before(chain: Sequence[Path], run: Path | None) -> dict[str, Tensor]:
    """All weights before the last snapshot of a chain, which is not whole."""
    if len(chain) > 1:
        return weights_after(chain[:-1], run)
    weights, expected = starting_weights(run), describe_snapshot(chain[0]).parent
    found = weights_hash(weights)
    if found != expected:
        raise ValueError(f"{chain[0]} changes weights {expected[:12]}, but {run}/config.yaml gives {found[:12]}")
    return weights


def check_weights(described: Mapping[Path, Description], run: Path) -> tuple[list[str], str | None]:
    """(a problem for each snapshot that does not lead to the weights that it promises, why some are not known or None).

    Args:
        described: snapshots of a run, each sound by itself, in the order of its tasks.
    """
    problems: list[str] = []
    weights: dict[str, Tensor] = {}
    reached = ""
    for file, header in described.items():
        try:
            if header.whole:
                weights = empty_weights(header)
            elif header.parent != reached:
                if header.parent != header.base:
                    continue  # of a snapshot that has a problem itself
                try:
                    weights, reached = starting_weights(run), ""
                except ValueError as error:
                    return problems, str(error)
            snapshot = read_snapshot(file)
            # A task that follows on another may have brought parameters.
            new = [name for name in header.shapes if name not in weights and reached]
            begin_parameters(weights, snapshot, file, new)
            check_same_model(header, str(file), *kinds(weights), "the weights before it")
            apply_snapshot(weights, snapshot)
            found = weights_hash(weights)
            if found != header.weights:
                raise Unusable(file, f"the restored weights are {found[:12]}, but should be {header.weights[:12]}")
            reached = found
        except ValueError as error:
            problems.append(str(error))
            reached = ""
    return problems, None


def starting_weights(run: Path | None) -> dict[str, Tensor]:
    """The untrained weights of a run."""
    if run is None:
        raise ValueError("the starting model is needed, and its run is not known. Name the snapshot as RUN:TASK")
    return {name: parameter.detach() for name, parameter in rebuild_model(run).model.named_parameters()}


def rebuild_model(run: Path, begun: int = 1) -> Rebuilt:
    """The untrained starting model of a run.

    Args:
        begun: tasks whose parameters exist.
    """
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} has no config.yaml, so its starting model cannot be built")
    from cl_runner.build import rebuild

    return rebuild(run, begun)
