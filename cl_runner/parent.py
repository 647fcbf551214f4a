"""What a fork takes of another run: what its first tasks learned, and what its methods knew after each.

The other run's snapshots lead from the starting weights to those after each task, bit by bit. What methods know beside
the weights is in its folder where it ran with `checkpoint.after_tasks=true`. A first task that was learned plainly says
nothing that a method could not find out itself: methods that begin with such a task need no such file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.beginnings import Kept, tree_of, write_tree
from cl_runner.build import build_method
from cl_runner.checkpoint import load
from cl_runner.compose import check
from cl_runner.config import Config
from cl_runner.damage import read_config
from cl_runner.data.task import Task, fingerprint, label_union
from cl_runner.digests import Damaged, read_json, read_text
from cl_runner.distributed import once
from cl_runner.learn import Watch
from cl_runner.learner import Learner
from cl_runner.methods.base import Chain, Method
from cl_runner.overrides import command_line, key_of, nearest, written
from cl_runner.parts import family_kind
from cl_runner.record import steps_of, write_masks
from cl_runner.shards import collected
from cl_runner.sparse.bits import INTEGERS, weights_hash
from cl_runner.sparse.chain import apply_snapshot
from cl_runner.sparse.snapshots import Snapshot, describe_snapshot, read_snapshot
from cl_runner.tensor_files import read_tensors
from cl_runner.train import Best
from cl_runner.trained import Trained

#: Where in a run's folder what methods knew after each task lies.
STATES = "states"


@dataclass(frozen=True)
class Parent:
    """A run, up to one of its tasks.

    Attributes:
        folder: of the run.
        config: as it was asked for.
        count: of its first tasks that a fork takes.
        snapshots: of these tasks.
    """

    folder: Path
    config: Config
    count: int
    snapshots: Sequence[Path]

    @property
    def at(self) -> str:
        """The last of these tasks."""
        return self.config.task_order.tasks[self.count - 1].name

    def check(self, config: Config, tasks: Sequence[Task], method: Chain) -> None:
        """A run of this configuration can go on from here.

        Raises:
            ValueError: something that reached the tasks until here is another one, or what its methods would have to
                know is not there; the text says what to type.
        """
        self._check_settings(config)
        self._check_data(tasks, config)
        if self.plain(method):
            return
        self._check_methods(config, method)
        knows = any(each.state for each in method.methods.values())
        missing = [path for path in map(self._state, self.snapshots) if knows and not path.is_file()]
        if missing:
            first = "" if self.count == 1 else f" (or fork this one after its first task: --at {self._first})"
            raise ValueError(
                f"{missing[0]} is not there: {self.folder} did not keep what {' + '.join(method.methods)} knew after "
                "each task, as a run does with checkpoint.after_tasks=true. Make it anew, and fork that one: "
                f"{self._kept()}{first}"
            )

    def plain(self, method: Chain) -> bool:
        """Whether one task is taken that was learned plainly, and these methods need to see no more than its end."""
        learned = all(each.plain_at_first() for each in build_method(self.config.method).methods.values())
        whole = not describe_snapshot(self.snapshots[0]).position_bytes
        return self.count == 1 and learned and whole and not any(map(_watches, method.methods.values()))

    def given(self, task: Task, method: Chain, device: torch.device) -> Given:
        """What the run has of one of these tasks.

        Raises:
            Damaged: a file is not what was written.
        """
        path, plain = self.snapshots[task.index], self.plain(method)
        snapshot, state = read_snapshot(path), self._state(path)
        known = None
        if not plain and state.is_file():
            known = tree_of(*read_tensors(state), device)
        masks = self.folder / "masks.json"
        entries = read_json(masks)["tasks"] if masks.is_file() else []
        mask = next((entry for entry in entries if entry["task"] == task.name), None)
        new: set[str] = set()
        if task.index:
            new = snapshot.header.shapes.keys() - describe_snapshot(self.snapshots[task.index - 1]).shapes.keys()
        steps, trainable = steps_of(self.folder, task.index), self._details()[task.index]["trainable"]
        return Given(self, path, snapshot, new, known, steps, trainable, mask, plain)

    def _details(self) -> list[dict[str, Any]]:
        """What the run noted of its tasks, whether it is done or not."""
        path = self.folder / "summary.json"
        if path.is_file():
            return list(read_json(path)["tasks_detail"])
        state = load(self.folder / "state", "cpu")
        return [] if state is None else list(state["details"])

    @property
    def _first(self) -> str:
        return self.config.task_order.tasks[0].name

    def _kept(self) -> str:
        """The line that makes the run anew elsewhere, and keeps what is missing."""
        kept = [word for word in self._typed() if key_of(word) not in ("root", "checkpoint.after_tasks")]
        return command_line([*kept, f"root={written(f'{self.config.root}_kept')}", "checkpoint.after_tasks=true"])

    def _typed(self) -> list[str]:
        return [word for word in read_text(self.folder / "overrides.txt").split("\n") if word]

    def _state(self, snapshot: Path) -> Path:
        return state_file(self.folder, snapshot.stem)

    def _check_settings(self, config: Config) -> None:
        """Nothing is asked for otherwise that has reached the tasks until here already."""
        now, then = config.model_dump(mode="json"), self.config.model_dump(mode="json")
        for tree in (now, then):
            tree["first tasks"] = tree["task_order"]["tasks"][: self.count]
            tree["training"] = tree["training"]["base"]
            tree["bounds"] = [tree["task_order"]["joint"], tree["task_order"]["restart"]]
        for key, said in (
            ("seed", "seed"),
            ("backbone", "backbone"),
            ("training", "training.base"),
            ("first tasks", "task_order.tasks"),
            ("bounds", "task_order"),
        ):
            if now[key] != then[key]:
                differs = _differing(now[key], then[key], said)
                raise ValueError(
                    f"{differs} is another one than in {self.folder}, where it has reached the tasks until {self.at} "
                    "already: a fork changes what comes after. Leave it as it was, or train from the start: without "
                    "fork.run and fork.at"
                )
        if config.task_order.restart or config.task_order.joint:
            raise ValueError(
                "with the orders joint and single_task no task goes on from the ones before alone. Leave fork.run and "
                "fork.at out"
            )

    def _check_data(self, tasks: Sequence[Task], config: Config) -> None:
        content = read_json(self.folder / "data.json")
        known, labels = content.get("fingerprints", {}), content.get("labels")
        changed = [task.name for task in tasks[: self.count] if known.get(task.name) != fingerprint(task)]
        if changed:
            raise ValueError(
                f"the data of {', '.join(changed)} are others than {self.folder} learned and was scored on. Leave them "
                "as they were (task_order.base, task_order.data_seed, task.*), or train from the start: without "
                "fork.run and fork.at"
            )
        if family_kind(config.backbone.family) == "classifier" and labels != list(label_union(tasks)):
            raise ValueError(
                f"the tasks of this order have the labels {', '.join(label_union(tasks))}, and the head of "
                f"{self.folder} has {', '.join(labels or [])}: another head is another model. Train from the start: "
                "without fork.run and fork.at"
            )

    def _check_methods(self, config: Config, method: Chain) -> None:
        """The methods are those that learned the tasks, and what they know of these was made as they are now asked to.

        Numbers with a decimal point, such as strengths, give nothing that a method keeps another form; what a method
        that changes the model's structure learned has them in it.
        """
        then, other = self.config.method, ""
        if self.count > 1:
            other = f" (or go on from the first task, which most methods can: --at {self._first})"
        if list(config.method) != list(then):
            chosen = [word for word in self._typed() if key_of(word) == "method"] or ["its method"]
            raise ValueError(
                f"{' + '.join(config.method)} cannot go on from {self.at}, which {' + '.join(then)} learned: what it "
                f"would know of, or build for, the tasks up to there is missing. Go on with {chosen[0]}{other}"
            )
        for name, node in config.method.items():
            builds = type(method.methods[name]).build is not Method.build
            if not builds and not method.methods[name].state:
                continue
            for key, value in node.items():
                before = then[name].get(key)
                free = key == "learning_rate" or (isinstance(value, float) and isinstance(before, float) and not builds)
                if value != before and not free:
                    raise ValueError(
                        f"method.{name}.{key}={value}: what {name} has of the tasks until {self.at} was made with "
                        f"{before}. Type: method.{name}.{key}={written(before)}{other}"
                    )


@dataclass(frozen=True)
class Given:
    """What a run has of one task.

    Attributes:
        new: parameters that exist since the task, which its snapshot changes from zeros.
        known: the methods' state after the task; None where they find it out themselves, or know nothing.
        lines: numbers of its steps.
        trainable: entries that trained.
        mask: its entry of masks.json.
        plain: methods find out themselves what they need to know of it.
    """

    parent: Parent
    path: Path
    snapshot: Snapshot
    new: Collection[str]
    known: dict[str, Any] | None
    lines: Sequence[dict[str, Any]]
    trainable: int
    mask: Mapping[str, Any] | None
    plain: bool

    def trains(self, model: nn.Module) -> Trained:
        """What the task changed, as what trains in it; tensors of which it changed all stand beside selected entries
        as what the method wrote."""
        changes = self.snapshot.changes
        selected = {name: change.index for name, change in changes.items() if change.index is not None}
        whole = {name for name, change in changes.items() if change.index is None}
        if not selected:
            return Trained() if whole == set(Trained().of(model)) else Trained(names=whole)
        parameters = dict(model.named_parameters())
        written = {name: _changed(parameters[name], changes[name].bits) for name in whole}
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        return Trained(selected=selected, selectable=sizes, written=written)

    def check_before(self, learner: Learner) -> None:
        """The weights are those that the task began with.

        Raises:
            ValueError: they are not, or the model has not all of them.
        """
        header, parameters = self.snapshot.header, learner.parameters()
        missing = [name for name, shape in header.shapes.items() if name not in parameters]
        other = [n for n, shape in header.shapes.items() if n in parameters and parameters[n].shape != shape]
        if missing or other or not self._is(learner, header.parent, header.shapes.keys() - self.new):
            reason = (
                f"it has no {missing[0]}" if missing else f"{other[0]} has another shape" if other else "they differ"
            )
            raise ValueError(
                f"the model is not the one that {self.parent.folder} began {header.task} with ({reason}). A fork keeps "
                "backbone and seed, and methods that change the model's structure go on from themselves alone"
            )

    def check_after(self, learner: Learner) -> None:
        """The weights are those that the task ended with.

        Raises:
            Damaged: they are not.
        """
        header = self.snapshot.header
        if not self._is(learner, header.weights, header.shapes):
            raise Damaged(self.path, "does not lead to the weights that it promises")

    @torch.no_grad()
    def put(self, learner: Learner) -> None:
        """The model as it is after the task, of which it was known what trains."""
        parameters, written = learner.parameters(), learner.what.written
        for name in self.new:
            parameters[name].zero_()
        changes = {name: change for name, change in self.snapshot.changes.items() if name not in written}
        apply_snapshot(parameters, Snapshot(self.snapshot.header, changes))

    def _is(self, learner: Learner, digest: str, names: Collection[str]) -> bool:
        parameters = learner.parameters()
        return weights_hash({name: parameters[name] for name in names}) == digest


def read_parent(folder: Path, at: str) -> Parent:
    """A run up to a task.

    Raises:
        ValueError: there is no such run or task, or what the tasks changed is not there.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run: it has no config.yaml. A run is named by its folder, which it prints")
    config = check(read_config(folder / "config.yaml"))
    names = [task.name for task in config.task_order.tasks]
    if at not in names:
        close = nearest(at, names)
        typed = f" Type: --at {close}" if close else ""
        raise ValueError(f"{folder} has no task {at!r}, but {', '.join(names)}.{typed}")
    count = names.index(at) + 1
    snapshots = [folder / "snapshots" / f"{i:02d}_{name}.safetensors" for i, name in enumerate(names[:count])]
    missing = [path.stem.partition("_")[2] for path in snapshots if not path.is_file()]
    if missing:
        save = config.snapshots.save
        why = (
            "it has not learned it yet" if save == "all" else f"it ran with snapshots.save={save}, and a fork needs all"
        )
        raise ValueError(f"{folder} has no snapshot of {missing[0]}: {why}")
    return Parent(folder, config, count, snapshots)


def state_file(folder: Path, name: str) -> Path:
    """Where a run keeps what its methods knew after a task, by the name of the task's snapshot."""
    return folder / STATES / f"{name}.safetensors"


def keep_state(folder: Path, task: Task, method: Method) -> None:
    """Keep what methods know after a task, if they know anything: whole, for runs that have all of the weights."""
    state = method.state_dict()
    if any(state.values()):
        once(write_tree)(state_file(folder, f"{task.index:02d}_{task.name}"), collected(state), {})


def take_task(
    learner: Learner, method: Chain, task: Task, watch: Watch, given: Given, fresh: bool, folder: Path
) -> None:
    """A task that another run learned, in the place of learning it.

    Args:
        fresh: as of `learn_task`.
        folder: of this run.
    """
    header = given.snapshot.header
    learner.measured.begin()
    learner.grow(task)
    given.check_before(learner)
    learner.choose(task, given.trains(learner.model))
    asked = [each for each in method.methods.values() if not each.chooses] if given.plain else []
    if fresh:
        with learner.clock.phase("prepare"):
            for each in asked:
                each.before_task(learner, task)
        watch.on_prepared(task)
    with learner.clock.phase("snapshot"):
        learner.begin()
        watch.on_begin(task)
    given.put(learner)
    given.check_after(learner)
    kept = Kept({}, None, given.lines, str(given.parent.folder), header.parent, header.weights, "fork")
    watch.on_reused(task, kept)
    watch.on_trained(task, given.trainable, Best())
    if given.mask is not None:
        once(write_masks)(folder, given.mask)  # which knows what was selected from
    learner.finish()
    if given.known is not None:
        method.load_state_dict(given.known)
    for each in asked:
        each.after_task(learner, task)
    learner.measured.found = {}


def _watches(method: Method) -> bool:
    """Whether a method has to see how the first task is learned, or learns it in a model of other parts."""
    if type(method).build is not Method.build:
        return True
    if not method.chooses and method.plain_at_first():
        return False
    hooks = ("after_task", "conclude") if method.chooses else ("after_task", "before_task", "after_step", "steps")
    return any(getattr(type(method), hook) is not getattr(Method, hook) for hook in hooks)


def _changed(parameter: Tensor, bits: Tensor) -> Tensor:
    """A tensor with the bits of its change."""
    value = parameter.detach().clone()
    value.view(INTEGERS[value.dtype.itemsize]).bitwise_xor_(bits.to(value.device))
    return value


def _differing(now: Any, then: Any, key: str) -> str:
    """The first key that has another value."""
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        for name in now:
            if now[name] != then.get(name):
                return _differing(now[name], then.get(name), f"{key}.{name}")
    return f"{key}={json.dumps(now)}"
