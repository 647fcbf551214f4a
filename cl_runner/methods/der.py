"""DER++: a reservoir of examples with the logits that they had (Buzzega et al. 2020, arXiv:2004.07211)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import Count, NonNegative
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.memory import Place, enter, own_of, recall
from cl_runner.needs import Added, Needs, Outline
from cl_runner.said import Said


@dataclass
class DER(Method):
    """L + alpha * mean (z - h(x'))^2 + beta * CE(y'', h(x'')), x' and x'' drawn apart from the memory (eq. 6).

    z are the logits of all targets: of a language model a row of the vocabulary's size for every token of the answer.
    """

    size: Count
    alpha: NonNegative
    beta: NonNegative

    state: ClassVar[tuple[str, ...]] = ("memory", "logits", "seen")
    protects: ClassVar[bool] = True
    by_answers: ClassVar[bool] = True
    keeps_passes: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = (
        "a reservoir of {size} examples, as numbers of rows, with their logits: 4 bytes per label of each example, or "
        "per token of the vocabulary and of its answer"
    )
    old_data: ClassVar[Said] = "learned"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.memory: list[Place] = []
        self.logits: list[Tensor] = []  # [targets, V] of each
        self.seen = 0
        self._drawn: dict[Example, list[Tensor]] = {}  # for the step under way; one may be drawn from several slots
        self._entering: dict[int, Example] = {}  # by slot

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(
            memory_bytes=self.size * outline.logits_bytes,
            sized_by=("size", self.size),
            teacher="kept",
            adds=lambda earlier, batches, examples: Added(2 * examples),
            several_parts=True,
        )

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        new = steps[0][0].examples
        chance = random.Random(learner.seed_of("der", task.index, step))
        parts: list[Part] = []
        if self.memory:
            slots = chance.choices(range(len(self.memory)), k=len(new))
            old = recall(learner.tasks, [self.memory[slot] for slot in slots])
            self._drawn = {example: [] for example in old}
            for example, slot in zip(old, slots, strict=True):
                self._drawn[example].append(self.logits[slot])
            again = recall(learner.tasks, chance.choices(self.memory, k=len(new)))
            parts = [Part(old, self.alpha, "der_logits", labels=False), Part(again, self.beta, "der_labels")]
        own = own_of(new, task, learner.tasks)  # what others replay does not enter again
        taken = enter(self.memory, self.size, self.seen, own, chance)
        self.seen += len(own)
        # Of two that take one slot the later one stays. Their logits follow when they are known.
        self._entering = {slot: example for example, slot in zip(own, taken, strict=True) if slot is not None}
        self.logits += [torch.empty(0)] * (len(self.memory) - len(self.logits))
        return [[*steps[0], *parts], *steps[1:]]

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        if part.kind == "new":
            rows = {example: row for row, example in enumerate(batch.examples)}
            for slot, example in self._entering.items():
                if example in rows:
                    self.logits[slot] = output.logits[output.rows == rows[example]].detach().clone()
        if part.kind != "der_logits":
            return 0.0
        kept = torch.cat([self._drawn[example].pop() for example in batch.examples]).to(output.logits.device)
        distance = (output.logits - kept).square().mean()
        learner.log("der/logits", float(distance.detach()))
        return distance
