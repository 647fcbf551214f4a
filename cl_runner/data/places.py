"""Which files a definition reads: the first of several places, globs, whole sets of shards, folders of save_to_disk."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cl_runner.config import TaskDefinition
from cl_runner.data.labels import alike, difference
from cl_runner.overrides import in_quotes, quoted

#: One of the parts of a data set, as the hub and `datasets` name them: train-00000-of-00002.parquet.
_SHARD = re.compile(r"(\d{4,})-of-(\d{4,})")


def typed(key: str, value: str) -> str:
    """An override with a text as its value, as it is typed in a shell."""
    return quoted(f"{key}={in_quotes(value)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """' Nearest: ...' or nothing; of one that looks the same, in what it differs."""
    known = list(known)
    for other in known:
        if other != name and alike(other) == alike(name):
            return f" Nearest: {other!r}, which differs in {difference(name, other)} only: {other!a}, and not {name!a}."
    close = difflib.get_close_matches(name, known, n=1)
    return f" Nearest: {close[0]!r}." if close else ""


def is_saved(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` of the library datasets wrote: of one split, or of several."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def local_paths(
    definition: TaskDefinition, name: str, domain: str, split: str, variant: str | int | None
) -> list[Path]:
    """The files that hold `domain` and the source's own `split` by the definition task.<name>, in order.

    A pattern (*, ?, [...]) means all files that fit; shards that are listed one after the other, and the names of a
    list in the list, belong together. Of several places it is the first where there is something, or else the first.

    Returns:
        Files, or one folder of `save_to_disk`; where there is nothing, the paths as they are given.

    Raises:
        ValueError: the definition has no path, one asks for a variant that is not given, or one begins with the home
            folder (~) of an unknown user; a set of shards is not whole; several places hold something of one format,
            so that a part of the data might be left out.
    """
    meant = all_paths(definition, name, domain, split, variant)
    found: list[tuple[list[str], list[Path]]] = []
    for place, paths in zip(alternatives(definition, name), meant, strict=True):
        if all(path.exists() for path in paths):
            twice = [path for path in paths if paths.count(path) > 1]
            if twice:
                raise ValueError(f"task.{name}.path names {twice[0]} twice. Leave one out")
            check_shards(paths, place, name)
            found.append((place, paths))
    if not found:
        return meant[0]
    first = found[0][1]
    for place, paths in found[1:]:
        if _ending(paths[0]) == _ending(first[0]):
            raise ValueError(
                f"task.{name}.path lists {first[0]} and {paths[0]}, and both are there: of several places one is read. "
                f"If they are parts of one data set, write a list in the list, path: [[A, B]], or a pattern; "
                f"else name the one: {typed(f'task.{name}.path', place[0])}"
            )
    return first


def alternatives(definition: TaskDefinition, name: str) -> list[list[str]]:
    """The places of `path`, each a list of names that belong together.

    Raises:
        ValueError: there are none.
    """
    given = definition.path
    if not given or not all(place and all(place) for place in given):
        example = typed(f"task.{name}.path", "FOLDER/{domain}.csv")
        raise ValueError(f"task.{name} reads files but has no path. Type: {example}")
    places: list[list[str]] = []
    before = None
    for place in given:
        set_of = _set_of(place[0]) if len(place) == 1 else None
        if set_of is not None and set_of == before:
            places[-1] += place
        else:
            places.append(list(place))
        before = set_of
    return places


def all_paths(
    definition: TaskDefinition, name: str, domain: str, split: str, variant: str | int | None
) -> list[list[Path]]:
    """What each of the places means, whether it is there or not."""
    return [
        [path for one in place for path in _matching(one, name, domain, split, variant)]
        for place in alternatives(definition, name)
    ]


def _matching(template: str, name: str, domain: str, split: str, variant: str | int | None) -> list[Path]:
    """The files that a path or pattern means, sorted; the path itself where there are none."""
    if "{variant}" in template and variant is None:
        raise ValueError(
            f"task.{name}.path={template} holds {{variant}}, but the task order names no variant. "
            f"Type: task_order.variant=NAME"
        )
    try:
        home = str(Path(template).expanduser())
    except RuntimeError as error:
        raise ValueError(f"task.{name}.path={template}: {error}") from None
    plain = pattern = home
    for placeholder, value in (("domain", domain), ("split", split), ("variant", str(variant))):
        plain = plain.replace(f"{{{placeholder}}}", value)
        pattern = pattern.replace(f"{{{placeholder}}}", glob.escape(value))
    if not Path(plain).exists() and glob.has_magic(pattern):
        fitting = sorted(Path(path) for path in glob.glob(pattern, recursive=True))
        files = [path for path in fitting if path.is_file()]
        if files:
            return files
    return [Path(plain)]


def _set_of(path: str) -> tuple[str, int] | None:
    """What shards of one set have in common: all before their number, and how many there are. None: not a shard."""
    found = list(_SHARD.finditer(path.rpartition("/")[2]))
    if not found:
        return None
    start = len(path) - len(path.rpartition("/")[2]) + found[-1].start()
    return path[:start], int(found[-1][2])


def _ending(path: Path) -> str:
    return "folder" if path.is_dir() else path.name.removesuffix(".gz").rpartition(".")[2]


def check_shards(paths: Sequence[Path], place: Sequence[str], name: str) -> None:
    """Of each set of shards all are there, each once.

    Args:
        place: the paths as the definition has them, for the line to type.

    Raises:
        ValueError: otherwise.
    """
    sets: dict[tuple[str, int], list[Path]] = {}
    for path in paths:
        found = _set_of(str(path))
        if found is not None and path.suffix != ".arrow":  # which no one names by itself
            sets.setdefault(found, []).append(path)
    totals: dict[str, int] = {}
    for before, total in sets:
        if totals.setdefault(before, total) != total:
            raise ValueError(
                f"{paths[0].parent} holds two sets of shards, {Path(before).name}*-of-{totals[before]:05d} and "
                f"{Path(before).name}*-of-{total:05d}: the same data cut in two ways. Delete one of them, or name "
                f"the other in task.{name}.path"
            )
    for (before, total), shards in sets.items():
        numbers = sorted(int(_SHARD.findall(path.name)[-1][0]) for path in shards)
        first = 1 if total in numbers else 0
        expected = list(range(first, first + total))
        if numbers == expected:
            continue
        twice = [number for number in expected if numbers.count(number) > 1]
        lacking = [number for number in expected if number not in numbers]
        if twice:
            raise ValueError(f"shard {twice[0]:05d} of {before}*-of-{total:05d} is there twice, or is listed twice")
        beside = glob.glob(f"{glob.escape(before)}*{lacking[0]}-of-*{total}*")
        if beside:
            whole = _SHARD.sub(rf"*-of-{total:05d}", place[0])
            raise ValueError(
                f"{shards[0]} is one of {total} shards, and {lacking[0]:05d} beside it would not be read. "
                f"Type: {typed(f'task.{name}.path', whole)}"
            )
        raise ValueError(
            f"{before}*-of-{total:05d} has {total} shards, of which {len(lacking)} "
            f"{'is' if len(lacking) == 1 else 'are'} missing: {', '.join(f'{number:05d}' for number in lacking[:5])}"
        )


def missing(paths: Sequence[Path], download: str | None) -> str:
    """What to say of a file that is in none of its places: how far the first path exists, and where to get it."""
    path = paths[0]
    parent, child = path.parent, path.name
    while not parent.is_dir() and parent != parent.parent:
        parent, child = parent.parent, parent.name
    near = nearest(child, sorted(os.listdir(parent)) if parent.is_dir() else [])
    others = f" Nor is there {' or '.join(map(str, paths[1:]))}." if len(paths) > 1 else ""
    fetch = f" {download.strip().removesuffix('.')}." if download else ""
    remedy = "Set data_root=FOLDER, or CL_RUNNER_DATA, to the folder that holds the data sets."
    return f"{path} does not exist: {parent} holds no {child!r}.{near}{others}{fetch} {remedy}"
