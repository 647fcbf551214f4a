"""A low-rank adapter for each task and every example's task told: an upper bound, in which nothing is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from cl_runner.batch import Batch
from cl_runner.config import Sharded
from cl_runner.data.task import Task
from cl_runner.layers.heads import find_head, make_heads
from cl_runner.learner import Learner
from cl_runner.methods.inc_lora import IncLoRA
from cl_runner.methods.low_rank import loading, name_of, task_type
from cl_runner.said import Said


@dataclass
class LoRA(IncLoRA):
    """The adapter of an example's own task answers it (LoRA, arXiv:2106.09685); the backbone what has none yet.

    The last layer of a classifier has rows of each task's own, and knows no other labels than those.
    """

    sharded: ClassVar[Sharded] = "always"
    isolates: ClassVar[bool] = True
    told: ClassVar[Said] = "task"

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        self.acting: list[str] = []  # the adapter of each example of the batch under way; empty = the one there is
        super().build(model, tasks, seed, restart)
        self.heads = make_heads(model, tasks, "per_task", restart)
        if self.heads is not None:
            self.last = find_head(model)[0]
            model.set_submodule(self.last, self.heads)
        for _, layer in self.adapters.layers():
            layer.register_forward_pre_hook(self._choose, with_kwargs=True)
        return model

    def _choose(self, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return given, named | {"adapter_names": self.acting} if self.acting else named

    def head_names(self, learner: Learner, task: Task) -> list[str]:
        return [] if self.heads is None else self.heads.names_in(learner.model, task.index)

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        tasks = batch.tasks
        names = [name_of(index) for index in tasks]
        known = self.adapters.names
        self.acting = [] if learner.restart else [name if name in known else "__base__" for name in names]
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

    def export_merged(self, model: nn.Module, folder: Path) -> str | None:
        return None  # a text's task chooses the adapter
