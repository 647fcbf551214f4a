"""On-policy replay (arXiv:2605.29495): the model's own answers to old prompts are replayed, the best of them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from cl_runner.config import Count, Positive, Sampling
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.memory import own_examples
from cl_runner.needs import Asks, Needs, Outline
from cl_runner.said import Said
from cl_runner.sparse.importance import cap


@dataclass
class OPR(Method):
    """After a task the model answers the training prompts of all tasks so far; of each the best join the next task.

    Best by the task's own metric (RU), or by the mean log-probability of the answer's tokens (SC). They are learned
    like any example: no teacher, no further loss.
    """

    budget: Count  # examples of all tasks together
    rank_by: Literal["metric", "confidence"]
    choose: Literal["best", "worst", "random"]
    candidates: Count | None
    temperature: Positive
    batch_size: Count

    state: ClassVar[tuple[str, ...]] = ("kept",)
    protects: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = "the model's answers to {budget} prompts"
    old_data: ClassVar[Said] = "answers"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.kept: list[list[int | str]] = []  # task, row and the model's answer

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        def epochs(earlier: Sequence[int], epochs: Sequence[int]) -> Sequence[int]:
            shares = [min(self.budget // len(earlier), examples) for examples in earlier] if earlier else []
            return [examples + sum(shares) for examples in epochs]

        def texts(so_far: Sequence[int], following: int) -> Sequence[int]:
            return [examples if self.candidates is None else min(self.candidates, examples) for examples in so_far]

        return Needs(epochs=epochs, asks=Asks(texts, self.batch_size, reads=self.rank_by == "confidence"))

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        if not learner.has_old_tasks(task):
            return epochs
        own = {index: own_examples(learner.tasks[index]) for index in range(task.index)}
        old = [dataclasses.replace(own[int(i)][int(row)], answer=str(answer)) for i, row, answer in self.kept]
        return [[*epoch, *old] for epoch in epochs]

    @torch.no_grad()
    def after_task(self, learner: Learner, task: Task) -> None:
        if learner.restart or task.index == len(learner.tasks) - 1:
            return
        learner.model.eval()
        self.kept = []
        seen = learner.tasks[: task.index + 1]
        with learner.clock.phase("answers"):
            for old in seen:
                prompts = cap(own_examples(old), self.candidates, learner.seed_of("opr", task.index, old.index))
                answered = self._answered(learner, task, old, prompts)
                best = self._ranked(learner, old, prompts, answered)[: self.budget // len(seen)]
                self.kept += [[old.index, answered[i].row, answered[i].answer] for i in best]

    def _answered(self, learner: Learner, task: Task, old: Task, prompts: Sequence[Example]) -> list[Example]:
        """The prompts with the model's own answers."""
        how = dataclasses.replace(
            learner.answering(old), sampling=Sampling(temperature=self.temperature, top_k=None, top_p=None)
        )
        found = list(prompts)
        for number, positions in enumerate(learner.by_length(prompts, self.batch_size, answers=False)):
            torch.manual_seed(learner.seed_of("opr", task.index, old.index, number))
            batch = learner.collate([prompts[i] for i in positions], answers=False)
            for position, prediction in zip(positions, learner.answer(batch, how), strict=True):
                found[position] = dataclasses.replace(prompts[position], answer=prediction.text)
            learner.progress("answer old prompts", min((number + 1) * self.batch_size, len(prompts)), len(prompts))
        return found

    def _ranked(
        self, learner: Learner, old: Task, prompts: Sequence[Example], answered: Sequence[Example]
    ) -> Sequence[int]:
        """Positions, the first to be kept first; of equal ones the order is the data's."""
        if self.choose == "random":
            return random.Random(learner.seed_of("opr", old.index)).sample(range(len(prompts)), len(prompts))
        if self.rank_by == "metric":
            worth = learner.scores(old, [one.answer for one in answered], prompts)
        else:
            worth = self._confidence(learner, answered)
        sign = -1 if self.choose == "best" else 1
        return sorted(range(len(prompts)), key=lambda i: sign * worth[i])

    def _confidence(self, learner: Learner, answered: Sequence[Example]) -> list[float]:
        """Mean of log p over the tokens of each answer, its end included."""
        found = [0.0] * len(answered)
        for positions in learner.by_length(answered, self.batch_size):
            output = learner.forward(learner.collate([answered[i] for i in positions]))
            losses = nn.functional.cross_entropy(output.logits.float(), output.targets, reduction="none")
            for row, position in enumerate(positions):
                found[position] = -float(losses[output.rows == row].mean())
        return found
