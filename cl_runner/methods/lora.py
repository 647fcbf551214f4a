"""A low-rank adapter for each task and every example's task told: an upper bound, in which nothing is forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from cl_runner.batch import Batch
from cl_runner.data.task import Task, label_union
from cl_runner.layers.heads import Heads, find_head
from cl_runner.learner import Learner
from cl_runner.methods.inc_lora import IncLoRA
from cl_runner.methods.low_rank import classifier_head, loading, task_type
from cl_runner.said import Said
from cl_runner.trained import Trained


@dataclass
class LoRA(IncLoRA):
    """The adapter of an example's own task answers it (LoRA, arXiv:2106.09685); the backbone what has none yet.

    The last layer of a classifier has rows of each task's own, and knows no other labels than those.
    """

    isolates: ClassVar[bool] = True
    told: ClassVar[Said] = "task"

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        self.acting: list[str] = []  # the adapter of each example of the batch under way; empty = the one there is
        self.heads: Heads | None = None
        super().build(model, tasks, seed, restart)
        if classifier_head(model):
            place = {label: row for row, label in enumerate(label_union(tasks))}
            labels = [[place[label] for label in task.labels] for task in tasks]
            self.last, linear = find_head(model)
            self.heads = Heads(linear, labels, [f"{task.index:02d}" for task in tasks], "per_task", restart)
            model.set_submodule(self.last, self.heads)
        for _, layer in self.adapters.layers():
            layer.register_forward_pre_hook(self._choose, with_kwargs=True)
        return model

    def _choose(self, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return given, named | {"adapter_names": self.acting} if self.acting else named

    def trains(self, learner: Learner, task: Task) -> Trained:
        own = {id(parameter) for parameter in self.heads.trained_by(task.index)} if self.heads else set()
        names = [name for name, parameter in learner.parameters().items() if id(parameter) in own]
        adapter = self.adapters.names[self.adapter_of(learner, task)]
        return dataclasses.replace(super().trains(learner, task), names=[*adapter, *names])

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        tasks = [example.task for example in batch.examples] or [-1] * len(batch["input_ids"])
        known = {f"{index:02d}" for index in tasks} & self.adapters.names.keys()
        names = [f"{index:02d}" if f"{index:02d}" in known else "__base__" for index in tasks]
        self.acting = [] if learner.restart else names
        if self.heads is not None:
            self.heads.tasks = torch.tensor(tasks, device=learner.device)
        return batch

    def export(self, model: nn.Module, tasks: Sequence[Task], folder: Path, base: str) -> str | None:
        for name in self.adapters.names:
            task = tasks[int(name)]
            found = self.heads.whole(int(name)) if self.heads else {}
            head = {f"{self.last}.{part}": tensor for part, tensor in found.items()}
            self.adapters.write(folder / task.name, [name], head=head, base=base, task_type=task_type(model))
        return f"{loading(model, base, folder / tasks[0].name)} and so on for each of {len(self.adapters.names)} tasks"
