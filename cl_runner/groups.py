"""The configuration's files: those that come with the package, and those of the user's folders, which win over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
#: In a wheel the configuration lies inside the package, in a checkout beside it.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"
GROUPS = ("method", "backbone", "task_order", "task", "probe", "protocol", "hardware", "wandb", "experiment")


def options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """All options of a group, those in subfolders as `folder/option`."""
    found = set()
    for conf in (*folders, CONF):
        for path in (conf / group).rglob("*.yaml"):
            found.add(path.relative_to(conf / group).with_suffix("").as_posix())
    return sorted(found)


def file_of(group: str, option: str, folders: Sequence[Path] = ()) -> Path:
    """The file of an option: of the folders the first that has one, else the package's."""
    places = [conf / group / f"{option}.yaml" for conf in (*folders, CONF)]
    return next((place for place in places if place.is_file()), places[-1])


def purpose(group: str, option: str, folders: Sequence[Path] = ()) -> str:
    """The first comment of an option's file; empty if it has none."""
    lines = file_of(group, option, folders).read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and "@package" not in line), "")


def option_of(node: str, values: Mapping[str, Any], folders: Sequence[Path] = ()) -> str:
    """The option of group `method` that brings this node alone and is nearest to its values; else the node's name."""
    alone = {option: found[node] for option, found in _methods(folders).items() if list(found) == [node]}
    return max(alone, key=lambda option: sum(alone[option].get(key) == values[key] for key in values), default=node)


def _methods(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What each option of group `method` brings, as far as its file and the options it starts from can be read."""
    found: dict[str, dict[str, Any]] = {}
    for option in options("method", folders):
        try:
            found[option] = _nodes(option, folders, ())
        except (OSError, TypeError, ValueError, AttributeError, yaml.YAMLError):
            continue  # a file that is wrong is no advice
    return found


def _nodes(option: str, folders: Sequence[Path], above: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The nodes of one option of group `method`, its defaults merged in."""
    if option in above:
        raise ValueError(f"{option} starts from itself")
    content = yaml.safe_load(file_of("method", option, folders).read_text(encoding="utf-8")) or {}
    nodes: dict[str, dict[str, Any]] = {}
    for start in content.pop("defaults", []):
        if start != "_self_":
            nodes |= _nodes(start, folders, (*above, option))
    for node, values in content.items():
        nodes[node] = {**nodes.get(node, {}), **(values or {})}
    return nodes
