"""Messages for what is wrong in a request: each names the mistake, the nearest right name and the line to type.

Hydra 1.3 answers `metod=pe` with the advice to type `+metod=pe`, which would run the default method in silence. So
groups, options and keys are looked up here, before Hydra composes.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import BaseModel

from cl_runner.config import Config, OrderedTask, TaskDefinition
from cl_runner.groups import GROUPS, brings_tasks, nodes_of, options
from cl_runner.overrides import CHAINS, command_line, key_of, nearest, replaced_by, written
from cl_runner.parts import method_spec, probe_spec


def check_groups(parsed: Sequence[Override], overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Overrides that choose a group's option, each checked, and Hydra's own; the rest are keys."""
    chosen = []
    for override, text in zip(parsed, overrides, strict=True):
        group = override.key_or_group
        if override.is_hydra_override():
            chosen.append(text)
        if group not in GROUPS:
            continue
        known = options(group, folders)
        if override.is_delete():
            right = command_line([o for o in overrides if o != text], folders)
            raise ValueError(f"{text}: a run has every group. Type {group}=OPTION ({', '.join(known)}), or: {right}")
        value = override.value()
        names: list[Any] = [str(name) for name in value] if isinstance(value, list) else [value]
        if group == "experiment" and value in ([], None):
            if value is None:
                right = command_line([o for o in overrides if o != text], folders)
                raise ValueError(f"{text}: no experiment is the default. Leave it out: {right}")
        elif value in ([], None, ""):
            raise ValueError(f"{text}: choose at least one option of group {group!r}: {', '.join(known)}")
        if override.is_add() or override.is_force_add():
            right = replaced_by(overrides, text, text.lstrip("+"), folders)
            raise ValueError(f"{text}: every group has an option, which is chosen without a `+`. Type: {right}")
        if group not in CHAINS and len(names) > 1:
            lines = [replaced_by(overrides, text, f"{group}={name}", folders) for name in names if name in known]
            raise ValueError(
                f"{text}: a run has one option of group {group!r}. Type: {' or '.join(lines) or f'{group}=OPTION'}"
            )
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            right = f"{group}=[{','.join(dict.fromkeys(names))}]"
            raise ValueError(f"{text} lists {twice!r} twice. Type: {replaced_by(overrides, text, right, folders)}")
        if group == "task_order":
            _check_order_of_orders(names, text, overrides, folders)
        if group == "method" and len(names) > 1:
            _check_settings(names, text, overrides, folders)
        if group == "probe" and "none" in names and len(names) > 1:
            right = f"probe=[{','.join(name for name in names if name != 'none')}]"
            raise ValueError(f"{text}: none beside others. Type: {replaced_by(overrides, text, right, folders)}")
        for name in names:
            if isinstance(name, dict) or str(name) not in known:
                raise _no_option(group, name, known, text, overrides, folders)
        chosen.append(text)
    return chosen


def _no_option(
    group: str, name: Any, known: list[str], text: str, overrides: Sequence[str], folders: Sequence[Path]
) -> ValueError:
    """What to say of an option that its group has not."""
    bare = re.sub(r"^\W+|\.ya?ml$|\W+$", "", str(name))
    close = nearest(bare, known)
    if group == "wandb":  # YAML's words for yes and no
        close = {"off": "disabled", "false": "disabled", "on": "online", "true": "online"}.get(bare.lower(), close)
    said = f"group {group!r} has no option {name!r}; it has: {', '.join(known)}."
    if close:
        value = text.partition("=")[2]
        inside = re.sub(rf"(?<![\w./-]){re.escape(str(name))}(?![\w/-])", close, value)
        right = f"{group}={inside if value.startswith('[') and '[' not in value[1:] else close}"
        said += f"\nNearest: {close!r}. Type: {replaced_by(overrides, text, right, folders)}"
    return ValueError(said)


def _check_order_of_orders(names: list[Any], text: str, overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """One order, and after it what changes it: a later file wins."""
    changes = [name for name in names if name in ("joint", "single_task")]
    orders = [name for name in names if name not in changes]
    if len(changes) > 1:
        # Starting anew for every task, on the data of all so far, is neither bound.
        lines = [f"task_order=[{','.join([*(orders or ['reviews']), change])}]" for change in changes]
        raise ValueError(
            f"{text}: joint (the upper bound: one model learns all data so far) and single_task (each task alone, from "
            "the pretrained weights) are two runs. Type: "
            + " or: ".join(replaced_by(overrides, text, line, folders) for line in lines)
        )
    whole = [name for name in orders if name in options("task_order", folders) and brings_tasks(name, folders)]
    if len(whole) > 1:
        lines = [f"task_order={order}" for order in whole]
        raise ValueError(
            f"{text}: of two orders the later one's tasks replace the earlier one's. Type: "
            + " or: ".join(replaced_by(overrides, text, line, folders) for line in lines)
        )
    if changes and (not orders or names != [*orders, *changes]):
        right = f"task_order=[{','.join([*(orders or ['reviews']), *changes])}]"
        raise ValueError(
            f"{text}: {changes[0]} changes a task order and is named after it. "
            f"Type: {replaced_by(overrides, text, right, folders)}"
        )


def _check_settings(names: list[Any], text: str, overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """No two options give one method different values: Hydra takes the later one's in silence."""
    known = options("method", folders)
    try:
        brought = {name: nodes_of(name, folders) for name in names if name in known}
    except (OSError, TypeError, ValueError, AttributeError, yaml.YAMLError):
        return  # a file that is wrong is named where it is composed
    for first, second in itertools.combinations(brought, 2):
        for node in [node for node in brought[first] if node in brought[second]]:
            one, other = brought[first][node], brought[second][node]
            differ = [key for key in one if key in other and one[key] != other[key]]
            if differ:
                rights = [f"method=[{','.join(n for n in names if n != left)}]" for left in (second, first)]
                rights = [re.sub(r"=\[([^,]*)\]$", r"=\1", right) for right in rights]
                single = " ".join(f"method.{node}.{key}={written(other[key])}" for key in differ)
                raise ValueError(
                    f"{text}: {first} and {second} are settings of one method, {node}, which has one value of each "
                    f"option; they differ in {', '.join(differ)}. Type: "
                    + " or: ".join(replaced_by(overrides, text, right, folders) for right in rights)
                    + f" (or, beside {first}: {single})"
                )


def _flatten(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flatten(value, f"{prefix}{key}.")
    elif isinstance(node, list):  # the tasks of an order
        for index, value in enumerate(node):
            yield from _flatten(value, f"{prefix}{index}.")


def check_keys(
    parsed: Sequence[Override], overrides: Sequence[str], composed: DictConfig, folders: Sequence[Path]
) -> None:
    """Every overridden key exists in the configuration that the chosen groups make."""
    with open_dict(composed):
        plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    keys = set(_flatten(plain))
    for override, text in zip(parsed, overrides, strict=True):
        key = override.key_or_group
        if key.startswith("hydra") or key in GROUPS:
            continue
        if key in keys:
            _check_sign(override, text, overrides, folders)
            continue
        parent, _, leaf = key.rpartition(".")
        if parent in keys and _at(plain, parent) is None and not override.is_delete():
            said = _of_null(parent, leaf, text, overrides, folders)
            raise ValueError(f"there is no group or key {key!r} in this configuration: {said}")
        unsaid = _unsaid(plain)
        known = key in unsaid or _free(key, plain)
        if known and (override.is_add() or override.is_force_add()):
            continue
        if known and not override.is_delete():
            right = replaced_by(overrides, text, f"+{text}", folders)
            raise ValueError(f"{key} is known, but no file of this configuration says it. Type: {right}")
        raise _no_key(override, text, plain, keys, unsaid, overrides, folders)


def _check_sign(override: Override, text: str, overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """A key that is there is neither added nor taken away."""
    if override.is_delete():
        right = command_line([o for o in overrides if o != text], folders)
        raise ValueError(f"{text}: a run needs a value of {override.key_or_group}. Leave it out: {right}")
    if override.is_add() and not isinstance(override.value(), (dict, list)):
        right = replaced_by(overrides, text, text[1:], folders)
        raise ValueError(f"{text}: {override.key_or_group} has a value, and `+` is for keys without one. Type: {right}")


def _no_key(
    override: Override,
    text: str,
    plain: Mapping[Any, Any],
    keys: set[str],
    unsaid: set[str],
    overrides: Sequence[str],
    folders: Sequence[Path],
) -> ValueError:
    """What to say of a key that is not there."""
    key = override.key_or_group
    said = f"there is no group or key {key!r} in this configuration."
    parent = key.rpartition(".")[0]
    listed = next((above for above in _parents(key) if above in keys and isinstance(_at(plain, above), list)), None)
    if listed is not None:
        held = _at(plain, listed)
        if held and isinstance(held[0], dict) and not key.startswith(tuple(f"{listed}.{i}." for i in range(len(held)))):
            return ValueError(
                f"{said} {listed} has the entries 0 to {len(held) - 1}; a longer list is given as a whole."
            )
        if not held or not isinstance(held[0], dict):
            right = replaced_by(overrides, text, f"{listed}={written(held)}", folders)
            return ValueError(f"{said} {listed} is a list and is given as a whole. Type: {right}")
    inside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent] if parent in keys else []
    if inside:
        said += f" {parent} has: {', '.join(sorted(inside))}."
    elif key.startswith("method."):
        said += f" Its methods are {', '.join(plain['method']) or 'none'}."
    close = nearest(key, [*GROUPS, *keys, *unsaid])
    if close and not (inside and close == parent):
        # The value as it was typed, quotes included.
        right = f"{'' if close in keys or close in GROUPS else '+'}{close}={text.partition('=')[2]}"
        if close in GROUPS and str(override.value()) not in options(close, folders):
            right = f"{close}={nearest(str(override.value()), options(close, folders)) or options(close)[0]}"
        said += f"\nNearest: {close!r}. Type: {replaced_by(overrides, text, right, folders)}"
    else:
        said += f"\nSee them all: {command_line(['--cfg', 'job'], folders)}"
    return ValueError(said)


def _parents(key: str) -> Iterator[str]:
    """What a key stands in, from the inside out."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _of_null(parent: str, leaf: str, text: str, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """What to type for a part of something that is null here."""
    if parent == "hardware.slurm":
        kept = [o for o in overrides if key_of(o) != "hardware"]
        line = command_line([*kept, "hardware=slurm"], folders, multirun=True)
        return f"{parent} is null, and comes with hardware=slurm. Type: {line}"
    names = [name.rpartition(".")[2] for name in names_of(Config) if name.rpartition(".")[0] == parent]
    if names and leaf not in names:
        return f"{parent} is null, and its parts would be: {', '.join(names)}."
    others = ", ".join(f"{name}: {'null' if name != leaf else text.partition('=')[2]}" for name in names or [leaf])
    right = replaced_by(overrides, text, f"{parent}={{{others}}}", folders)
    return f"{parent} is null, and its parts are given at once. Type: {right}"


def _at(plain: Any, key: str) -> Any:
    """What stands at a dotted key."""
    for part in key.split("."):
        plain = plain[int(part)] if isinstance(plain, list) else {str(k): v for k, v in plain.items()}[part]
    return plain


def _free(key: str, plain: Mapping[Any, Any]) -> bool:
    """Whether a key stands where any name may: among labels, rates by pattern, sizes of an architecture."""
    parent, _, _ = key.rpartition(".")
    for pattern in ("task.*.labels", "task.*.released_metrics", "training.rates", "backbone.architecture"):
        if fnmatch.fnmatchcase(parent, pattern) and parent.count(".") == pattern.count("."):
            return parent in _flatten(dict(plain)) and isinstance(_at(plain, parent), dict)
    return False


def _unsaid(plain: Mapping[Any, Any]) -> set[str]:
    """Keys that the schemas know, whether the configuration says them or not."""
    keys = set(names_of(Config))
    keys |= {f"task.{name}.{key}" for name in plain["task"] for key in names_of(TaskDefinition)}
    for index in range(len(plain["task_order"].get("tasks", []))):
        keys |= set(names_of(OrderedTask, f"task_order.tasks.{index}."))
    for group, spec in (("method", method_spec), ("probe", probe_spec)):
        for name, node in plain[group].items():
            keys |= set(names_of(spec(name, node).schema, f"{group}.{name}."))
    return keys


def names_of(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a schema and of those inside it, where they may be null as well."""
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}"
        either = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else ()
        for kind in (field.annotation, *either):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from names_of(kind, f"{prefix}{name}.")
