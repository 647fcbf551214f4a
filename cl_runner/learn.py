"""One task, from what matters to what is remembered of it. Runs and tests call the same function."""

from __future__ import annotations

from typing import Any

from cl_runner.beginnings import Beginnings, Kept
from cl_runner.config import Training
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.train import Best, Progress, stage_of, train_task


class Watch:
    """What happens around and inside a task; override what you want to know. Each may raise to stop."""

    def on_prepared(self, task: Task) -> None:
        """It is known what trains, and what the methods protect; not called on resume."""

    def on_begin(self, task: Task) -> None:
        """The model is what it was before the task, but for what the method wrote itself."""

    def on_step(self, task: Task, progress: Progress, numbers: dict[str, float]) -> None:
        """A batch is done."""

    def on_reused(self, task: Task, kept: Kept) -> None:
        """The task's training is another run's: these are the numbers of its steps."""

    def steps_of(self, task: Task) -> list[dict[str, Any]]:
        """The numbers of all steps of a task, also of those before an interruption."""
        raise NotImplementedError

    def validate(self, task: Task) -> float:
        """Percent on the task's validation split, and on what methods add to it; asked where an epoch is selected."""
        raise NotImplementedError

    #: Whether `on_epoch` wants to be called.
    every_epoch = False

    def on_epoch(self, task: Task, epoch: int) -> None:
        """An epoch of a task has ended, from 1; its last batch is told of afterwards."""

    def on_trained(self, task: Task, entries: int, best: Best) -> None:
        """The model has learned: so many entries trained, and they are of this epoch, if one was selected."""


def learn_task(
    learner: Learner,
    method: Method,
    task: Task,
    training: Training,
    watch: Watch,
    resume: dict[str, Any] | None = None,
    fresh: bool = True,
    flops_per_token: float | None = None,
    shared: Beginnings | None = None,
) -> None:
    """Learn one task at the learner's weights.

    Args:
        resume: training's part of a checkpoint inside this task, or None.
        fresh: whether the method's state does not hold yet what it finds out before the task.
        flops_per_token: of training in this task, where `training.budget` counts them.
        shared: where runs share what came of tasks that they train alike, if this one does.
    """
    learner.measured.change = task.importance
    learner.grow(task)
    if fresh:
        learner.measured.begin()
        with learner.clock.phase("prepare"):
            method.select(learner, task)
            learner.choose(task, method.trains(learner, task))
            method.before_task(learner, task)
        watch.on_prepared(task)
        learner.measured.found = {}
    else:
        learner.choose(task, method.trains(learner, task))
    with learner.clock.phase("snapshot"):
        learner.begin()
        watch.on_begin(task)
    ended: dict[str, Any] = {}  # the state behind the last step

    def on_step(progress: Progress, numbers: dict[str, float]) -> None:
        progress.shared = name
        if name and progress.done:
            ended.update(progress.state_dict())
        watch.on_step(task, progress, numbers)

    with learner.clock.phase("train"):
        name, kept = "", None
        if resume is not None:
            name = resume.get("shared", "")  # of the state that the task began in
        elif shared is not None:
            name = shared.named(learner, method, task)
            kept = shared.taken(learner, name) if name else None
        if kept is not None:
            resume = kept.training
            if kept.method is not None:
                method.load_state_dict(kept.method)
            watch.on_reused(task, kept)
        entries, best = train_task(
            learner,
            method,
            task,
            stage_of(training, task),
            training,
            resume,
            on_step,
            (lambda: watch.validate(task)) if training.select == "best_validation" else None,
            flops_per_token,
            (lambda epoch: watch.on_epoch(task, epoch)) if watch.every_epoch else None,
        )
        if kept is not None:
            kept.check(learner)
        elif shared is not None and ended:
            shared.keep(learner, name, ended, method, lambda: watch.steps_of(task))
    method.conclude(learner, task)
    watch.on_trained(task, entries, best)
    learner.finish()
    method.after_task(learner, task)
    learner.measured.found = {}
