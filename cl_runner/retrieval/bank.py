"""What key slots stand for: a row of numbers for each slot, of all tasks in one store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cl_runner.retrieval.keys import unit_keys


class Bank(nn.Module):
    """Keys and values of all tasks' slots, a parameter of each for every task.

    The values lie side by side in one tensor, so that slots of any tasks are fetched at once and the cost does not
    grow with the number of tasks. Slot j of task t is number t * slots + j.

    Args:
        tasks: names of parameters, one per task.
        keys: [g, tasks * slots, c].
        values: [tasks * slots, width].
        centered: whether queries are taken relative to a vector, `center` [g * c], which is 0 at first.
    """

    center: nn.Parameter | None

    def __init__(self, tasks: Sequence[str], keys: Tensor, values: Tensor, centered: bool = False):
        super().__init__()
        width = keys.shape[0] * keys.shape[2]
        self.center = nn.Parameter(torch.zeros(width), requires_grad=False) if centered else None
        self.slots = len(values) // len(tasks)
        self.store = values
        self._units: tuple[tuple[int, ...], Tensor] | None = None
        parts = zip(tasks, keys.split(self.slots, 1), values.split(self.slots), strict=True)
        self.keys = nn.ParameterDict()
        self.values = nn.ParameterDict()
        for name, key, value in parts:
            self.keys[name] = nn.Parameter(key.contiguous(), requires_grad=False)
            self.values[name] = nn.Parameter(value, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bank:
        super()._apply(fn, recurse)  # of .to and .cuda, which take the parameters apart
        self._units = None
        self.store = torch.cat([value.detach() for value in self.values.values()])
        for value, rows in zip(self.values.values(), self.store.split(self.slots), strict=True):
            value.data = rows
        return self

    def all_keys(self, first: int, end: int) -> Tensor:
        """[g, N, c] of the tasks from `first` up to, not including, `end`."""
        return torch.cat(list(self.keys.values())[first:end], 1)

    def units(self, first: int, end: int) -> Tensor:
        """The same keys with length 1, made once for as long as the keys do not change."""
        state = (first, end, *(key._version for key in self.keys.values()))
        if self._units is None or self._units[0] != state:
            self._units = (state, unit_keys(self.all_keys(first, end)))
        return self._units[1]

    def rows(self, slots: Tensor) -> Tensor:
        """[*slots, width]; a gradient reaches the task that trains, and no other."""
        if not torch.is_grad_enabled():
            return self.store[slots]
        training = [(i, value) for i, value in enumerate(self.values.values()) if value.requires_grad]
        if not training:
            return self.store[slots]
        ((task, learned),) = training
        own = slots - task * self.slots
        mine = (own >= 0) & (own < self.slots)
        if bool(mine.all()):
            return learned[own]
        return self.store[slots].index_put((mine,), learned[own[mine]])
