"""Heads of a classifier whose encoder is frozen: rows that a task learns once, and which rows answer an example.

SLM (ICLR 2024): its release has one head per number of classes and picks it by the example's true task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cl_runner.data.task import Task, label_union

Head = Literal["shared", "by_num_labels", "per_task"]


def classifies(model: nn.Module) -> bool:
    """Whether a model ends with a head for labels, and not with words."""
    return isinstance(model, PreTrainedModel) and model.get_output_embeddings() is None


def find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of a classifier's last layer."""
    count = model.config.num_labels  # type: ignore[union-attr,unused-ignore]
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == count]
    assert found, "a classifier ends with a linear layer"
    return found[-1]


def _rows(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """A copy of some rows, one by one: a list as an index is a real tensor, which a plan's tensors do not go with."""
    return torch.stack([tensor.detach()[row] for row in rows])


class Heads(nn.Module):
    """In place of a classifier's last layer; logits are those of the union of labels.

    `shared`: all rows answer every example; a task trains those of its labels that no earlier task had.
    `by_num_labels`: one head for each number of labels, trained by the first task with that number.
    `per_task`: one head for each task. In both the head of an example's true task answers, and other labels have -inf.

    Args:
        linear: the layer, from which rows begin.
        labels: of each task, as rows of the layer.
        names: of parameters, one per task.
        restart: every task learns all of its labels, as none has learned before it.
    """

    def __init__(
        self,
        linear: nn.Linear,
        labels: Sequence[Sequence[int]],
        names: Sequence[str],
        kind: Head,
        restart: bool = False,
    ):
        super().__init__()
        self.kind, self.labels, self.out_features = kind, [list(rows) for rows in labels], linear.out_features
        self.tasks: Tensor | None = None  # [B], the true task of each example
        self.latest = 0  # the task that trains or was trained last
        self.owner: list[str | None] = []  # the parameter that a task trains
        self.head_of: list[str] = []  # the head that answers a task's examples, if they do not share one
        self.weight, self.bias = nn.ParameterDict(), nn.ParameterDict()
        self.rows: dict[str, list[int]] = {}
        taken: set[int] = set()
        by_count: dict[int, str] = {}
        for name, rows in zip(names, self.labels, strict=True):
            own = [row for row in rows if row not in taken] if kind == "shared" and not restart else rows
            shares = kind == "by_num_labels" and not restart
            head = by_count.setdefault(len(rows), name) if shares else name
            taken.update(rows)
            new = bool(own) and head not in self.rows
            if new:
                self.rows[head] = own
                self.weight[head] = nn.Parameter(_rows(linear.weight, own), requires_grad=False)
                bias = torch.zeros(len(own)) if linear.bias is None else _rows(linear.bias, own)
                self.bias[head] = nn.Parameter(bias.to(linear.weight.dtype), requires_grad=False)
            self.owner.append(head if new else None)
            self.head_of.append(head)

    def trained_by(self, task: int) -> list[nn.Parameter]:
        """What a task learns; nothing if earlier tasks learned all of it."""
        owner = self.owner[task]
        return [] if owner is None else [self.weight[owner], self.bias[owner]]

    def names_in(self, model: nn.Module, task: int) -> list[str]:
        """Names of what a task learns in the model that the heads are a part of."""
        own = {id(parameter) for parameter in self.trained_by(task)}
        return [name for name, parameter in model.named_parameters() if id(parameter) in own]

    def whole(self, task: int) -> dict[str, Tensor]:
        """Weight and bias of a usual layer with a task's own rows; other labels are out of the question."""
        head = self.head_of[task]
        weight = self.weight[head].detach()
        full = {"weight": weight.new_zeros(self.out_features, weight.shape[1])}
        full["bias"] = weight.new_full((self.out_features,), -torch.inf)
        for part, rows in (("weight", weight), ("bias", self.bias[head].detach())):
            full[part][self.labels[task]] = rows
        return full

    def _places(self) -> list[int]:
        """Where each label's row stands among all heads' rows: the latest task's own, else the first."""
        found: dict[int, int] = {}
        place, latest = 0, self.owner[self.latest]
        for head, rows in self.rows.items():
            for row in rows:
                if row not in found or head == latest:
                    found[row] = place
                place += 1
        return [found[row] for row in range(self.out_features)]

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, labels] of states [B, width]."""
        if self.kind == "shared":
            weight, bias = (torch.cat(list(part.values())) for part in (self.weight, self.bias))
            return functional.linear(hidden, weight, bias)[:, torch.tensor(self._places(), device=hidden.device)]
        assert self.tasks is not None and len(self.tasks) == len(hidden), "the true task of every example"
        assert int(self.tasks.min()) >= 0, "an example of no task has no head"
        logits = hidden.new_full((len(hidden), self.out_features), -torch.inf)
        for task in self.tasks.unique().tolist():
            head = self.head_of[task]
            mine = (self.tasks == task).nonzero()[:, 0]
            own = functional.linear(hidden[mine], self.weight[head], self.bias[head])
            columns = torch.tensor(self.labels[task], device=hidden.device)
            logits = logits.index_put((mine[:, None], columns[None]), own.to(logits.dtype))
        return logits


def make_heads(model: nn.Module, tasks: Sequence[Task], kind: Head, restart: bool) -> Heads | None:
    """What answers in place of a classifier's last layer, each task with its own labels; None for language models."""
    if not classifies(model):
        return None
    place = {label: row for row, label in enumerate(label_union(tasks))}
    labels = [[place[label] for label in task.labels] for task in tasks]
    return Heads(find_head(model)[1], labels, [f"{task.index:02d}" for task in tasks], kind, restart)
