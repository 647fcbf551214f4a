"""Whether the chosen parts fit each other: checks that span several groups, each with the line to type.

What a part goes together with follows from what its class says of itself, so that it holds for the user's classes too.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.config import Config, Hardware, TaskOrder
from cl_runner.groups import backbones_of, option_of
from cl_runner.overrides import COMMAND, written
from cl_runner.parts import PartSpec, family_kind, method_spec, probe_spec
from cl_runner.said import texts
from cl_runner.statistics.orders import balanced_count

Nodes = Mapping[str, Mapping[str, Any]]


def check_chain(methods: Nodes, family: str, folders: Sequence[Path] = (), backbone: str = "") -> None:
    """The methods fit each other and the backbone's family, or a ValueError names the corrected override.

    Args:
        methods: node -> its options, as under `method`.
        family: what the backbone says of itself.
        folders: the user's own configuration files.
        backbone: its name.
    """
    if not methods:
        raise ValueError("no method is chosen. Type: method=seq_ft for plain fine-tuning")
    specs = {name: method_spec(name, node) for name, node in methods.items()}
    choosers = [name for name in methods if specs[name].chooses]
    if len(choosers) > 1:
        lines = [choice(_without(specs, choosers, kept), methods, folders) for kept in choosers]
        raise ValueError(
            f"{', '.join(choosers[:-1])} and {choosers[-1]} {'both' if len(choosers) == 2 else 'all'} decide what "
            f"trains; a chain has one that does. Type: {lines[0]} (or {', or '.join(lines[1:])})"
        )
    for name in methods:
        for reason, idle in _idle(name, specs):
            kept = choice([other for other in methods if other not in idle], methods, folders)
            raise ValueError(f"{name} {reason}, so that {' and '.join(idle)} would have nothing to do. Type: {kept}")
    directing = [name for name in methods if specs[name].directs]
    if len(directing) > 1:
        lines = [
            choice([n for n in methods if n == kept or n not in directing], methods, folders) for kept in directing
        ]
        raise ValueError(
            f"{', '.join(directing[:-1])} and {directing[-1]} each change where a step goes, and the later one would "
            f"undo what the earlier one made sure of. Type: {lines[0]} (or {', or '.join(lines[1:])})"
        )
    back = [name for name in methods if specs[name].goes_back]
    for name in [name for name in methods if specs[name].rebuilds and back]:
        lines = [choice([n for n in methods if n not in without], methods, folders) for without in (back, [name])]
        raise ValueError(
            f"{name} makes what it trains of the weights anew for every task, from which {' and '.join(back)} finds no "
            f"way back to the starting model. Type: {lines[0]} (or {lines[1]})"
        )
    for name in [name for name in methods if specs[name].writes]:
        others = [other for other in methods if specs[other].by_answers or specs[other].routes]
        if others:
            lines = [choice([n for n in methods if n not in without], methods, folders) for without in (others, [name])]
            reason = "goes by the right answers" if specs[others[0]].by_answers else "goes by the words of a question"
            raise ValueError(
                f"{name} learns what the model answers itself, taught by it with the right answer in the question, and "
                f"{others[0]} {reason}. Type: {lines[0]} (or {lines[1]})"
            )
    kind = family_kind(family)
    for name, spec in specs.items():
        if kind not in spec.families:
            supported = ", ".join(spec.families)
            instead = _instead(name, specs, backbone) or choice([name], methods, folders)
            raise ValueError(f"method {name} supports the families {supported}, not {kind}. Type: {instead}")


def _instead(name: str, specs: Mapping[str, PartSpec], backbone: str) -> str:
    """The override of a backbone that a method goes together with, called much alike; "" if its chain does not."""
    families = [kind for kind in specs[name].families if all(kind in spec.families for spec in specs.values())]
    fitting = backbones_of(families)
    return f"backbone={difflib.get_close_matches(backbone, fitting, n=1, cutoff=0)[0]}" if fitting else ""


def _idle(name: str, specs: Mapping[str, PartSpec]) -> Iterator[tuple[str, list[str]]]:
    """Why others of a chain would have nothing to do beside a method, and which ones."""
    spec = specs[name]
    others = [other for other in specs if other != name]
    reasons = [
        (spec.trains_nothing, "trains nothing", others),
        (
            spec.isolates,
            "leaves all weights of the backbone and all that earlier tasks learned as they are",
            [other for other in others if specs[other].protects or specs[other].joins],
        ),
        (
            spec.joins,
            "learns the data of all tasks so far in every step",
            [other for other in others if specs[other].protects],
        ),
    ]
    return ((reason, idle) for holds, reason, idle in reasons if holds and idle)


def _without(specs: Mapping[str, PartSpec], choosers: Sequence[str], kept: str) -> list[str]:
    """The chain with one of its choosers, without those that would have nothing to do beside it, or undo others."""
    names = [name for name in specs if name == kept or name not in choosers]
    idle = {name for _, found in _idle(kept, {name: specs[name] for name in names}) for name in found}
    directing = [name for name in names if specs[name].directs]
    return [name for name in names if name not in {*idle, *directing[1:]}]


def choice(names: Sequence[str], methods: Nodes, folders: Sequence[Path] = ()) -> str:
    """The override that chooses some of the methods."""
    found = [option_of(name, methods[name], folders) for name in names]
    return f"method={found[0]}" if len(found) == 1 else f"method=[{','.join(found)}]"


def check_order(config: Config) -> None:
    """The task order suits the methods, and has the balanced order asked for, or a ValueError says what to type."""
    _check_balanced(config.task_order)
    specs = {name: method_spec(name, node) for name, node in config.method.items()}
    apart = [name for name, spec in specs.items() if spec.isolates]
    joins = [name for name, spec in specs.items() if spec.joins]
    if config.task_order.joint and joins:
        raise ValueError(
            f"{joins[0]} takes the data of all tasks so far by itself, and would leave those of task_order=[...,joint] "
            "aside: two upper bounds are two runs. Type: method=seq_ft (or leave `joint` out of task_order)"
        )
    if config.task_order.joint and apart:
        raise ValueError(
            f"{apart[0]} keeps what each task learned apart, so that training on all data so far changes nothing of "
            "the older tasks. Type: method=seq_ft for the upper bound (or leave `joint` out of task_order)"
        )


def check_budget(config: Config) -> None:
    """A task's length is said in one way, or a ValueError says what to type."""
    training = config.training
    given = {key: value for key, value in training.budget.model_dump().items() if value is not None}
    if len(given) > 1:
        first = next(iter(given))
        others = " ".join(f"training.budget.{key}=null" for key in given if key != first)
        raise ValueError(
            f"training.budget has {' and '.join(given)}: a task's cost is counted in one of them. Type: {others}"
        )
    for key, value in given.items():
        if training.max_steps is not None:
            raise ValueError(
                f"training.max_steps={training.max_steps} cuts the epochs, and training.budget.{key}={value:g} repeats "
                "them until it is spent: one of them. Type: training.max_steps=null"
            )
        if key == "flops" and family_kind(config.backbone.family) == "image_text":
            raise ValueError(
                "training.budget.flops counts products as plans price them, and plans know no pictures yet. "
                "Type: training.budget.tokens=NUMBER"
            )


def check_shared(config: Config) -> None:
    """What is taken of other runs can be, or a ValueError says what to type."""
    if config.reuse != "none" and not config.importance.cache_gb:
        raise ValueError(
            f"reuse={config.reuse} keeps what came of tasks in the cache, which importance.cache_gb=0 leaves no room. "
            "Type: importance.cache_gb=10 (or reuse=none)"
        )
    if config.reuse != "none" and config.training.budget.seconds is not None:
        raise ValueError(
            f"reuse={config.reuse}: how far a task gets in training.budget.seconds depends on the machine's load, so "
            "that no two runs train alike. Type: reuse=none (or training.budget.steps=NUMBER)"
        )
    if config.reuse != "none" and config.evaluation.every_epoch:
        raise ValueError(
            f"evaluation.every_epoch=true asks the model at the end of every epoch, and reuse={config.reuse} takes "
            "tasks that another run trained, without their epochs. Type: reuse=none (or evaluation.every_epoch=false)"
        )
    if config.fork.run is not None and config.fork.at is None:
        raise ValueError(
            "fork.run names a run, and not its task from which on this one goes its own way. Type: fork.at=TASK"
        )


def _check_balanced(order: TaskOrder) -> None:
    """The balanced order that is asked for is there."""
    if order.balanced is None:
        return
    free = len(order.tasks) - order.fixed
    if free < 2:
        last = max(0, len(order.tasks) - 2)
        raise ValueError(
            f"task_order.fixed={order.fixed} of {len(order.tasks)} tasks leaves none to change places. "
            + (f"Type: task_order.fixed={last} (or less)" if len(order.tasks) > 1 else "Type: task_order.balanced=null")
        )
    count = balanced_count(free)
    if order.balanced >= count:
        beside = f" beside {order.fixed} that stay" if order.fixed else ""
        raise ValueError(
            f"task_order.balanced={order.balanced}: of {free} tasks{beside} there are {count} balanced orders, 0 to "
            f"{count - 1}. Type: task_order.balanced={count - 1}"
        )


def idle_notes(config: Config) -> list[str]:
    """A line if methods have nothing to protect by the task order; a comparison may hold them all the same."""
    specs = {name: method_spec(name, node) for name, node in config.method.items()}
    idle = [name for name, spec in specs.items() if spec.protects or spec.joins]
    said = []
    if config.task_order.restart and idle:
        reason = "every task starts from the pretrained weights"
        said.append(f"single_task: {reason}, so that {' and '.join(idle)} protect nothing")
    if config.task_order.joint and idle:
        reason = "every task learns the data of all tasks so far"
        said.append(f"joint: {reason}, so that there is little for {' and '.join(idle)} to protect")
    kind = family_kind(config.backbone.family)
    recalling = [n for n, s in specs.items() if texts(s.recalls, s.schema, config.method[n], kind)]
    for name in [name for name, spec in specs.items() if spec.renews and recalling]:
        left = "a classifier's head alone" if kind == "classifier" else "nothing"
        said.append(
            f"{name}: each task trains weights that no earlier one had, of which {' and '.join(recalling)} found out "
            f"nothing there, and so acts on {left}"
        )
    return said


def check_hub(config: Config) -> None:
    """Every data set of the hub is named with its revision, or a ValueError says what to type."""
    for name, task in config.task.items():
        for key, value in (("dataset", task.dataset), ("revision", task.revision)):
            if task.source == "hub" and value is None:
                raise ValueError(f"task.{name}.{key} has no value. Type: {COMMAND} ... task.{name}.{key}=VALUE")


def check_scoring(config: Config) -> None:
    """Some task has the metrics of the release that `evaluation.scoring` names, or a ValueError says which it has."""
    known = sorted({release for task in config.task.values() for release in task.released_metrics})
    asked = config.evaluation.scoring
    if asked != "standard" and asked not in known:
        has = f"its releases: {', '.join(known)}" if known else "it has no release's metrics"
        raise ValueError(
            f"evaluation.scoring={asked}: no task of this order is scored so ({has}). "
            "Type: protocol=standard (or evaluation.scoring=standard)"
        )


def check_probes(probes: Nodes, family: str) -> None:
    """The probes exist and fit the backbone's family, or a ValueError says what to type."""
    kind = family_kind(family)
    for name, node in probes.items():
        families = probe_spec(name, node).families
        if kind not in families:
            raise ValueError(
                f"probe {name} needs a backbone of the families {', '.join(families)}, not {kind}. Type: probe=none"
            )


def check_told(probes: Nodes, methods: Nodes) -> None:
    """A method that is told a text's task makes use of it, or a ValueError says what to type."""
    told = set(probes.get("oracle", {}).get("tell", ())) & {"task", "both"}
    if told and not any(method_spec(name, node).routes for name, node in methods.items()):
        raise ValueError(
            f"probe oracle tells the method a text's task, of which {' and '.join(methods)} makes nothing. "
            "Type: probe.oracle.tell=[labels] (or method=slm)"
        )


#: Bytes of a name in a folder, of a whole path, and of what a run puts below its own folder, each at most.
NAME, PATH, BELOW = 255, 4096, 300


def check_hardware(hardware: Hardware) -> None:
    """This machine can start so many threads, or a ValueError says what to type. A SLURM job runs on another one."""
    cpus = os.cpu_count() or 1
    most = max(64, 4 * cpus)
    if hardware.slurm is None and (hardware.threads or 0) > most:
        raise ValueError(
            f"hardware.threads={hardware.threads}: this machine has {cpus} CPUs, more than {most} threads slow it down "
            f"or end the process. Type: hardware.threads={cpus}"
        )


def check_places(config: Config, line: Callable[[str, str], str]) -> None:
    """Folders and files are named as the system takes them, or a ValueError says what to type.

    A shell expands `~` and `$NAME` in some places only, and nothing here does it later.

    Args:
        line: what to type for another value of a key.
    """
    backbone = config.backbone
    places = {"root": config.root, "data_root": config.data_root, backbone.pretrained_key: backbone.pretrained}
    for key, value in places.items():
        if value is None:
            continue
        odd = next((c for c in value if not c.isprintable() and c != " "), None)
        if odd is not None:
            raise ValueError(f"{key} holds the character {odd!r}, which is none of a file's name. Type: {key}=FOLDER")
        variable = re.search(r"\$\{?(\w+)\}?", value)
        if variable and variable[1] in os.environ and not os.path.exists(value):
            right = line(key, written(os.path.expandvars(value)))
            raise ValueError(f"{key}={value}: between single quotes ${variable[1]} stays as it is. Type: {right}")
    if config.root.startswith("~"):
        right = line("root", written(os.path.expanduser(config.root)))
        raise ValueError(f"root={config.root}: `~` is not expanded there. Type: {right}")


def check_folder(folder: Path) -> None:
    """A run's folder has a name that the system takes, or a ValueError names the part that is too long."""
    for part in folder.parts:
        if len(os.fsencode(part)) > NAME:
            raise ValueError(
                f"the run's folder would be called {part[:60]}... of {len(os.fsencode(part))} bytes, and names have at "
                f"most {NAME}: shorten what root, or a list of options, puts there. Type: root=FOLDER"
            )
    length = len(os.fsencode(folder.absolute()))
    if length > PATH - BELOW:
        raise ValueError(f"the run's folder has a path of {length} bytes, and {PATH - BELOW} fit. Type: root=FOLDER")
