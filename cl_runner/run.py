"""The story of a run, in order: build, then learn and evaluate task after task, then report.

The run's folder is its identity. A finished run says so; an interrupted one goes on from its last checkpoint and ends
with the same bits as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from cl_runner import checkpoint, distributed
from cl_runner.beginnings import Beginnings
from cl_runner.build import recompute_activations
from cl_runner.compose import Request
from cl_runner.damage import check_begun, what_to_type
from cl_runner.data import account
from cl_runner.data.task import Task
from cl_runner.digests import Damaged, read_json
from cl_runner.ends import finish, guarded
from cl_runner.families.base import Family
from cl_runner.handed_out import begun
from cl_runner.journal import Journal, Scene
from cl_runner.learn import learn_task
from cl_runner.learner import Learner
from cl_runner.lock import locked
from cl_runner.matrix import START
from cl_runner.parent import Parent, keep_state, read_parent, take_task
from cl_runner.planning.begun import plan_once
from cl_runner.planning.fitting import applied
from cl_runner.planning.work import units
from cl_runner.prepared import prepare
from cl_runner.record import check_environment, header, write_request
from cl_runner.sequences import Chained
from cl_runner.sparse.measured import Measured


def execute(request: Request, tasks: Sequence[Task]) -> int:
    """Run a checked request to its end and return the exit status.

    0 done (also if it was done before), 1 failed, 2 the request does not fit model, data or folder, 75 interrupted.
    """
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        run = Run(request, tasks)
        # The folder is the run's: the first of its processes holds it for all of them.
        with locked(request.folder / "state") if distributed.first() else nullcontext():
            if distributed.shared((request.folder / "COMPLETED").is_file()):
                print(f"Another process has just completed this run: {request.folder}")
                return 0
            saved = run.saved()
            run.check_parent(saved)
            return run.guarded(saved)
    except ValueError as error:
        distributed.part()
        distributed.say(error)
        return 2
    except distributed.Elsewhere as error:
        return distributed.ended(error)


class Run:
    """One run. Making it checks that methods, model and data fit, and loads no weights."""

    def __init__(self, request: Request, tasks: Sequence[Task]):
        self.request, self.config = request, request.config
        self.prepared = prepare(request.config, tasks)
        self._sharded = distributed.size() > 1 and request.config.hardware.shard
        self._parent: Parent | None = None

    def saved(self) -> dict[str, Any] | None:
        """The last checkpoint, or None; what a run reads back of its folder is what it wrote.

        Raises:
            ValueError: it is not; the text says what is whole and what to type.
        """
        folder = self.request.folder
        try:
            # Of weights in parts a process takes its rows of what is saved.
            saved = checkpoint.load(folder / "state", None if self._sharded else str(self.prepared.device))
            if saved is None:
                _forget_environment(folder)
                return None
            lines = check_begun(folder, saved["log"])
            lines += filter(None, [distributed.once(check_environment)(self.request, self.prepared.device.type)])
        except Damaged as error:
            raise ValueError(what_to_type(folder, error)) from None
        for line in lines:
            print(line, flush=True)
        return saved

    def check_parent(self, saved: dict[str, Any] | None) -> None:
        """Find what a fork takes of the run that it goes on from, while it has not taken all of it.

        Args:
            saved: the last checkpoint, or None.

        Raises:
            ValueError: this run cannot go on from that one; the text says what to type.
        """
        fork, done = self.config.fork, saved["task"] if saved else 0
        names = [task.name for task in self.prepared.tasks]
        if fork.run is None or fork.at is None or (fork.at in names[:done]):
            return
        self._parent = read_parent(Path(fork.run), fork.at)
        self._parent.check(self.config, self.prepared.tasks, self.prepared.method)

    def guarded(self, saved: dict[str, Any] | None) -> int:
        """The story with its ends, as an exit status. Call it holding the run's lock.

        Args:
            saved: the last checkpoint, or None.
        """
        return guarded(self.request, self.prepared, lambda scene: self.story(scene, saved))

    def story(self, scene: Scene, saved: dict[str, Any] | None) -> None:
        """Build, learn task after task, report."""
        with scene.clock.phase("load"):
            learner = self._build(scene)
            journal = Journal(self.request, learner, self.prepared.method, self.prepared.probes, scene)
            kept = learner.weights() if learner.restart else {}
            if saved is not None:
                journal.load(saved)
            journal.open(saved)
            scene.console.plan(units(self.config, self.prepared, self._plan()))
            scene.console.order(len(self.prepared.tasks))
            if distributed.size() > 1 and self.prepared.method.keeps_passes:
                scene.console.line(
                    f"Note: {self.request.method} keeps what it sees of each pass of training, so that every process "
                    "does all of them: several train no faster than one. Evaluation is shared out"
                )
        if not journal.rows:
            journal.evaluate(START)
            journal.save("begin", 0)
        for task in self.prepared.tasks[saved["task"] if saved else 0 :]:
            resumed = saved if saved and saved["task"] == task.index and saved["stage"] != "begin" else None
            self._learn(scene, learner, journal, task, kept, resumed)
        distributed.once(finish)(self.request, self.prepared, journal, scene)

    def _build(self, scene: Scene) -> Learner:
        """Say what this run is, and make the starting model."""
        config, prepared = self.config, self.prepared
        scene.console.header("cl_runner", header(self.request, prepared.tasks, str(prepared.device)))
        for text in prepared.said:
            scene.console.line(f"{config.backbone.pretrained}: {text}")
        everything = Chained([task.examples for task in prepared.own_tasks])
        prepared.family.tokenize(everything, prepared.cache / "tokens" if prepared.cache else None)
        own_tasks = [_accounted(task, prepared.family) for task in prepared.own_tasks]
        distributed.once(write_request)(self.request, own_tasks, prepared.device.type)
        for task in own_tasks:
            for line in account.said(task.name, task.account) if task.account else ():
                scene.console.line(line)
        # From here on the run computes by them; its name and its record stay what was asked.
        self.request = applied(self.request, distributed.once(plan_once)(self.request, prepared, scene.console.line))
        config = self.config = self.request.config
        model = begun(prepared.family, config.seed) if self._sharded else prepared.family.build(config.seed)[0]
        if config.hardware.gradient_checkpointing:
            recompute_activations(model)
        return Learner(
            model,
            prepared.family,
            prepared.tasks,
            config.seed,
            prepared.device,
            prepared.method,
            precision=config.hardware.precision,
            order=config.task_order,
            evaluation=config.evaluation,
            measured=Measured(config.importance),
            measuring=prepared.measuring,
            cache=prepared.cache,
            store=self.request.folder / "state" / "kept",
            clock=scene.clock,
            progress=scene.shown,
            warn=scene.console.line,
            sharded=self._sharded,
            apart=torch.device("cpu") if config.hardware.offload == "optimizer" else None,
        )

    def _learn(
        self,
        scene: Scene,
        learner: Learner,
        journal: Journal,
        task: Task,
        kept: dict[str, Tensor],
        resumed: dict[str, Any] | None,
    ) -> None:
        """One task: what matters (offline), training (online), what changed, and every test set."""
        scene.clock.current = task.index
        scene.console.task(task.index, task.name)
        if learner.restart and task.index:
            learner.put(kept)
            journal.changes.restart()
        if self._parent is not None and task.index < self._parent.count:
            given = self._parent.given(task, self.prepared.method, learner.device)
            take_task(learner, self.prepared.method, task, journal, given, resumed is None, self.request.folder)
        else:
            self._train(learner, journal, task, resumed)
        if self.config.checkpoint.after_tasks:
            keep_state(self.request.folder, task, self.prepared.method)
        journal.learned(task)

    def _train(self, learner: Learner, journal: Journal, task: Task, resumed: dict[str, Any] | None) -> None:
        learn_task(
            learner,
            self.prepared.method,
            task,
            self.config.training,
            journal,
            resume=resumed["training"] if resumed else None,
            fresh=resumed is None,
            flops_per_token=self._flops_per_token(task),
            shared=self._shared(task),
        )

    def _shared(self, task: Task) -> Beginnings | None:
        """Where runs share what came of tasks; None where this one does not."""
        if self.config.reuse == "none":
            return None
        assert self.prepared.cache is not None, "it was checked that there is one"
        folder, flops = self.prepared.cache / "trained", self._flops_per_token(task)
        return Beginnings(folder, str(self.request.folder), self.config, flops)

    def _flops_per_token(self, task: Task) -> float | None:
        """What a token of a task costs, as plan.json has it, where a budget counts that; None without a plan."""
        plan = None if self.config.training.budget.flops is None else self._plan()
        return None if plan is None else float(plan["flops_per_token"][task.index])

    def _plan(self) -> dict[str, Any] | None:
        """The content of plan.json; None without one."""
        path = self.request.folder / "plan.json"
        return read_json(path) if path.is_file() else None


@distributed.once
def _forget_environment(folder: Path) -> None:
    """Nothing that counts was computed in it."""
    (folder / "environment.json").unlink(missing_ok=True)


def _accounted(task: Task, family: Family) -> Task:
    """A task whose account tells as well what of its texts and answers is cut, and holds special tokens."""
    if task.account is None:
        return task
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    found = {split: family.noted(examples, split == "train") for split, examples in splits.items() if examples}
    return dataclasses.replace(task, account=task.account.with_notes(found))
