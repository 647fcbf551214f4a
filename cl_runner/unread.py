"""Options that nothing reads: a value that was typed and would change nothing is refused, with what is read instead.

When an option is read is said where it is declared, by `ReadIf`; a few conditions that span the configuration are here.
A typed value that is the default anyway, and what a preset says, pass: neither can be mistaken for a change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from cl_runner.config import Config
from cl_runner.groups import GROUPS
from cl_runner.overrides import command_line, key_of, leaves_of, written
from cl_runner.parts import family_kind, method_spec, probe_spec
from cl_runner.read_if import ReadIf


@dataclass(frozen=True)
class Unread:
    """A typed value that nothing reads.

    Attributes:
        key: of the configuration.
        reason: why, with what is read instead.
    """

    key: str
    reason: str


def unread(
    parsed: Sequence[Override],
    overrides: Sequence[str],
    default: DictConfig,
    composed: DictConfig,
    config: Config,
    folders: Sequence[Path],
) -> list[Unread]:
    """What was typed, differs from what the chosen options say, and is read by nothing in this run."""
    found = []
    for override, text in zip(parsed, overrides, strict=True):
        if override.key_or_group in GROUPS or override.is_hydra_override() or override.is_delete():
            continue
        for key in leaves_of(override.key_or_group, override.value()):
            if _same(OmegaConf.select(default, key), OmegaConf.select(composed, key)):
                continue
            why = _why(key, composed, config)
            if why is None:
                continue
            reason, instead, beside = why
            without = [o for o in overrides if o != text]
            kept = [o for o in (overrides if beside else without) if key_of(o) not in instead]
            lines = [command_line([*kept, *_typed(instead)], folders)]
            lines += [command_line(without, folders)] if instead else []
            said = f"{text}: nothing reads {key} here: {reason}"
            found.append(Unread(key, f"{said}. Type: {' (or leave it out: '.join(lines)}{')' if instead else ''}"))
    return found


def _typed(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={written(value)}" for key, value in values.items()]


def _same(one: Any, other: Any) -> bool:
    one, other = (OmegaConf.to_container(v, resolve=False) if OmegaConf.is_config(v) else v for v in (one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


#: Why nothing reads a key; the values to type, and whether beside its own, which is read then, or instead of it.
Why = tuple[str, dict[str, Any], bool]


def _why(key: str, composed: DictConfig, config: Config) -> Why | None:
    """Why nothing reads a key; None if it is read."""
    for node, condition in _conditions(key, config):
        other = condition.key if "." in condition.key else f"{node}.{condition.key}"
        is_family = other == "backbone.family"
        value = family_kind(config.backbone.family) if is_family else _plain(OmegaConf.select(composed, other))
        if condition.read(value):
            continue
        shown = " or ".join(map(written, condition.values))
        if is_family:
            who = f"families other than {shown} read" if condition.unless else f"the family {shown} reads"
            return f"backbone {config.backbone.name} is of the family {value}, and {who} it", {}, False
        if condition.unless:
            return f"it is not read with {other}={written(value)}", {}, False
        return f"it is read with {other}={shown}, and {other} is {written(value)}", {other: condition.values[0]}, True
    return next((why for rule in RULES if (why := rule(key, composed, config)) is not None), None)


def _conditions(key: str, config: Config) -> Iterator[tuple[str, ReadIf]]:
    """The conditions of a key and of the nodes that it stands in, each with the node that its own key belongs to."""
    group, _, rest = key.partition(".")
    node, _, inside = rest.partition(".")
    parts = {"method": (config.method, method_spec), "probe": (config.probe, probe_spec)}
    if group in parts:
        nodes, spec = parts[group]
        if node in nodes:
            yield from _of_schema(spec(node, nodes[node]).schema, inside, f"{group}.{node}")
    else:
        yield from _of_schema(Config, key, "")


def _of_schema(schema: type[BaseModel], key: str, node: str) -> Iterator[tuple[str, ReadIf]]:
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return
    for condition in field.metadata:
        if isinstance(condition, ReadIf):
            yield node, condition
    kind: Any = field.annotation
    below = f"{node}.{name}".lstrip(".")
    for inner in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        if get_origin(inner) in (dict, list) and rest:  # one of many: a task's definition, a step of the order
            name, _, deeper = rest.partition(".")
            (*_, element) = get_args(inner)
            if isinstance(element, type) and issubclass(element, BaseModel):
                yield from _of_schema(element, deeper, f"{below}.{name}")
        elif isinstance(inner, type) and issubclass(inner, BaseModel) and rest:
            yield from _of_schema(inner, rest, below)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


# Conditions that span the configuration --------------------------------------------------------------------


def _replaced_rate(key: str, composed: DictConfig, config: Config) -> Why | None:
    """A method that brings a rate of its own for what it trains: `learning_rate` in its node."""
    if key not in ("training.base.learning_rate", "training.incremental.learning_rate"):
        return None
    for name, node in config.method.items():
        rate = node.get("learning_rate")
        if rate is None or not method_spec(name, node).chooses:
            continue
        if key.startswith("training.base") and node.get("first_task") == "whole":
            continue
        typed = OmegaConf.select(composed, key)
        return (
            f"method.{name}.learning_rate={written(rate)} takes its place",
            {f"method.{name}.learning_rate": typed},
            False,
        )
    return None


def _variant(key: str, composed: DictConfig, config: Config) -> Why | None:
    if key != "task_order.variant":
        return None
    chosen = OmegaConf.to_yaml(OmegaConf.masked_copy(composed, ["task", "task_order"]))
    return (
        None if "variant}" in chosen else ("no path of its tasks holds {variant}, and no number follows it", {}, False)
    )


def _importance(key: str, composed: DictConfig, config: Config) -> Why | None:
    """Importance that no method measures."""
    if not key.startswith("importance.") or key == "importance.cache_gb":
        return None
    idle = [name for name, node in config.method.items() if not _measures(name, node)]
    if len(idle) < len(config.method):
        return None
    return f"{' and '.join(idle)} {'measures' if len(idle) == 1 else 'measure'} no importance of weights", {}, False


def _measures(name: str, node: Mapping[str, Any]) -> bool:
    return method_spec(name, node).measures and node.get("score") not in ("random", "magnitude")


def _bertscore(key: str, composed: DictConfig, config: Config) -> Why | None:
    if not key.startswith("evaluation.bertscore."):
        return None
    metrics = [
        metric
        for task in config.task.values()
        for found in (task.metrics, *task.released_metrics.values())
        for metric in found
    ]
    return None if any("bertscore" in metric for metric in metrics) else ("no task is scored by bertscore", {}, False)


def _definition(key: str, composed: DictConfig, config: Config) -> Why | None:
    """A definition that no task of the order uses."""
    group, _, rest = key.partition(".")
    name, _, leaf = rest.partition(".")
    if leaf in ("dataset", "revision"):  # asked for of every definition of the hub's
        return None
    used = {task.task or config.task_order.task for task in config.task_order.tasks}
    if group != "task" or name in used:
        return None
    return f"the order uses {', '.join(sorted(used))}", {}, False


def _origin(key: str, composed: DictConfig, config: Config) -> Why | None:
    """Where a checkpoint comes from, of one that comes from elsewhere or is none."""
    backbone = config.backbone
    if key not in ("backbone.revision", "backbone.package", "backbone.weights_sha256"):
        return None
    if OmegaConf.select(composed, key) is None:
        return None
    if backbone.pretrained is None:
        return f"backbone {backbone.name} has random weights: backbone.checkpoint is null", {}, False
    said = f"{backbone.pretrained_key}={backbone.pretrained}"
    if key == "backbone.weights_sha256":
        if backbone.package is None or not backbone.local:
            return None
        return f"of {said} it is compared where there is no backbone.package", {"backbone.package": None}, True
    if backbone.gguf is not None and (key == "backbone.revision" or backbone.local):
        return f"{said} is a file, and {key} is of names on the hub", {}, False
    if not backbone.local:
        return None
    return f"{said} is a folder, and {key} is of names on the hub", {}, False


def _mlflow(key: str, composed: DictConfig, config: Config) -> Why | None:
    if not key.startswith("mlflow.") or "mlflow" in config.trackers:
        return None
    return "trackers does not name mlflow", {"trackers": [*config.trackers, "mlflow"]}, True


Rule = Callable[[str, DictConfig, Config], Why | None]
RULES: tuple[Rule, ...] = (_replaced_rate, _variant, _importance, _bertscore, _definition, _origin, _mlflow)
