"""The configurations that the commands of a table's cells compose, as a run's is: what a run is compared with."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from cl_runner.groups import CONF, nodes_of
from cl_runner.overrides import key_of
from cl_runner.report.grouping import flat

#: Overrides that decide, with the order, what the tasks are.
_OF_TASKS = ("experiment", "task_order")


def method_nodes(overrides: Sequence[str]) -> frozenset[str]:
    """The methods that a command chains, composed only where it does not say them."""
    chosen = next((text.partition("=")[2] for text in overrides if key_of(text) == "method"), None)
    if chosen is None:
        return frozenset(configuration(tuple(overrides))["method"])
    return frozenset(node for option in chosen.strip("[]").split(",") for node in nodes_of(option))


def configuration(overrides: tuple[str, ...]) -> Mapping[str, Any]:
    """What a command composes.

    An order is composed once for all methods of a table, and a method once for all orders.
    """
    others = tuple(text for text in overrides if key_of(text) != "task_order")
    composed = _composed(others)
    if others == overrides:
        return composed
    tasks = of_tasks(overrides)
    return {**composed, "task_order": tasks["task_order"], "task": tasks["task"]}


def of_tasks(overrides: Sequence[str]) -> Mapping[str, Any]:
    """A configuration with the tasks of a command, whatever its method: composed once for all methods."""
    return _composed(tuple(text for text in overrides if key_of(text) in _OF_TASKS))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Mapping[str, Any]:
    from cl_runner.compose import compose

    return compose(list(overrides)).resolved


@functools.cache
def defaults() -> Mapping[str, Any]:
    """The values that belong to no choice, by dotted key: what a run of an earlier version may not say."""
    content = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    return dict(flat({key: value for key, value in content.items() if key not in ("defaults", "hydra")}))


def said(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """One part of a configuration by dotted key, wherever the data lie."""
    root = f"{config.get('data_root')}/"
    node = config.get(part)
    return dict(flat(placeless(node, root), f"{part}.")) if isinstance(node, Mapping) else {}


def placeless(value: Any, root: str) -> Any:
    """A value with the place of the data as `${data_root}`."""
    if isinstance(value, Mapping):
        return {str(key): placeless(inner, root) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [placeless(inner, root) for inner in value]
    return "${data_root}/" + value[len(root) :] if isinstance(value, str) and value.startswith(root) else value
