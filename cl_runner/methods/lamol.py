"""LAMOL (Sun, Ho & Lee, ICLR 2020, arXiv:1909.03329): one model answers, and writes examples of old tasks itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from cl_runner.config import Fraction
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.generates import Generates
from cl_runner.needs import Asks, Needs, Outline
from cl_runner.said import Said


@dataclass
class LAMOL(Generates):
    """L = L_QA + recital * L_LM (section 3.2): the answer after the text, and the whole example after its start.

    Before task i the model writes share * |T_i| examples, as many of each old task (section 3.2, gamma); those that can
    be read join every epoch. With a start that is the same for all tasks nobody knows whose an example is.

    As released (jojotenya/LAMOL) but for: the start and `between` are spelled with tokens that are there, not two new
    ones; a prompt ends as its task's template says, without `between`; an example without text or answer is dropped,
    which the release keeps; steps are of so many examples, not of so many tokens.
    """

    share: Fraction

    keeps: ClassVar[Said] = "examples that the model wrote, {share} as many as the new task has: as texts, for one task"

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        def epochs(earlier: Sequence[int], epochs: Sequence[int]) -> Sequence[int]:
            # All epochs begin with as many examples of the task's own.
            return [examples + sum(self._counts(examples, len(earlier))) for examples in epochs]

        def texts(so_far: Sequence[int], following: int) -> Sequence[int]:
            return self._counts(following, len(so_far))

        asks = Asks(texts, self.generation_batch_size, writes=self.max_new_tokens or 0)
        return Needs(
            epochs=epochs, adds=self.added, several_parts=bool(self.recital), asks=asks, recites=bool(self.recital)
        )

    def generate(self, learner: Learner, task: Task) -> None:
        for old, count in zip(learner.tasks, self._counts(len(task.train), task.index), strict=False):
            for texts in self.written(learner, task, old, count):
                for text in texts:
                    found = self.part(text)
                    if isinstance(found, str):
                        self.drop(old, found, text)
                    else:
                        self.keep(old, "train", *found)
            self.count(old, count)

    def _counts(self, examples: int, tasks: int) -> list[int]:
        """Examples to be written of each of so many old tasks, before one of so many examples."""
        return [math.ceil(examples * self.share) // max(1, tasks)] * tasks
