"""Progressive Prompts (Razdaibiedina et al., ICLR 2023, arXiv:2301.12314): each task's prompt before earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from cl_runner.batch import Batch
from cl_runner.data.task import Task
from cl_runner.layers.heads import find_head, make_heads
from cl_runner.learner import Learner
from cl_runner.methods.soft_prompt import SoftPrompt, name_of
from cl_runner.needs import Outline
from cl_runner.said import Said


@dataclass
class ProgPrompt(SoftPrompt):
    """A text of task t is read as [P_t; P_t-1; ...; P_1; x], of which task t trains P_t; its task is told.

    The last layer of a classifier has rows of each task's own, and knows no other labels than those. Without
    `progressive` it is read as [P_t; x], and tasks share nothing. A task still to come has of these what is there.
    """

    progressive: bool
    start: Literal["vocabulary", "previous"]

    isolates: ClassVar[bool] = True
    renews: ClassVar[bool] = True
    learns: ClassVar[Said] = "a prompt of {length} vectors for each task, and rows of a classifier's head"
    keeps: ClassVar[Said] = "the prompts of all tasks: 4 bytes per number"
    told: ClassVar[Said] = "task"

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        assert isinstance(model, PreTrainedModel)
        # Before a prompt's network is there, whose layers could be taken for a classifier's last one.
        self.heads = make_heads(model, tasks, "per_task", restart)
        if self.heads is not None:
            model.set_submodule(find_head(model)[0], self.heads)
        return super().build(model, tasks, seed, restart)

    def grow(self, model: nn.Module, index: int, seed: int) -> None:
        new = name_of(index) not in self.prompts.values
        self.add(index, seed)
        if new and self.start == "previous":
            with torch.no_grad():
                self.prompts.values[name_of(index)].copy_(self.prompts.values[name_of(index - 1)])

    def given(self, task: int) -> list[str]:
        if self.restart:
            return [name_of(0)] if task >= 0 else []
        own = range(task, -1 if self.progressive else task - 1, -1)
        return [name_of(index) for index in own if name_of(index) in self.prompts.values]

    def place(self, name: str) -> int:
        return int(name) if self.progressive else 0

    def trained_name(self, task: Task) -> str:
        return name_of(0 if self.restart else task.index)

    def heads_of(self, learner: Learner, task: Task) -> list[str]:
        return [] if self.heads is None else self.heads.names_in(learner.model, task.index)

    def begins(self, learner: Learner, task: Task) -> bool:
        return self.start == "vocabulary" or not learner.has_old_tasks(task)

    def counts(self, outline: Outline) -> tuple[int, int]:
        count = 1 if outline.restart else len(outline.tasks)
        return count, count if self.progressive else 1

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        if self.heads is not None:
            self.heads.tasks = torch.tensor(batch.tasks, device=learner.device)
        return super().before_forward(learner, batch)
