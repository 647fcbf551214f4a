"""Messages for values that the schema refuses, and for files that Hydra cannot compose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationError

from cl_runner.config import OrderedTask, TaskDefinition
from cl_runner.groups import TaskDefaults
from cl_runner.mistakes import names_of
from cl_runner.overrides import COMMAND, command_line, in_quotes, key_of, nearest, parse, quoted, replaced_by, written

#: Characters of a default that a message shows.
LONG = 200
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


#: How a value that YAML took for something else is written as text.
_QUOTE = {
    bool: "YAML reads no, off and n as false, yes, on and y as true; in quotes it is text",
    int: "YAML reads digits as a number, and 010, 1_0 and 1:30 too; in quotes it is text",
    float: "YAML reads digits and 1e3 as a number, and .nan and .inf too; in quotes it is text",
    type(None): "YAML reads null, ~ and nothing at all as no value; in quotes it is text",
}


#: Values that people type under another name, of which the nearest one is not what they mean.
_ALSO_CALLED = {"gpu": "cuda"}


class SchemaError(ValueError):
    """A value that the schema refuses.

    Attributes:
        key: its place in the configuration.
        meant: what was probably meant; None if nobody can know.
        is_text: whether in quotes it would be right.
        missing: whether there is none.
        unknown: whether there is no such key.
    """

    def __init__(
        self,
        message: str,
        key: str,
        meant: Any = None,
        is_text: bool = False,
        missing: bool = False,
        unknown: bool = False,
    ):
        super().__init__(message)
        self.key, self.meant, self.is_text, self.missing, self.unknown = key, meant, is_text, missing, unknown


def explain(error: ValidationError, schema: type[BaseModel], values: Any, prefix: str = "") -> SchemaError:
    """The first error of a failed validation as one message.

    Args:
        values: what was validated.
        prefix: where the values stand in the configuration, with a dot behind it.
    """
    first, *others = error.errors()
    path = _path(first["loc"], values)
    where = prefix + ".".join(map(str, path))
    value, kind = first["input"], first["type"]
    if kind == "extra_forbidden":
        return SchemaError(_unknown(where, [*names_of(schema, prefix), *_names_in_list(where)]), where, unknown=True)
    if kind == "missing":
        return SchemaError(f"{where} has no value.", where, missing=True)
    if "[key]" in first["loc"]:
        node, key = where.rpartition(".")[0], path[-1]
        quote = f"{_QUOTE[type(key)]}" if type(key) in _QUOTE else "in quotes it is text"
        example = {False: "'no'", True: "'yes'"}.get(key, f"'{key}'") if isinstance(key, bool) else f"'{key}'"
        return SchemaError(f"{node}: the key {key!r} must be text ({quote}). Write: {example}: ...", "")
    # A value that may be of several kinds has an error for each.
    errors = [first, *(e for e in others if _path(e["loc"], values) == path)]
    limit = " or ".join(dict.fromkeys(map(_limit, errors)))
    if kind == "string_type" and type(value) in _QUOTE:
        limit += f" ({_QUOTE[type(value)]})"
    is_text = kind == "string_type" and isinstance(value, (bool, int, float))
    shown = repr(value) if len(repr(value)) <= LONG else f"{repr(value)[:LONG]}..."
    close = None
    named = [e["ctx"]["expected"] for e in errors if e["type"] == "literal_error"]
    if named and isinstance(value, str):
        known = re.findall(r"'([^']*)'", " ".join(named))
        close = next((name for name in known if name == _ALSO_CALLED.get(value)), None) or nearest(value, known)
    said = f"{where} must be {limit}, got {shown}." + (f" Nearest: {close!r}." if close else "")
    return SchemaError(said, where, close or _meant(kind, value), is_text)


def _names_in_list(key: str) -> list[str]:
    """The keys of the task of an order that a key is about, if it is about one."""
    found = re.match(r"task_order\.tasks\.\d+\.", key)
    return list(names_of(OrderedTask, found[0])) if found else []


def _path(place: Sequence[int | str], values: Any) -> list[Any]:
    """The keys of pydantic's place; among them it names kinds of values, which are none."""
    found: list[Any] = []
    for part in place:
        if isinstance(values, Mapping):
            known = [key for key in values if key == part or str(key) == part]  # False is 0
            if known:
                found += known
                values = values[known[0]]
            elif place[-1] == part != "[key]":
                found.append(part)  # one that is missing
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            found.append(part)
            values = values[part]
    return found


def _limit(error: Any) -> str:
    """What a value must be."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "too_short":
        return f"a list of at least {limits['min_length']}"
    if kind == "too_long":
        return f"a list of at most {limits['max_length']}"
    return _KIND.get(kind) or error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _meant(kind: str, value: Any) -> Any:
    """The value of the right kind that was probably meant; None if nobody can know."""
    if kind == "bool_type":
        return {"yes": True, "on": True, "1": True, "no": False, "off": False, "0": False}.get(str(value).lower())
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in ("int_type", "float_type") and isinstance(value, str):
        try:
            return int(value) if kind == "int_type" else float(value)
        except ValueError:
            return None
    return None


def explain_hydra(error: HydraException, overrides: Sequence[str], folders: Sequence[Path]) -> ValueError:
    """What Hydra could not compose, as one message."""
    said = str(error)
    unknown = re.search(rf"^In '(.*)': .*\n.* not in '{TaskDefaults.__name__}'.*\n +full_key: (\S+)", said)
    if unknown:
        node = unknown[2].rpartition(".")[0]
        return ValueError(
            f"{_unknown(unknown[2], names_of(TaskDefinition, f'{node}.'))} It stands in {unknown[1]}.yaml"
        )
    closed = re.search(r"^Could not override '([^']*)'", said)
    wrong = next((o for o in overrides if closed and key_of(o) == closed[1]), None)
    if wrong is not None and "{" in wrong:
        right = replaced_by(overrides, wrong, f"++{wrong}", folders)
        return ValueError(f"{wrong}: a mapping joins the one that is there, and new names need `++`. Type: {right}")
    merged = re.search(r"^Error merging override \+*([^=]+)=(.*)", said, re.DOTALL)
    if merged:
        return ValueError(
            f"{merged[1]} cannot be {merged[2]}: a mapping is given as 'KEY={{NAME: VALUE}}', or by parts."
        )
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
    try:
        content = OmegaConf.load(path)
    except (OSError, UnicodeError, yaml.YAMLError):
        return []
    return [str(entry) for entry in content.get("defaults", [])] if isinstance(content, DictConfig) else []


def _unknown(key: str, names: Iterable[str]) -> str:
    node = key.rpartition(".")[0]
    known = [name for name in names if name.rpartition(".")[0] == node]
    close = nearest(key, known)
    inside = f"{node or 'A configuration'} has: {', '.join(name.rpartition('.')[2] for name in known)}."
    return f"unknown key {key!r}. " + (f"Nearest: {close!r}." if close else inside)


def _with_element(wrong: str, key: str, meant: Any) -> str:
    """An override of a list with what was meant at one place of it; empty if nobody can know, or it is no list."""
    place = key.removeprefix(f"{key_of(wrong)}.")
    (override,) = parse([wrong])
    value = override.value() if meant is not None and place.isdecimal() else None
    if not isinstance(value, list) or int(place) >= len(value):
        return ""
    return f"{wrong.partition('=')[0]}={written([*value[: int(place)], meant, *value[int(place) + 1 :]])}"


def remedy(error: SchemaError, overrides: Sequence[str], default: DictConfig, folders: Sequence[Path]) -> str:
    """The command with the wrong override at what was meant, or at its default."""
    key = error.key
    if not key:
        return ""
    covering = [o for o in overrides if f"{key}.".startswith(key_of(o) + ".")]
    wrong = max(covering, key=lambda o: len(key_of(o)), default=None)
    value = OmegaConf.select(default, key)
    if wrong is not None and key_of(wrong) != key:
        right = _with_element(wrong, key, error.meant)
        return f" Type: {replaced_by(overrides, wrong, right, folders)}" if right else f" It stands in: {quoted(wrong)}"
    if error.unknown:
        return f" It stands in: {quoted(wrong)}" if wrong else " It stands in a file of the configuration"
    if error.missing:
        return f" It stands in: {quoted(wrong)}" if wrong else f" Type: {COMMAND} ... +{key}=VALUE"
    if wrong is not None and error.is_text:
        right = f"{wrong.partition('=')[0]}={in_quotes(wrong.partition('=')[2])}"
        return f" Type: {replaced_by(overrides, wrong, right, folders)}"
    if isinstance(value, DictConfig):
        return f" Type its parts: {COMMAND} ... {key}.{next(map(str, value), 'KEY')}=VALUE"
    node, _, leaf = key.rpartition(".")
    inside = OmegaConf.select(default, node) if node else default
    if wrong is None or not isinstance(inside, DictConfig) or leaf not in inside:
        added = "+" if wrong is not None and wrong.startswith("+") else ""
        return f" Type: {COMMAND} ... {added}{key}=VALUE"
    if error.meant is not None:
        return f" Type: {replaced_by(overrides, wrong, f'{key}={written(error.meant)}', folders)}"
    right = written(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    if len(right) > LONG:
        return f" See what it may be: {command_line([*(o for o in overrides if o != wrong), '--cfg', 'job'], folders)}"
    return f" Its default is {right}. Type: {replaced_by(overrides, wrong, f'{key}={right}', folders)}"
