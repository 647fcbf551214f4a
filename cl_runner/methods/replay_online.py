"""Experience replay: each batch brings as many examples of a reservoir (Chaudhry et al. 2019, arXiv:1902.10486)."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from cl_runner.batch import Part
from cl_runner.config import Count
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.memory import Place, enter, own_of, recall
from cl_runner.needs import Added, Needs, Outline
from cl_runner.said import Said


@dataclass
class ReplayOnline(Method):
    """Each example that is trained on may enter the memory, uniformly over all that came by (algorithm 2, reservoir).

    The loss is the mean over a batch and what is drawn for it; what is replayed does not enter again.
    """

    size: Count

    state: ClassVar[tuple[str, ...]] = ("memory", "seen")
    protects: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = "a reservoir of {size} examples, as numbers of rows"
    old_data: ClassVar[Said] = "learned"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.memory: list[Place] = []
        self.seen = 0  # examples that came by

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(adds=lambda earlier, batches, examples: Added(examples), several_parts=True)

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        new, *more = steps[0]
        chance = random.Random(learner.seed_of("replay_online", task.index, step))
        old = recall(learner.tasks, chance.choices(self.memory, k=len(new.examples))) if self.memory else []
        own = own_of(new.examples, task, learner.tasks)
        enter(self.memory, self.size, self.seen, own, chance)
        self.seen += len(own)
        if not old:
            return steps
        of_new, of_old = (sum(learner.family.targets(examples)) for examples in (new.examples, old))
        share = of_new / (of_new + of_old)
        parts = [dataclasses.replace(new, weight=share * new.weight), Part(old, (1 - share) * new.weight, "replay")]
        return [[*parts, *more], *steps[1:]]
