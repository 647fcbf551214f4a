"""What each task of a run passes over, from what its methods say: for plans, and for the time that a run has left."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cl_runner.config import Config
from cl_runner.data.task import Task, label_union, outlines
from cl_runner.methods.base import Chain
from cl_runner.needs import Needs, Outline
from cl_runner.planning.setting import TaskNumbers
from cl_runner.train import number_of_steps, stage_of

#: What an example costs beside one that trains.
EVALUATED = 1 / 3
MEASURED = 1.2


@dataclass(frozen=True)
class Counts:
    """Examples of a task: trained on, evaluated, and those that its best epoch is selected by."""

    name: str
    train: int
    evaluated: int
    validation: int = 0


def ask(method: Chain, config: Config, model: nn.Module, longest_answer: int | None = None) -> Needs:
    """What the methods of a run need.

    Args:
        model: the architecture without weights.
        longest_answer: tokens of an answer in training; None = as many as the backbone takes.
    """
    tasks = outlines(config.task_order, config.task)
    one_target = config.backbone.family == "classifier"
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[union-attr,operator]  # transformers' own
    outline = Outline(
        tasks=tasks,
        restart=config.task_order.restart,
        one_target=one_target,
        targets=1 if one_target else longest_answer or config.backbone.max_answer_length or 0,
        outputs=len(label_union(tasks)) if one_target else vocabulary,
    )
    return method.needs(model, outline)


def task_numbers(config: Config, needs: Needs, counts: Sequence[Counts]) -> tuple[TaskNumbers, ...]:
    """Each task in numbers; all weights train where the methods do not say what does."""
    tasks = outlines(config.task_order, config.task)
    return tuple(_numbers(config, needs, task, counts) for task, _ in zip(tasks, counts, strict=True))


def _numbers(config: Config, needs: Needs, task: Task, counts: Sequence[Counts]) -> TaskNumbers:
    training, change = config.training, config.training.tasks.get(task.name)
    stage = stage_of(training, task)
    before = [each.train for each in counts[: task.index]]
    own = counts[task.index].train + (sum(before) if config.task_order.joint else 0)
    later = task.index > 0 and not config.task_order.restart
    trains = (needs.later if later else needs.first) or "all"
    epochs: Sequence[int] = [own] * stage.epochs
    if later and needs.epochs is not None:
        epochs = needs.epochs(before, epochs)
    steps = number_of_steps(epochs, stage, training.max_steps)
    selects = training.select == "best_validation" and trains != "nothing"
    return TaskNumbers(
        name=task.name,
        stage=_stage_name(task) if change is None or change.micro_batch is None else f"tasks.{task.name}",
        largest_part=math.ceil(stage.batch_size * (1 + needs.extra_in_pass * later)),
        has_more_parts=later and needs.extra > needs.extra_in_pass,
        examples=own,
        passed=round(_passed(epochs, stage.batch_size, steps) * (1 + needs.extra * later)),
        steps=steps,
        trains=trains,
        measured=_measured(config, needs, own, sum(before) if later else 0, trains == "selected"),
        later=later,
        validated=counts[task.index].validation * _epochs_ended(epochs, stage.batch_size, steps) if selects else 0,
    )


def _stage_name(task: Task) -> str:
    return "incremental" if task.index else "base"


def _measured(config: Config, needs: Needs, own: int, before: int, selects: bool) -> int:
    """Examples that importance is measured on; the same ones serve all methods."""
    wanted = [
        before if "old_tasks" in needs.measures else 0,
        own if "new_task" in needs.measures and selects else 0,
        own if "last_task" in needs.measures else 0,
    ]
    limit = config.importance.max_examples
    return max(wanted) if limit is None else min(max(wanted), limit)


def _passed(epochs: Sequence[int], batch_size: int, steps: int) -> int:
    """Examples of the first `steps` batches; the last one of each epoch may be smaller."""
    total = 0
    for examples in epochs:
        batches = min(steps, math.ceil(examples / batch_size))
        total += min(examples, batches * batch_size)
        steps -= batches
    return total


def _epochs_ended(epochs: Sequence[int], batch_size: int, steps: int) -> int:
    """Epochs within `steps` batches, the one that is cut short included."""
    ends = itertools.accumulate(math.ceil(examples / batch_size) for examples in epochs)
    return len({min(end, steps) for end in ends} - {0})


def units(config: Config, method: Chain, model: nn.Module, counts: Sequence[Counts]) -> dict[str, float]:
    """The work that a run announces, so that its time left can be told.

    Args:
        model: the architecture without weights.
        counts: of each task.

    Returns:
        `<task>/<phase>`, or `evaluate` before the first task -> expected cost, in examples that train.
    """
    sizes = [each.evaluated for each in counts]
    seen = config.evaluation.tasks == "seen"
    found = {"evaluate": 0.0 if seen else EVALUATED * sum(sizes)}
    for number, task in enumerate(task_numbers(config, ask(method, config, model), counts), 1):
        if task.measured:
            found[f"{task.name}/importance"] = MEASURED * config.importance.passes * task.measured
        if task.trains != "nothing":
            found[f"{task.name}/train"] = task.passed + EVALUATED * task.validated
        found[f"{task.name}/evaluate"] = EVALUATED * sum(sizes[:number] if seen else sizes)
    return found
