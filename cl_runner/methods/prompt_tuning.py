"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691) of one prompt, task after task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.soft_prompt import SoftPrompt, name_of
from cl_runner.said import Said


@dataclass
class PromptTuning(SoftPrompt):
    """All tasks share the prompt and a classifier's head: of what earlier tasks learned nothing is kept apart."""

    learns: ClassVar[Said] = "one prompt of {length} vectors, and a classifier's head"

    def given(self, task: int) -> list[str]:
        return [name_of(0)]

    def trained_name(self, task: Task) -> str:
        return name_of(0)

    def begins(self, learner: Learner, task: Task) -> bool:
        return not learner.has_old_tasks(task)
