"""Messages for what is wrong in a request: each names the mistake, the nearest right name and the line to type.

Hydra 1.3 answers `metod=pe` with the advice to type `+metod=pe`, which would run the default method in silence. So
groups, options and keys are looked up here, before Hydra composes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import BaseModel, ValidationError

from cl_runner.config import Config, TaskDefinition
from cl_runner.groups import GROUPS, TaskDefaults, options
from cl_runner.overrides import COMMAND, command_line, nearest, parse, quoted
from cl_runner.parts import method_spec, probe_spec


def _replaced(overrides: Sequence[str], wrong: str, right: str, folders: Sequence[Path]) -> str:
    return command_line([right if o == wrong else o for o in overrides], folders)


def check_groups(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Overrides that choose a group's option, each checked; the rest are keys."""
    chosen = []
    for override, text in zip(parse(overrides), overrides, strict=True):
        key = override.key_or_group.partition("@")[0]
        if key.startswith("hydra") or key not in GROUPS:
            continue
        value = override.value()
        names: list[Any] = [str(name) for name in value] if isinstance(value, list) else [value]
        known = options(key, folders)
        if value in ([], None) and key != "experiment":
            raise ValueError(f"{text}: choose at least one option of group {key!r}: {', '.join(known)}")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            right = text.replace("[" + ",".join(names) + "]", "[" + ",".join(dict.fromkeys(names)) + "]")
            raise ValueError(f"{text} lists {twice!r} twice. Type: {_replaced(overrides, text, right, folders)}")
        if key == "task_order":
            _check_order_of_orders(names, text, overrides, folders)
        for name in names:
            if name is None and key == "experiment":
                continue
            if isinstance(name, dict) or str(name) not in known:
                close = nearest(str(name), known)
                said = f"group {key!r} has no option {name!r}; it has: {', '.join(known)}."
                if close:
                    right = text.replace(str(name), close)
                    said += f"\nNearest: {close!r}. Type: {_replaced(overrides, text, right, folders)}"
                raise ValueError(said)
        chosen.append(text)
    return chosen


def _check_order_of_orders(names: list[Any], text: str, overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """`joint` and `single_task` change an order, so they come after it: a later file wins."""
    changes = [name for name in names if name in ("joint", "single_task")]
    orders = [name for name in names if name not in changes]
    if changes and (not orders or names != [*orders, *changes]):
        right = f"task_order=[{','.join([*(orders or ['reviews']), *changes])}]"
        raise ValueError(
            f"{text}: {changes[0]} changes a task order and is named after it. "
            f"Type: {_replaced(overrides, text, right, folders)}"
        )


def _flatten(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flatten(value, f"{prefix}{key}.")
    elif isinstance(node, list):  # the tasks of an order
        for index, value in enumerate(node):
            yield from _flatten(value, f"{prefix}{index}.")


def check_keys(overrides: Sequence[str], composed: DictConfig, folders: Sequence[Path]) -> None:
    """Every overridden key exists in the configuration that the chosen groups make."""
    with open_dict(composed):
        plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    keys = set(_flatten(plain))
    for override, text in zip(parse(overrides), overrides, strict=True):
        key = override.key_or_group
        if key.startswith("hydra") or key in GROUPS or key in keys or "@" in key:
            continue
        unsaid = _unsaid(plain)
        if key in unsaid and (override.is_add() or override.is_force_add()):
            continue
        if key in unsaid:
            right = _replaced(overrides, text, f"+{text}", folders)
            raise ValueError(f"{key} is known, but no file of this configuration says it. Type: {right}")
        close = nearest(key, [*GROUPS, *keys, *unsaid])
        said = f"there is no group or key {key!r} in this configuration."
        parent = key.rpartition(".")[0]
        inside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent] if parent in keys else []
        if inside:
            said += f" {parent} has: {', '.join(sorted(inside))}."
        elif key.startswith("method."):
            said += f" Its methods are {', '.join(plain['method']) or 'none'}."
        if close and not (inside and close == parent):
            right = f"{'' if close in keys or close in GROUPS else '+'}{close}={override.get_value_element_as_str()}"
            if close in GROUPS and str(override.value()) not in options(close, folders):
                right = f"{close}={nearest(str(override.value()), options(close, folders)) or options(close)[0]}"
            said += f"\nNearest: {close!r}. Type: {_replaced(overrides, text, right, folders)}"
        else:
            said += f"\nSee them all: {command_line(['--cfg', 'job'], folders)}"
        raise ValueError(said)


def _unsaid(plain: Mapping[Any, Any]) -> set[str]:
    """Keys that the schemas know, whether the configuration says them or not."""
    keys = set(_names(Config))
    for group, spec in (("method", method_spec), ("probe", probe_spec)):
        for name, node in plain[group].items():
            keys |= set(_names(spec(name, node).schema, f"{group}.{name}."))
    return keys


def _names(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a schema and of those inside it."""
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation, f"{prefix}{name}.")


_KIND = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "null",
    "string_pattern_mismatch": "made of letters, digits, `.`, `_` and `-` only",
    "string_too_short": "some text",
}


class SchemaError(ValueError):
    """A value that the schema refuses; `key` is its place in the configuration."""

    def __init__(self, message: str, key: str):
        super().__init__(message)
        self.key = key


def explain(error: ValidationError, schema: type[BaseModel], prefix: str = "") -> SchemaError:
    """The first error of a failed validation as one message.

    Args:
        prefix: where the values stand in the configuration, with a dot behind it.
    """
    first = error.errors()[0]
    where = prefix + ".".join(str(part) for part in first["loc"] if part != "[key]")
    value, kind = first["input"], first["type"]
    if kind == "extra_forbidden":
        return SchemaError(_unknown(where, _names(schema, prefix)), "")
    if kind == "missing":
        return SchemaError(f"{where} has no value. Type: {COMMAND} ... +{where}=VALUE", "")
    limit = _KIND.get(kind) or first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return SchemaError(f"{where} must be {limit}, got {value!r}.", where)


def explain_hydra(error: HydraException) -> ValueError:
    """What Hydra could not compose, as one message."""
    said = str(error)
    if "launcher/submitit" in said:
        return ValueError("jobs on SLURM need the extra `slurm`. Type: pip install 'cl-runner[slurm]'")
    unknown = re.search(rf"^In '(.*)': .*\n.* not in '{TaskDefaults.__name__}'.*\n +full_key: (\S+)", said)
    if unknown:
        node = unknown[2].rpartition(".")[0]
        return ValueError(f"{_unknown(unknown[2], _names(TaskDefinition, f'{node}.'))} It stands in {unknown[1]}.yaml")
    lines = [line for line in said.splitlines() if "+" not in line]
    return ValueError(" ".join(lines[:2]) or said)


def starts_from_itself(folders: Sequence[Path]) -> ValueError:
    """What to say where Hydra never comes to the end of a file's defaults."""
    files = [path for folder in folders for path in sorted(folder.rglob("*.yaml")) if path.stem in _defaults(path)]
    named = f"{files[0]} starts" if files else "a configuration file starts"
    return ValueError(
        f"{named} from itself: its `defaults` lead back to it. A file that replaces one of the package under the same "
        "name cannot start from that one. Give it another name"
    )


def _defaults(path: Path) -> list[str]:
    content = OmegaConf.load(path)
    return [str(entry) for entry in content.get("defaults", [])] if isinstance(content, DictConfig) else []


def _unknown(key: str, names: Iterable[str]) -> str:
    node = key.rpartition(".")[0]
    known = [name for name in names if name.rpartition(".")[0] == node]
    close = nearest(key, known)
    inside = f"{node or 'A configuration'} has: {', '.join(name.rpartition('.')[2] for name in known)}."
    return f"unknown key {key!r}. " + (f"Nearest: {close!r}." if close else inside)


def remedy(key: str, overrides: Sequence[str], default: DictConfig, folders: Sequence[Path]) -> str:
    """The command with the wrong override at its default."""
    covering = [o for o in overrides if f"{key}.".startswith(o.lstrip("+").partition("=")[0] + ".")] if key else []
    wrong = max(covering, key=lambda o: len(o.partition("=")[0]), default=None)
    value = OmegaConf.select(default, key) if key else None
    if wrong is not None and wrong.partition("=")[0] != key and re.search(r"\.\d", key):
        return f" It stands in: {quoted(wrong)}"
    if isinstance(value, DictConfig):
        return f" Type its parts: {COMMAND} ... {key}.{next(map(str, value), 'KEY')}=VALUE"
    if wrong is None or value is None:
        added = "+" if wrong is not None and wrong.startswith("+") else ""
        return f" Type: {COMMAND} ... {added}{key}=VALUE" if key else ""
    return f" Its default is {value}. Type: {_replaced(overrides, wrong, f'{key}={value}', folders)}"
