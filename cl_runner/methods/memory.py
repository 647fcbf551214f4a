"""Memories of old examples: which were kept, by task and row, so that a checkpoint holds numbers and no texts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.sparse.importance import cap

#: Task and row of an example.
Place = list[int]


def place_of(example: Example) -> Place:
    """Where an example is found again by `recall`."""
    assert example.task >= 0, "an example of no task cannot be remembered"
    return [example.task, example.row]


def own_examples(task: Task) -> Sequence[Example]:
    """A task's own training examples, row by row: all of them, or the last ones of a joint order's task."""
    return task.train[-1 - task.train[-1].row :]


def kept_examples(task: Task, count: int, kept: Literal["random", "first"], seed: int) -> list[Example]:
    """`count` of a task's own training examples, or all if it has fewer, row by row.

    Args:
        kept: drawn at random, or the first ones.
    """
    examples = own_examples(task)
    return list(examples[:count]) if kept == "first" else cap(examples, count, seed)


def recall(tasks: Sequence[Task], places: Sequence[Place]) -> list[Example]:
    """The training examples at these places."""
    found = [own_examples(tasks[task])[row] for task, row in places]
    assert all(place_of(example) == place for example, place in zip(found, places, strict=True))
    return found


def own_of(examples: Sequence[Example], task: Task, tasks: Sequence[Task]) -> list[Example]:
    """Those of a step's examples that are the task's data: not replayed, nor given another answer.

    Args:
        tasks: all of the run.
    """
    first = task.train[0].task  # of a joint order's task the data of earlier ones are its own
    return [e for e in examples if first <= e.task <= task.index and own_examples(tasks[e.task])[e.row] == e]


def enter(
    memory: list[Place], size: int, seen: int, examples: Sequence[Example], chance: random.Random
) -> list[int | None]:
    """Newcomers take their slots in a reservoir's memory; the slot of each, None = none."""
    slots = reservoir_slots(size, seen, len(examples), chance)
    for example, slot in zip(examples, slots, strict=True):
        if slot is not None:
            memory[slot : slot + 1] = [place_of(example)]
    return slots


def reservoir_slots(size: int, seen: int, count: int, chance: random.Random) -> list[int | None]:
    """Which slot of a reservoir each of `count` newcomers takes; None = none (Vitter 1985, algorithm R).

    Args:
        seen: newcomers before these.
    """
    slots: list[int | None] = []
    for number in range(seen, seen + count):
        slot = number if number < size else chance.randrange(number + 1)
        slots.append(slot if slot < size else None)
    return slots
