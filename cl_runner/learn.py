"""One task, from what matters to what is remembered of it. Runs and tests call the same function."""

from __future__ import annotations

from typing import Any

from cl_runner.config import Training
from cl_runner.data.task import Task
from cl_runner.first_task import FirstTasks, Kept
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.train import Best, Progress, stage_of, train_task
from cl_runner.trained import Trained


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

    def validate(self, task: Task) -> float:
        """Percent on the task's validation split, and on what methods add to it; asked where an epoch is selected."""
        raise NotImplementedError

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
    first: FirstTasks | None = None,
) -> None:
    """Learn one task at the learner's weights.

    Args:
        resume: training's part of a checkpoint inside this task, or None.
        fresh: whether the method's state does not hold yet what it finds out before the task.
        flops_per_token: of training in this task, where `training.budget` counts them.
        first: where runs share what came of their first task, if this one is trained alike.
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
    if resume is not None or learner.what != Trained():
        first = None  # half of it is this run's own, or not all of the weights train
    lines: list[dict[str, float]] = []

    def on_step(progress: Progress, numbers: dict[str, float]) -> None:
        if first is not None:
            lines.append(numbers)
        watch.on_step(task, progress, numbers)

    with learner.clock.phase("train"):
        name = "" if first is None else first.named(learner, task)
        kept = None if first is None else first.taken(learner, name)
        if first is not None and kept is not None:
            entries, best = first.put(learner, kept), Best()
            watch.on_reused(task, kept)
        else:
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
            )
            if first is not None:
                first.keep(learner, name, lines)
    method.conclude(learner, task)
    watch.on_trained(task, entries, best)
    learner.finish()
    method.after_task(learner, task)
    learner.measured.found = {}
