"""From what was typed to a checked run request: Hydra composes, the schema checks, mistakes get one message.

Hydra 1.3 answers `metod=pe` with the advice to type `+metod=pe`, which would run the default method in silence. So
groups, options and keys are looked up here first, and the message names the nearest right one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from cl_runner.checks import check_chain, check_order, check_probes, check_scoring
from cl_runner.config import Config, config_hash
from cl_runner.groups import CONF, GROUPS, options
from cl_runner.parts import PartSpec, method_spec, options_of, probe_spec

COMMAND = "python -m cl_runner"


def version_base() -> dict[str, str]:
    """Hydra 1.3 wants to be told the version whose defaults it follows, 1.4 warns when it is told."""
    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


@dataclass(frozen=True)
class Request:
    """A checked run: what to compute (`config`), under which names, and the folder that is its identity."""

    config: Config
    resolved: dict[str, Any]
    overrides: tuple[str, ...]
    task_order: str
    backbone: str
    method: str
    hash: str
    sweep: str | None = None
    folders: tuple[Path, ...] = ()  # the user's own configuration files

    @property
    def folder(self) -> Path:
        """<root>/<task_order>/<backbone>/<method>/seed<seed>-<hash>."""
        leaf = f"seed{self.config.seed}-{self.hash}"
        return Path(self.config.root) / self.task_order / self.backbone / self.method / leaf

    @property
    def run_id(self) -> str:
        """The run's id in W&B: the same in every session of the run."""
        identity = f"{self.task_order}/{self.backbone}/{self.method}/seed{self.config.seed}-{self.hash}"
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def command(self) -> str:
        """The line that starts, or continues, this run."""
        return command_line(self.overrides, self.folders)

    def command_with(self, options: Mapping[str, str]) -> str:
        """The line for the same run under other values of some keys."""
        others = [o for o in self.overrides if o.lstrip("+").partition("=")[0] not in options]
        return command_line([*others, *(f"{key}={value}" for key, value in options.items())], self.folders)


def quoted(override: str) -> str:
    """An override as it must be typed in a shell."""
    return override if re.fullmatch(r"[\w./=:@%+,~-]+", override) else shlex.quote(override)


def command_line(overrides: Iterable[str], folders: Sequence[Path] = (), multirun: bool = False) -> str:
    """The line that a user types for these overrides."""
    flags = ["-m"] if multirun else []
    flags += [f"--config-dir {shlex.quote(str(folder))}" for folder in folders]
    return " ".join([COMMAND, *flags, *(quoted(o) for o in overrides)])


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`, or None if none is similar."""
    known = list(names)
    by_leaf = [n for n in known if n.rpartition(".")[2] == name.rpartition(".")[2] and "." in n]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else (by_leaf[0] if by_leaf else None)


@contextmanager
def _hydra() -> Iterator[None]:
    with initialize_config_dir(config_dir=str(CONF), job_name="cl_runner", **version_base()):
        yield


def search_path(folders: Sequence[Path]) -> list[str]:
    """The override that adds user folders to Hydra's search path."""
    paths = ",".join(json.dumps(f"file://{folder.resolve()}") for folder in folders)
    return [f"hydra.searchpath=[{paths}]"] if folders else []


def _compose(overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """Compose inside `_hydra`."""
    return hydra.compose("config", overrides=[*overrides, *search_path(folders)], return_hydra_config=True)


def parse(overrides: Sequence[str]) -> list[Override]:
    """The overrides by Hydra's grammar.

    Raises:
        ValueError: an override cannot be read.
    """
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            hint = f"Type: {COMMAND} method={text}" if text in options("method") else "Type NAME=VALUE."
            if text.endswith((".yaml", ".yml")):
                hint = "Choose an option of a group instead, as in method=pe."
            reason = str(error).splitlines()[0]
            raise ValueError(f"cannot read {text!r} ({reason}). {hint}") from None
    return parsed


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """The override lists of a multirun, one per job, in the order in which Hydra's sweeper runs them."""
    batches = BasicSweeper.split_arguments(parse(overrides), max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def for_sweeper(overrides: Sequence[str]) -> list[str]:
    """The overrides of a multirun as Hydra's sweeper can take them.

    Before it makes the jobs it composes once without what is swept, so that a key which only a swept choice brings,
    such as method.piece.fraction with method=piece_f,piece_s, would be unknown. A sweep over one value is left out.
    """
    parsed = list(zip(parse(overrides), overrides, strict=True))
    if not any(override.is_sweep_override() and override.key_or_group in GROUPS for override, _ in parsed):
        return list(overrides)
    given = []
    for override, text in parsed:
        key, _, value = text.partition("=")
        name = override.key_or_group
        plain = not (override.is_sweep_override() or override.is_delete() or name in GROUPS or name.startswith("hydra"))
        given.append(f"{key}=choice({value})" if plain and value else text)
    return given


def _replaced(overrides: Sequence[str], wrong: str, right: str, folders: Sequence[Path]) -> str:
    return command_line([right if o == wrong else o for o in overrides], folders)


def _check_groups(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
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


def _check_keys(overrides: Sequence[str], composed: DictConfig, folders: Sequence[Path]) -> None:
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
        prefix = re.match(r"[+~]*", text)
        assert prefix is not None
        close = nearest(key, [*GROUPS, *keys])
        said = f"there is no group or key {key!r} in this configuration."
        parent = key.rpartition(".")[0]
        inside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent] if parent in keys else []
        if inside:
            said += f" {parent} has: {', '.join(sorted(inside))}."
        elif key.startswith("method."):
            said += f" Its methods are {', '.join(plain['method']) or 'none'}."
        if close and not (inside and close == parent):
            right = f"{close}={override.get_value_element_as_str()}"
            if close in GROUPS and str(override.value()) not in options(close, folders):
                right = f"{close}={nearest(str(override.value()), options(close, folders)) or options(close)[0]}"
            said += f"\nNearest: {close!r}. Type: {_replaced(overrides, text, right, folders)}"
        else:
            said += f"\nSee them all: {COMMAND} --cfg job"
        raise ValueError(said)


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


def _explain(error: ValidationError, known: Any, prefix: str = "") -> SchemaError:
    """The first error of a failed validation as one message."""
    first = error.errors()[0]
    where = ".".join([*([prefix] if prefix else []), *(str(part) for part in first["loc"] if part != "[key]")])
    value, kind = first["input"], first["type"]
    if kind == "extra_forbidden":
        close = nearest(where, _flatten(known))
        said = f"unknown key {where!r}." + (f" Nearest: {close!r}." if close else "")
        return SchemaError(f"{said} See them all: {COMMAND} --cfg job", "")
    if kind == "missing":
        return SchemaError(f"{where} has no value.", where)
    limit = _KIND.get(kind) or first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return SchemaError(f"{where} must be {limit}, got {value!r}.", where)


def check(resolved: dict[str, Any], folders: Sequence[Path] = ()) -> Config:
    """The configuration by its schema, the methods' options included.

    Args:
        folders: the user's own configuration files, of which messages speak.

    Raises:
        ValueError: one message for the first mistake.
    """
    try:
        config = Config.model_validate(resolved)
    except ValidationError as error:
        raise _explain(error, resolved) from None
    check_chain(config.method, config.backbone.family, folders)
    _check_parts("method", {name: method_spec(name, node) for name, node in config.method.items()}, resolved)
    check_order(config)
    check_scoring(config)
    check_probes(config.probe, config.backbone.family)
    _check_parts("probe", {name: probe_spec(name, node) for name, node in config.probe.items()}, resolved)
    return config


def _check_parts(node: str, specs: Mapping[str, PartSpec], resolved: Mapping[str, Any]) -> None:
    """The options of every method or probe by the schema of its class."""
    for name, spec in specs.items():
        try:
            spec.schema.model_validate(options_of(resolved[node][name]))
        except ValidationError as error:
            raise _explain(error, resolved, f"{node}.{name}") from None


def _choice(group: str, composed: DictConfig, nodes: Iterable[str]) -> str:
    """What a group's choice is called in the run folder: the options joined by `+`."""
    for text in reversed(composed.hydra.overrides.task):
        key, _, value = text.partition("=")
        if key == group:
            return value.strip("[]").replace(" ", "").replace(",", "+").replace("/", "-")
    chosen = composed.hydra.runtime.choices.get(group)
    return str(chosen).replace("/", "-") if chosen else "+".join(nodes)


def request(
    composed: DictConfig, overrides: Sequence[str], sweep: str | None = None, folders: Sequence[Path] = ()
) -> Request:
    """A composed configuration (with its hydra node) as a checked run request.

    Raises:
        ValueError: a value is missing, of the wrong type, out of range, or the choices do not fit each other.
    """
    plain = OmegaConf.create(composed)
    with open_dict(plain):
        del plain["hydra"]
    try:
        resolved = OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)
        # Where the data lie is no part of what is computed; their content is checked by its fingerprint.
        plain.data_root = "data_root"
        identity = OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ValueError(f"{key} has no value. Type: {COMMAND} ... {key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{str(error).splitlines()[0]}. See the whole: {COMMAND} --cfg job") from None
    assert isinstance(resolved, dict) and isinstance(identity, dict)
    plain_values = {str(k): v for k, v in resolved.items()}
    config = check(plain_values, folders)
    return Request(
        config=config,
        resolved=plain_values,
        overrides=tuple(overrides),
        task_order=_choice("task_order", composed, ["tasks"]),
        backbone=_choice("backbone", composed, [config.backbone.name]),
        method=_choice("method", composed, config.method),
        hash=config_hash({str(k): v for k, v in identity.items()}),
        sweep=sweep,
        folders=tuple(folders),
    )


def compose(overrides: Sequence[str], folders: Sequence[Path] = (), sweep: str | None = None) -> Request:
    """Compose and check one run.

    Args:
        overrides: what was typed, such as `method=pe`.
        folders: user folders with more configuration files (`--config-dir`).

    Raises:
        ValueError: one clear message for the first mistake.
    """
    with _hydra():
        try:
            chosen = _check_groups(overrides, folders)
            default = _compose(chosen, folders)
            _check_keys(overrides, default, folders)
            composed = _compose(overrides, folders)
        except HydraException as error:
            if "launcher/submitit" in str(error):
                raise ValueError("jobs on SLURM need the extra `slurm`. Type: pip install 'cl-runner[slurm]'") from None
            lines = [line for line in str(error).splitlines() if "+" not in line]
            raise ValueError(" ".join(lines[:2]) or str(error)) from None
        except yaml.YAMLError as error:
            raise ValueError(f"a configuration file is not valid YAML: {' '.join(str(error).split())}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"a configuration file is not UTF-8 text: {error}") from None
        try:
            return request(composed, overrides, sweep, folders)
        except SchemaError as error:
            raise ValueError(f"{error}{_remedy(error.key, overrides, default, folders)}") from None


def _remedy(key: str, overrides: Sequence[str], default: DictConfig, folders: Sequence[Path]) -> str:
    """The command with the wrong override at its default."""
    covering = [o for o in overrides if f"{key}.".startswith(o.lstrip("+").partition("=")[0] + ".")] if key else []
    wrong = max(covering, key=lambda o: len(o.partition("=")[0]), default=None)
    value = OmegaConf.select(default, key) if key else None
    if wrong is not None and wrong.partition("=")[0] != key and re.search(r"\.\d", key):
        return f" It stands in: {quoted(wrong)}"
    if isinstance(value, DictConfig):
        return f" Type its parts: {COMMAND} ... {key}.{next(map(str, value), 'KEY')}=VALUE"
    if wrong is None or value is None:
        return f" Type: {COMMAND} ... {key}=VALUE" if key else ""
    return f" Its default is {value}. Type: {_replaced(overrides, wrong, f'{key}={value}', folders)}"


def sweep_id(overrides: Sequence[str]) -> str:
    """The name of a multirun: the same line is the same sweep."""
    return "sweep-" + hashlib.sha256(json.dumps(list(overrides)).encode()).hexdigest()[:8]
