"""From what was typed to a checked run request: Hydra composes, the schema checks, mistakes get one message."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from cl_runner.checks import (
    check_budget,
    check_chain,
    check_folder,
    check_hardware,
    check_hub,
    check_order,
    check_places,
    check_probes,
    check_scoring,
    check_shared,
    check_told,
    idle_notes,
)
from cl_runner.config import Config
from cl_runner.groups import GROUPS, START, check_folders, replaced, search_path
from cl_runner.identity import config_hash
from cl_runner.mistakes import check_groups, check_keys
from cl_runner.overrides import check_single, command_line, key_of
from cl_runner.parts import PartSpec, method_spec, options_of, probe_spec
from cl_runner.statistics.orders import arrangement, of_balanced
from cl_runner.unread import Unread, unread
from cl_runner.wrong_values import SchemaError, explain, explain_hydra, remedy, starts_from_itself


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
    unread: tuple[Unread, ...] = ()  # what was typed for a multirun and this job of it does not read
    replaced: tuple[str, ...] = ()  # said first: files of the package that they stand for, methods that are idle

    @property
    def folder(self) -> Path:
        """<root>/<task_order>/<backbone>/<method>/seed<seed>-<hash>."""
        return Path(self.config.root) / self.identity

    @property
    def identity(self) -> str:
        """The folder without its root: the same wherever a run writes."""
        return f"{self.task_order}/{self.backbone}/{self.method}/seed{self.config.seed}-{self.hash}"

    @property
    def run_id(self) -> str:
        """The run's id in W&B: the same in every session of the run."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:16]

    @property
    def command(self) -> str:
        """The line that starts, or continues, this run."""
        return self._line(self.overrides)

    def command_with(self, options: Mapping[str, str]) -> str:
        """The line for the same run under other values of some keys."""
        others = [o for o in self.overrides if key_of(o) not in options]
        return self._line([*others, *(f"{key}={value}" for key, value in options.items())])

    def _line(self, overrides: Iterable[str]) -> str:
        """What is typed for a run like this: one on a cluster is submitted."""
        return command_line(overrides, self.folders, command="submit" if self.config.hardware.slurm else "")


@contextmanager
def _hydra(folders: Sequence[Path]) -> Iterator[None]:
    with initialize_config_dir(config_dir=search_path(folders)[0], job_name="cl_runner", **version_base()):
        yield


@dataclass(frozen=True)
class Chosen:
    """What the groups' choices make: the configuration, and what of it the user's files replace."""

    config: DictConfig
    replaced: tuple[str, ...]


def _compose(overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """Compose inside `_hydra`."""
    others = search_path(folders)[1]
    return hydra.compose(START, overrides=[*overrides, *others], return_hydra_config=True)


def _with_values(chosen: DictConfig, parsed: Sequence[Override]) -> DictConfig:
    """A configuration that the groups' choices make, with the values that were typed, as Hydra writes them into it."""
    composed = copy.deepcopy(chosen)
    values = [o for o in parsed if o.key_or_group not in GROUPS and not o.is_hydra_override()]
    ConfigLoaderImpl._apply_overrides_to_config(values, composed)
    return composed


def _replaced_files(overrides: Sequence[str], folders: Sequence[Path]) -> tuple[str, ...]:
    """What the user's files replace in this configuration, inside `_hydra`."""
    if not folders:
        return ()
    loader = GlobalHydra.instance().config_loader()
    found = loader.compute_defaults_list(START, [*overrides, *search_path(folders)[1]], RunMode.RUN).defaults
    return tuple(replaced((default.config_path for default in found if default.config_path), folders))


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
        raise explain(error, Config, resolved) from None
    check_chain(config.method, config.backbone.family, folders, config.backbone.name)
    for name, node in config.method.items():
        check_options(f"method.{name}", node, method_spec(name, node))
    check_order(config)
    check_budget(config)
    check_shared(config)
    check_hub(config)
    check_scoring(config)
    check_probes(config.probe, config.backbone.family)
    for name, node in config.probe.items():
        check_options(f"probe.{name}", node, probe_spec(name, node))
    check_told(config.probe, config.method)
    return config


def check_options(key: str, node: Mapping[str, Any], spec: PartSpec) -> None:
    """The options of a method or probe by the schema of its class."""
    try:
        spec.schema.model_validate(options_of(node))
    except ValidationError as error:
        raise explain(error, spec.schema, options_of(node), f"{key}.") from None


def _fill(resolved: dict[str, Any], config: Config) -> None:
    """Write the defaults that a user's class gives to its options into the configuration, as if they stood there."""
    for group, nodes, spec in (("method", config.method, method_spec), ("probe", config.probe, probe_spec)):
        for name, node in nodes.items():
            schema = spec(name, node).schema
            if set(schema.model_fields) - set(node):
                options = schema.model_validate(options_of(node)).model_dump(mode="json")
                resolved[group][name] = {**options, **node}


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
        raise ValueError(f"{key} has no value. Type: {command_line(['...', f'{key}=VALUE'], folders)}") from None
    except OmegaConfBaseException as error:
        shown = command_line(["--cfg", "job"], folders)
        said = str(error).splitlines()[0]
        name = re.search(r"Interpolation key '(\w+)' not found", said)
        if name and name[1] in os.environ:
            said += f". A variable of the environment is written ${{oc.env:{name[1]}}}"
        raise ValueError(f"{said}. See the whole: {shown}") from None
    assert isinstance(resolved, dict) and isinstance(identity, dict)
    values, identity = ({str(key): value for key, value in tree.items()} for tree in (resolved, identity))
    config = check(values, folders)
    order = config.task_order
    if order.balanced is not None:
        places = arrangement(len(order.tasks), order.balanced, order.fixed)
        for tree in (values, identity):
            tree["task_order"]["tasks"] = [tree["task_order"]["tasks"][place] for place in places]
        config = check(values, folders)
    check_hardware(config.hardware)
    check_places(
        config,
        lambda key, value: command_line([*(o for o in overrides if key_of(o) != key), f"{key}={value}"], folders),
    )
    _fill(values, config)
    _fill(identity, config)
    made = Request(
        config=config,
        resolved=values,
        overrides=tuple(overrides),
        task_order=_choice("task_order", composed, ["tasks"]) + of_balanced(order.balanced),
        backbone=_choice("backbone", composed, [config.backbone.name]),
        method=_choice("method", composed, config.method),
        hash=config_hash(identity),
        sweep=sweep,
        folders=tuple(folders),
    )
    check_folder(made.folder)
    return made


def compose(
    overrides: Sequence[str],
    folders: Sequence[Path] = (),
    sweep: str | None = None,
    made_before: dict[tuple[str, ...], Chosen] | None = None,
) -> Request:
    """Compose and check one run.

    Args:
        overrides: what was typed, such as `method=pe`.
        folders: user folders with more configuration files (`--config-dir`).
        sweep: the multirun that it is a job of; what it does not read, another job may.
        made_before: of other jobs with the same folders, by what chose them; new ones are added.

    Raises:
        ValueError: one clear message for the first mistake.
    """
    check_folders(folders)
    with _hydra(folders):
        try:
            parsed = check_single(overrides, folders)
            groups = tuple(check_groups(parsed, overrides, folders))
            chosen = made_before.get(groups) if made_before is not None else None
            if chosen is None:
                chosen = Chosen(_compose(groups, folders), _replaced_files(groups, folders))
            if made_before is not None:
                made_before[groups] = chosen
            default = chosen.config
            check_keys(parsed, overrides, default, folders)
            composed = _with_values(default, parsed)
        except HydraException as error:
            raise explain_hydra(error, overrides, folders) from None
        except yaml.YAMLError as error:
            raise ValueError(f"a configuration file is not valid YAML: {' '.join(str(error).split())}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"a configuration file is not UTF-8 text: {error}") from None
        except RecursionError:
            raise starts_from_itself(folders) from None
        try:
            made = request(composed, overrides, sweep, folders)
            idle = unread(parsed, overrides, default, composed, made.config, folders)
            if idle and sweep is None:
                raise ValueError(idle[0].reason)
            said = (*chosen.replaced, *idle_notes(made.config))
            return dataclasses.replace(made, replaced=said, unread=tuple(idle))
        except SchemaError as error:
            raise ValueError(f"{error}{remedy(error, overrides, default, folders)}") from None
