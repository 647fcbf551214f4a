"""What a method needs, in numbers, as it says itself: what `plan` is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

#: All weights; selected entries; some tensors as a whole; values that texts retrieve; none.
Trains = Literal["all", "selected", "listed", "retrieved", "nothing"]
#: (training examples of each task before, examples of each epoch) -> examples of each epoch.
Epochs = Callable[[Sequence[int], Sequence[int]], Sequence[int]]


@dataclass(frozen=True)
class Needs:
    """What a method holds, what it trains if it chooses, and the data that it passes over.

    Attributes:
        first, later: what trains in a task without old ones, and with; None = the method does not choose.
        candidates: entries that are selected from, by parameter name.
        fraction: of them that is selected.
        clustered: the largest scores lie in few input columns; others scatter.
        listed: entries of the tensors that train as a whole.
        measures: data that importance is measured on.
        measured: entries of what it is measured of, by parameter name; None = of all weights.
        sums: numbers per weight that the importance pass fills: Fisher, or gradient and Fisher.
        sum_item: bytes of each.
        mean_bytes: per weight, of the mean that the method takes of those sums.
        entry_bytes: held per trained entry while a task with old ones trains, apart from its values before.
        weight_bytes: held per weight from the first task on.
        example_bytes: held per training example while a task with old ones trains.
        memory_bytes: held for a memory of old examples.
        teacher: outputs of the old weights, computed for every batch.
        epochs: how many examples each epoch goes through; None = the task's own.
        extra: examples that a step adds for each one of its batch, once there are old tasks.
    """

    first: Trains | None = None
    later: Trains | None = None
    candidates: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fraction: float = 0.0
    clustered: bool = False
    listed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    measures: frozenset[Literal["old_tasks", "new_task", "last_task"]] = frozenset()
    measured: Mapping[str, int] | None = None
    sums: int = 1
    sum_item: int = 4
    mean_bytes: int = 0
    entry_bytes: int = 0
    weight_bytes: int = 0
    example_bytes: int = 0
    memory_bytes: int = 0
    teacher: Literal["logits", "probabilities"] | None = None
    epochs: Epochs | None = None
    extra: float = 0.0
