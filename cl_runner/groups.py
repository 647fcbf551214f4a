"""The configuration's files: those that come with the package, and those of the user's folders, which win over them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

HERE = Path(__file__).parent
#: In a wheel the configuration lies inside the package, in a checkout beside it.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"
GROUPS = ("method", "backbone", "task_order", "task", "probe", "protocol", "hardware", "wandb", "experiment")

#: What Hydra starts from: a name that no file has.
START = "_start_"


def _task_defaults() -> type:
    """task_defaults.yaml as a structured configuration."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / "task_defaults.yaml"))
    assert isinstance(values, dict)
    fields = [
        (str(key), Any, dataclasses.field(default_factory=functools.partial(copy.deepcopy, value)))
        for key, value in values.items()
    ]
    return dataclasses.make_dataclass("TaskDefaults", fields, namespace={"__module__": __name__})


#: What a task definition starts from. A job on a cluster finds the class here by its name.
TaskDefaults = _task_defaults()


def _start() -> DictConfig:
    """config.yaml, with the defaults of whatever definitions come to stand under `task`."""
    node = OmegaConf.create({"defaults": ["_self_", "config"]})
    node.task = DictConfig({}, key_type=str, element_type=TaskDefaults)
    return node


ConfigStore.instance().store(name=START, node=_start(), provider="cl_runner")


def file_of(group: str, option: str, folders: Sequence[Path] = ()) -> Path:
    """The file of an option of a group."""
    return _first(f"{group}/{option}.yaml", folders)


def _first(file: str, folders: Sequence[Path]) -> Path:
    """A file of the configuration: of the user's folders the first that has it, else the package's."""
    places = [conf / file for conf in (*folders, CONF)]
    return next((place for place in places if place.is_file()), places[-1])


def check_folders(folders: Sequence[Path]) -> None:
    """The user's folders are there, or a ValueError names the one that is not."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--config-dir {folder}: there is no such folder")


def options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """All options of a group, those in subfolders as `folder/option`."""
    found = set()
    for conf in (*folders, CONF):
        for path in (conf / group).rglob("*.yaml"):
            found.add(path.relative_to(conf / group).with_suffix("").as_posix())
    return sorted(found)


def purpose(group: str, option: str, folders: Sequence[Path] = ()) -> str:
    """The first comment of an option's file; empty if it has none."""
    lines = file_of(group, option, folders).read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and "@package" not in line), "")


def brings_tasks(order: str, folders: Sequence[Path] = ()) -> bool:
    """Whether an option of group `task_order` lists tasks; others, such as joint, change an order that does."""
    return bool(re.search(r"^\s*tasks:", _first(f"task_order/{order}.yaml", folders).read_text(encoding="utf-8"), re.M))


def backbones_of(families: Collection[str]) -> list[str]:
    """The package's options of group `backbone` of these families, without those that read a folder of the user's."""
    nodes = {option: _parsed(file_of("backbone", option).read_text(encoding="utf-8")) for option in options("backbone")}
    mine = {option: node for option, node in nodes.items() if not str(node["checkpoint"]).startswith(".")}
    return [option for option, node in mine.items() if node["family"] in families]


def starts_from(option: str, folders: Sequence[Path] = ()) -> list[str]:
    """The options of group `method` that an option's `defaults` name."""
    return [start for start in _method_file(option, folders).get("defaults", []) if start != "_self_"]


def _method_file(option: str, folders: Sequence[Path]) -> Mapping[str, Any]:
    content = _parsed(file_of("method", option, folders).read_text(encoding="utf-8")) or {}
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds {type(content).__name__} where options stand below the name of a method")
    return content


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> Any:
    """YAML's content, to be read alone: files are asked for again and again."""
    return yaml.safe_load(text)


def search_path(folders: Sequence[Path]) -> tuple[str, list[str]]:
    """Where Hydra looks for files: the folder it is given, and the override that names the others, in their order.

    The first file of a name wins: the user's folders come as they were named, the package's own last.
    """
    first, *others = [*(folder.resolve() for folder in folders), CONF]
    paths = ",".join(json.dumps(f"file://{place}") for place in others)
    return str(first), [f"hydra.searchpath=[{paths}]"] if others else []


def replaced(used: Iterable[str], folders: Sequence[Path]) -> list[str]:
    """A line for each file of the package that a file of the user's stands for.

    Args:
        used: names of files that a configuration is made of, such as backbone/tiny_bert.
    """
    lines = []
    for name in dict.fromkeys(used):
        ours, theirs = CONF / f"{name}.yaml", [folder / f"{name}.yaml" for folder in folders]
        found = next((path for path in theirs if path.is_file()), None)
        if found is not None and ours.is_file():
            lines.append(f"conf/{name}.yaml of the package is replaced by {found}")
    return lines


def option_of(node: str, values: Mapping[str, Any], folders: Sequence[Path] = ()) -> str:
    """The option of group `method` that brings this node alone and is nearest to its values; else the node's name."""
    alone = {option: found[node] for option, found in _methods(folders).items() if list(found) == [node]}
    return max(alone, key=lambda option: sum(alone[option].get(key) == values[key] for key in values), default=node)


def options_with(node: str, folders: Sequence[Path] = ()) -> list[str]:
    """The options of group `method` that bring this node, alone."""
    return [option for option, found in _methods(folders).items() if list(found) == [node]]


def _methods(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What each option of group `method` brings, as far as its file and the options it starts from can be read."""
    found: dict[str, dict[str, Any]] = {}
    for option in options("method", folders):
        try:
            found[option] = nodes_of(option, folders)
        except (OSError, TypeError, ValueError, AttributeError, yaml.YAMLError):
            continue  # a file that is wrong is no advice
    return found


def nodes_of(option: str, folders: Sequence[Path] = (), above: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """The nodes of one option of group `method` with their values, those of the options that it starts from merged in.

    Args:
        above: the options that start from this one, on the way here.

    Raises:
        OSError, TypeError, ValueError, AttributeError, yaml.YAMLError: its file, or one that it starts from, is wrong.
    """
    if option in above:
        raise ValueError(f"{option} starts from itself")
    nodes: dict[str, dict[str, Any]] = {}
    for start in starts_from(option, folders):
        for node, values in nodes_of(start, folders, (*above, option)).items():
            nodes[node] = _merged(nodes.get(node, {}), values)
    for node, values in _method_file(option, folders).items():
        if node != "defaults":
            if not isinstance(values, Mapping | None):
                raise ValueError(f"{node} holds {values!r} where its options stand")
            nodes[node] = _merged(nodes.get(node, {}), values or {})
    return nodes


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two nodes as Hydra merges them: mappings key by key, of anything else the second."""
    merged = dict(first)
    for key, value in second.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
