"""Runs that differ in nothing but the seed, and what tells such groups apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pandas as pd

from cl_runner.identity import NOT_IDENTITY
from cl_runner.report.folder import Run
from cl_runner.report.numbers import values_of

NAMES = ("task_order", "backbone", "method", "protocol")
STANDARD = "standard"
#: Keys that the protocol's name tells.
_PROTOCOL = (
    "evaluation.sampling",
    "evaluation.scoring",
    "evaluation.answer_slice",
    "evaluation.answer_text",
    "evaluation.max_new_tokens",
    "evaluation.labels",
)
#: Behaviours of a release in a method's node: the protocol's name tells them as well.
_COMPAT = re.compile(r"method\.[^.]+\.compat")
#: Which choice explains a key's value: a key below it is no column of its own while the choice's name says it all.
_EXPLAINS = {"task_order": "task_order", "task": "task_order", "backbone": "backbone", "method": "method"}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    axes: dict[str, Any]  # task_order, backbone, method, protocol and the varying keys
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        """In ascending order."""
        return sorted(run.seed for run in self.runs)

    def values(self, metric: str) -> list[float]:
        """The metric of every run that has it."""
        return [value for run in self.runs if (value := values_of(run).get(metric)) is not None]

    def axis(self, key: str) -> Any:
        """The value of any key of the configuration, or of one of `NAMES`."""
        return self.axes[key] if key in self.axes else identity(self.runs[0]).get(key)


def names_of(run: Run) -> dict[str, str]:
    """Task order, backbone, method and evaluation protocol as a table's reader sees them.

    A bound is an order in the configuration, `fdu_mtl+joint`, but a column of the paper's tables: it is named as a
    method here, over the same order.
    """
    order, method = run.task_order, run.method
    bounds = [bound for key, bound in (("joint", "joint"), ("restart", "single_task")) if run.config["task_order"][key]]
    for bound in bounds:
        order = "+".join(part for part in order.split("+") if part != bound)
        method = bound if method == "seq_ft" else f"{method}, {bound}"
    protocol = ", ".join(run.marks) or STANDARD
    return {"task_order": order, "backbone": run.backbone, "method": method, "protocol": protocol}


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a configuration and their values."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def identity(run: Run) -> dict[str, Any]:
    """Everything a configuration says about what is computed, but seed and protocol, by dotted key.

    A checkpoint whose name tells the run's seed, such as a base that was trained for it, is one setting of all seeds;
    so is the run that a fork goes on from after the first task, which nothing has reached that the fork does not say.
    """
    ignored = {*NOT_IDENTITY, "seed"}
    keys = {key: value for key, value in flat(run.config) if key.split(".")[0] not in ignored}
    root = str(run.config["data_root"])
    own = keys.get("backbone.checkpoint")
    if isinstance(own, str):
        keys["backbone.checkpoint"] = re.sub(rf"seed{run.config['seed']}(?!\d)", "seed${seed}", own)
    parent = keys.get("fork.run")
    if isinstance(parent, str):  # where it lies is no setting
        *place, own = PurePath(parent).parts[-4:]
        first = keys["fork.at"] == run.config["task_order"]["tasks"][0]["name"]
        keys["fork.run"] = "/".join([*place, "seed${seed}" if first else own])
    return {
        key: value.replace(f"{root}/", "${data_root}/") if isinstance(value, str) and value.startswith(root) else value
        for key, value in keys.items()
        if not key.startswith(("hardware.slurm", *_PROTOCOL)) and not _COMPAT.fullmatch(key)
    }


def varying_keys(runs: Sequence[Run]) -> list[str]:
    """Dotted configuration keys that differ between runs beyond what order, backbone and method names say."""
    # As texts, since values may be lists; a run without a key is like one where it is null.
    values = pd.DataFrame([{key: repr(value) for key, value in identity(run).items()} for run in runs])
    values = values.fillna(repr(None)).drop(columns=["task_order.joint", "task_order.restart"])
    names = pd.DataFrame([names_of(run) for run in runs])

    def varies(key: str) -> bool:
        choice = _EXPLAINS.get(key.split(".")[0])
        if choice is None:
            return values[key].nunique() > 1
        return bool((values[key].groupby(names[choice]).nunique() > 1).any())

    return [key for key in values.columns if varies(key)]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by everything but the seed: names in order of first appearance, numbers that vary in ascending order.

    Raises:
        ValueError: one run is there twice (a copied folder), so that its seed would count double.
    """
    keys = varying_keys(runs)
    axes = [{**names_of(run), **{key: identity(run).get(key) for key in keys}} for run in runs]
    same = pd.Series(list(runs)).groupby([repr(values) for values in axes], sort=False)
    groups = [Group(axes[int(found.index[0])], list(found)) for _, found in same]
    for group in groups:
        first: dict[int, Run] = {}
        for run in group.runs:
            twin = first.setdefault(run.seed, run)
            if twin is not run:
                raise ValueError(f"{twin.folder} and {run.folder} are the same run; name only one of them")
    names = list(dict.fromkeys(tuple(group.axes[key] for key in NAMES) for group in groups))

    def place(group: Group) -> tuple[int, list[tuple[bool, float, str]]]:
        values = [group.axes[key] for key in keys]
        numbers = [
            (not isinstance(v, int | float), float(v) if isinstance(v, int | float) else 0.0, str(v)) for v in values
        ]
        return names.index(tuple(group.axes[key] for key in NAMES)), numbers

    return sorted(groups, key=place)


def axis_text(value: Any) -> str:
    """A configuration value in a table's margin."""
    text = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def shown_axes(groups: Sequence[Group]) -> list[str]:
    """What tells the rows of a table apart; the protocol is told by a sign at the method."""
    keys = [key for key in groups[0].axes if key not in ("method", "protocol")]
    differ = [key for key in keys if len({repr(group.axes[key]) for group in groups}) > 1]
    return [key for key in groups[0].axes if key == "method" or key in differ]


def label_of(group: Group, groups: Sequence[Group]) -> str:
    """What tells a group apart from the others, for a legend: the method, and more only where that is not enough."""
    sign = protocol_signs(groups).get(group.axes["protocol"], "")
    if len({group.axes["method"] for group in groups}) == len(groups):
        return f"{group.axes['method']}{sign}"
    told = ("method", "protocol")
    apart = [key for key in group.axes if key not in told and len({repr(g.axes[key]) for g in groups}) > 1]
    parts = [f"{key.rpartition('.')[2]} {axis_text(group.axes[key])}" for key in apart if group.axes[key] is not None]
    return ", ".join([str(group.axes["method"]), *parts]) + sign


def protocol_signs(groups: Sequence[Group]) -> dict[str, str]:
    """Protocol -> the sign that its numbers carry, where runs differ in it; none for the standard one."""
    protocols = list(dict.fromkeys(str(group.axes["protocol"]) for group in groups))
    marked = [protocol for protocol in protocols if protocol != STANDARD]
    return {protocol: " " + "†" * count for count, protocol in enumerate(marked, 1)} if len(protocols) > 1 else {}


def protocol_notes(groups: Sequence[Group], signs: Mapping[str, str]) -> list[str]:
    """What the signs of `protocol_signs` mean, or the one protocol of all runs unless it is the standard one."""
    if signs:
        return [f"{sign.strip()} not the standard protocol: {protocol}" for protocol, sign in signs.items()]
    protocols = {str(group.axes["protocol"]) for group in groups}
    return (
        [f"not the standard protocol: {protocols.pop()}"] if len(protocols) == 1 and STANDARD not in protocols else []
    )
