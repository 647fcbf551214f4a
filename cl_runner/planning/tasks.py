"""Each task of a run in numbers, from what its methods say: for plans, and for the time that a run has left."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cl_runner.config import Config, TaskOrder
from cl_runner.data.order import listed_place
from cl_runner.data.task import Task, label_union, outlines
from cl_runner.methods.base import Chain
from cl_runner.needs import Added, Needs, Outline
from cl_runner.parts import family_kind
from cl_runner.planning.setting import TaskNumbers
from cl_runner.train import batches_of, number_of_steps, stage_of


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
    one_target = family_kind(config.backbone.family) == "classifier"
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
    order, training = config.task_order, config.training
    stage = stage_of(training, task)
    later = task.index > 0 and not order.restart
    before = [each.train for each in counts[: task.index]]
    own = counts[task.index].train + (sum(before) if order.joint else 0)
    earlier = before if later else []
    trains = (needs.later if later else needs.first) or "all"
    epochs: Sequence[int] = [own] * stage.epochs
    if needs.epochs is not None:
        epochs = needs.epochs(earlier, epochs)
    batches = number_of_steps(epochs, stage, training.max_steps)
    if training.budget.steps is not None and batches:
        batches = training.budget.steps
    passed = _passed(epochs, stage.batch_size, batches)
    added = Added(0) if needs.adds is None else needs.adds(earlier, batches, passed)
    largest_part = stage.batch_size
    if added.examples and needs.largest_part is not None:
        largest_part = needs.largest_part(largest_part)
    selects = training.select == "best_validation" and trains != "nothing"
    ends = [end for end in _ends(epochs, stage.batch_size, batches) if 0 < end < batches + selects]
    return TaskNumbers(
        name=task.name,
        stage=_stage_name(task, order),
        largest_part=largest_part,
        examples=own,
        passed=passed + added.examples,
        steps=batches + added.steps,
        trains=trains,
        measured=_measured(config, needs, own, sum(earlier), trains == "selected"),
        later=later,
        validated=counts[task.index].validation * _candidates(epochs, stage.batch_size, batches, training.select_after)
        if selects
        else 0,
        curve=(0, 0) if trains == "nothing" else _curve(config, task, counts, ends),
        several_parts=added.examples > 0 and needs.several_parts,
    )


def _stage_name(task: Task, order: TaskOrder) -> str:
    """Whose micro_batch cuts a task's parts: its stage's, or its own as the order says."""
    if task.training is not None and task.training.micro_batch is not None:
        return f"tasks.{listed_place(order, task.index)}"
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
    """Examples of the first `steps` batches, epochs repeated; the last batch of each epoch may be smaller."""
    turns, steps = _turns(epochs, batch_size, steps)
    total = turns * sum(epochs)
    for examples, batches in zip(epochs, batches_of(epochs, batch_size), strict=True):
        batches = min(steps, batches)
        total += min(examples, batches * batch_size)
        steps -= batches
    return total


def _candidates(epochs: Sequence[int], batch_size: int, steps: int, after: int) -> int:
    """Epochs within `steps` batches, the one that is cut short included, of which the best is selected.

    Args:
        after: first epochs that are none.
    """
    every = _ends(epochs, batch_size, steps)
    return len({end for end in (*every[after:], steps) if 0 < end <= steps})


def _ends(epochs: Sequence[int], batch_size: int, steps: int) -> list[int]:
    """The last batches of epochs, repeated until `steps` are made; the last ones may be beyond."""
    ends = [*itertools.accumulate(batches_of(epochs, batch_size))]
    turns, _ = _turns(epochs, batch_size, steps)
    return [turn * ends[-1] + end for turn in range(turns + 1) for end in ends] if ends else []


def _curve(config: Config, task: Task, counts: Sequence[Counts], ends: Sequence[int]) -> tuple[int, int]:
    """Evaluations between epochs, and their examples.

    Args:
        ends: the batches within the task at which epochs end, but for the last one where the task ends with it.
    """
    if not config.evaluation.every_epoch:
        return 0, 0
    first = task.index if config.task_order.restart else 0
    number = len(set(ends))
    return number, number * sum(each.evaluated for each in counts[first : task.index + 1])


def _turns(epochs: Sequence[int], batch_size: int, steps: int) -> tuple[int, int]:
    """How often all epochs are gone through, and the batches that are left then."""
    return divmod(steps, max(1, sum(batches_of(epochs, batch_size))))
