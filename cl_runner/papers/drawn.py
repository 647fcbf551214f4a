"""From a figure and runs to its pictures: what each kind reads of a run, and who draws it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_runner.digests import Damaged
from cl_runner.papers import bars, lines, maps, states
from cl_runner.papers.figures import READS, Figure
from cl_runner.papers.maps import importance_of, usable_keys
from cl_runner.papers.picture import Asked, Drawn, Picture, Selection, select
from cl_runner.report.atlas import read_atlas
from cl_runner.report.command import usable, writing
from cl_runner.report.folder import Run, find_runs
from cl_runner.report.grouping import group_runs
from cl_runner.report.html import write
from cl_runner.report.representations import FOLDER
from cl_runner.report.sections import UNUSABLE, not_of_a_run
from cl_runner.report.text_table import as_csv
from cl_runner.report.where import where

#: What a figure draws -> who does.
DRAWERS: Mapping[str, Callable[[Figure, Selection, Asked], Drawn]] = {
    "first_task": lines.first_task,
    "learned": lines.learned,
    "bars": bars.bars,
    "ability": lines.ability,
    "importance": maps.importance,
    "keys_map": maps.keys_by_tsne,
    "similarity": maps.similarity,
    "selected": maps.selected,
    "overlap": maps.overlap,
    "representations": states.representations,
}
#: What a figure draws -> the file of a run that it is made of.
FILES = {
    "importance": "fisher.json",
    "keys_map": "keys.safetensors",
    "similarity": "keys.safetensors",
    "selected": "masks.json",
    "overlap": "masks.json",
    "representations": f"{FOLDER}/states_start.safetensors",
}


@dataclass(frozen=True)
class Found:
    """Runs for a figure.

    Attributes:
        notes: which runs are left out, and why.
        nothing: why no run is left; empty if one is.
    """

    selection: Selection
    notes: list[str]
    nothing: str


def find(figure: Figure, folders: Sequence[Path], conditions: Sequence[str], every: bool) -> Found:
    """The completed runs in or below folders that have what a figure shows, and a method of its lines.

    Args:
        conditions: of `--where`.
        every: take runs of other methods as well.

    Raises:
        ValueError: a folder does not exist, or a condition cannot be read.
    """
    runs, notes = find_runs(folders)
    runs, unusable = usable(runs)
    notes += unusable
    if not runs:
        return Found(Selection([], {}, []), notes, f"no completed run in {', '.join(map(str, folders))}")
    runs = where(runs, conditions) if conditions else runs
    selection = select(figure, group_runs(runs), every)
    notes += selection.left_out
    if selection.others:
        methods = ", ".join(dict.fromkeys(str(group.axes["method"]) for group in selection.others))
        notes.append(f"not drawn, since {figure.name} has no line of them (--all draws them): {methods}")
    shown = [run for group in selection.groups for run in group.runs]
    having, lacking = _drawable(figure, shown)
    notes += lacking
    if having and len(having) < len(shown):
        selection = select(figure, group_runs(having), every)
    nothing = ""
    if not shown:
        nothing = f"none of {len(runs)} runs has a method that {figure.name} has a line of; --all draws other methods"
    elif not having:
        nothing = f"none of {len(shown)} runs has what {figure.name} shows: {READS[figure.data.draws]}"
    return Found(selection, notes, nothing)


def _drawable(figure: Figure, runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs that have what a figure shows, and of the others what they lack, many alike in one line."""
    kind = figure.data.draws
    found: list[Run] = []
    lacking: dict[str, list[Path]] = {}
    notes = []
    for run in runs:
        try:
            lack = _lack(kind, run)
        except UNUSABLE as error:
            notes.append(f"left out {run.folder}: {not_of_a_run(run.folder / FILES.get(kind, 'accuracy.csv'), error)}")
            continue
        if lack:
            lacking.setdefault(lack, []).append(run.folder)
        else:
            found.append(run)
    for lack, folders in lacking.items():
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        notes.append(f"left out {folders[0]}{more}: {lack}")
    return found, notes


def _lack(kind: str, run: Run) -> str:
    """What a run has not that a figure is made of; empty if it has all.

    Raises:
        Damaged: a file does not hold what a run writes.
    """
    file = FILES.get(kind)
    if file is None:
        if kind == "ability" and run.ability[0] and len(run.ability[1]) != run.done + 1:
            raise Damaged(run.folder / "ability.csv", "is not of the tasks of accuracy.csv")
        return "" if run.done else "it has no scores"
    if not (run.folder / file).exists():
        return f"there is no {file}, that is, {READS[kind]}"
    if kind == "importance":
        importance_of(run)
    elif file == "masks.json":
        atlas = read_atlas(run.masks)
        if not atlas.tasks or (kind == "overlap" and not atlas.pairs):
            return f"it selected weights for {len(atlas.tasks)} {'task' if len(atlas.tasks) == 1 else 'tasks'} alone"
    elif kind == "representations":
        return states.lack(run)
    elif not usable_keys(run):
        return "there are fewer than three keys"
    return ""


def pictures(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """All pictures of a figure; those of no runs show published numbers alone.

    Raises:
        ValueError: files of the runs do not fit together.
    """
    try:
        drawn = DRAWERS[figure.data.draws](figure, selection, asked)
    except UNUSABLE as error:
        if isinstance(error, ValueError):  # it says itself what is wrong
            raise
        raise ValueError(f"{figure.name} cannot be drawn: {type(error).__name__} {error}") from None
    shown = {part for picture in drawn.pictures for part in picture.parts}
    common = {part for part in shown if all(part in picture.parts for picture in drawn.pictures)}
    for place, picture in enumerate(drawn.pictures):
        own = tuple(part for part in picture.parts if part not in common)
        drawn.pictures[place] = Picture(own, picture.draw, picture.data)
    return drawn


def write_all(figure: Figure, several: Sequence[Picture], folder: Path, formats: Sequence[str]) -> list[Path]:
    """The pictures in all formats, each with its data beside it; the paths.

    Raises:
        ValueError: one cannot be written, or not be drawn.
    """
    taken: set[str] = set()
    paths = []
    for picture in several:
        stem = re.sub(r"[^\w.+-]+", "-", "_".join([figure.name.replace("/", "_"), *picture.parts]))[:120]
        twins = sum(each.partition("#")[0] == stem.lower() for each in taken)  # names may be alike in a file system
        taken.add(f"{stem.lower()}#{twins}")
        stem += f"_{twins + 1}" if twins else ""
        for ending in formats:
            path = folder / f"{stem}.{ending}"
            with writing(path):
                try:
                    picture.draw(path)
                except UNUSABLE as error:
                    raise ValueError(f"{figure.name} cannot be drawn: {type(error).__name__} {error}") from None
            paths.append(path)
        paths.append(folder / f"{stem}.csv")
        with writing(paths[-1]):
            write(paths[-1], as_csv(picture.data))
    return paths
