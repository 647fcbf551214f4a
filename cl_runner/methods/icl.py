"""In-context learning: nothing trains, examples of the task stand before each question (as TRACE, arXiv:2310.06762)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from cl_runner.batch import Batch
from cl_runner.config import Count
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Prediction
from cl_runner.learner import Learner, derive_seed
from cl_runner.methods.base import Method, Predict
from cl_runner.methods.memory import own_examples
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said
from cl_runner.trained import Trained


@dataclass
class ICL(Method):
    """The first `shots` examples, in a drawn order, that fit beside the question; each task's are the same for all.

    The task of a question is known, before and after the task's turn: every row of the matrix is the same.
    """

    shots: Count
    separator: str

    families: ClassVar[tuple[str, ...]] = ("causal", "seq2seq")
    chooses: ClassVar[bool] = True
    isolates: ClassVar[bool] = True
    trains_nothing: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    reads_chats: ClassVar[bool] = False  # its examples stand before a question as one text
    learns: ClassVar[Said] = "nothing"
    keeps: ClassVar[Said] = "{shots} examples of each task"
    old_data: ClassVar[Said] = "shots"
    told: ClassVar[Said] = "task"

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(first="nothing", later="nothing", shots=self.shots)

    def trains(self, learner: Learner, task: Task) -> Trained:
        return Trained(names=())

    def predict(self, learner: Learner, batch: Batch, inner: Predict) -> list[Prediction]:
        asked = [dataclasses.replace(one, prompt=self._prompt(learner, one)) for one in batch.examples]
        return inner(learner.collate(asked, answers=False))

    def goes_back_to(self, tasks: Sequence[Task], seed: int) -> Sequence[Example]:
        return [shot for task in tasks for shot in self._shots(task, seed)]

    def _prompt(self, learner: Learner, question: Example) -> str:
        shots = self._shots(learner.tasks[question.task], learner.seed)
        *before, own = learner.family.lengths([*shots, question])
        room = learner.family.backbone.max_length - own
        taken = []
        for shot, length in zip(shots, before, strict=True):
            if length <= room:
                room -= length
                taken.append(f"{shot.prompt} {shot.answer}{self.separator}")
        return "".join([*taken, question.prompt])

    def _shots(self, task: Task, seed: int) -> Sequence[Example]:
        own = own_examples(task)
        return random.Random(derive_seed(seed, "icl", task.index)).sample(own, min(self.shots, len(own)))
