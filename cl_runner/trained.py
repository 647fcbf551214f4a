"""What trains in a task: a method says it, the learner binds it to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_runner import distributed
from cl_runner.config import OptimizerName
from cl_runner.families.freezing import frozen
from cl_runner.masters import Masters
from cl_runner.shards import Shards
from cl_runner.sparse.layers import CompactValues


@dataclass(frozen=True)
class Trained:
    """What trains in a task, with its rates and optimizer; `Trained()` is everything that the backbone lets train.

    Attributes:
        names: parameters that train as a whole; None = all of them, an empty collection = none.
        selected: flat positions by parameter name. If there are some, nothing but these entries trains.
        selectable: entries of every parameter that they were selected from.
        written: what the method itself sets when the task begins, by parameter name; of what trains, where it begins.
        merged: names of tensors that what trains is merged into when training is over.
        learning_rate: the peak; None = the training's.
        rates: peaks of some parameters, by a pattern of their names (`*` stands for anything); the first that fits.
        optimizer: None = the training's.
    """

    names: Collection[str] | None = None
    selected: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    selectable: Mapping[str, int] = dataclasses.field(default_factory=dict)
    written: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    merged: Collection[str] = ()
    learning_rate: float | None = None
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerName | None = None

    def __post_init__(self) -> None:
        assert not (self.selected and self.names is not None), "either whole tensors train, or selected entries"

    def of(self, model: nn.Module) -> list[str]:
        """Names of the parameters that train, or some of whose entries do, in the model's order.

        Raises:
            AssertionError: a name is no parameter of the model.
        """
        known = dict(model.named_parameters())
        wanted = self.selected or self.names
        if wanted is None:
            wanted = known
        unknown = [name for name in wanted if name not in known]
        assert not unknown, f"the model has no parameter {unknown[0]}"
        never = frozen(model)
        return [name for name in known if name in wanted and name not in never]


class Held:
    """What the optimizer holds while a task trains: compact values, fp32 copies, or the tensors themselves.

    Of weights in parts it holds this process's rows of what trains whole, and all of the compact values.

    Args:
        model: whose parameters that train are told by `requires_grad`.
        selected: of `Trained`.
        shards: how the weights are to lie from now on, where not each process has all of them.
        device: where what is held of whole weights is to lie; None = where they are.

    Attributes:
        parameters: by the name of the tensor that each stands for.
        entries: of all processes.
        in_parts: names of what this process holds its rows of.
    """

    def __init__(
        self,
        model: nn.Module,
        selected: Mapping[str, Tensor],
        shards: Shards | None = None,
        device: torch.device | None = None,
    ):
        self._values = CompactValues(model, selected, shards) if selected else None
        whole = {name: p for name, p in model.named_parameters() if p.requires_grad}
        held = whole if self._values is None else self._values.parameters
        self.entries = sum(p.numel() for p in held.values())
        self.shards = shards
        self.in_parts: list[str] = []
        if shards is not None:
            shards.part()
            if self._values is None:
                self.in_parts = [name for name in held if name in shards]
                held = held | {name: nn.Parameter(shards.own(name)) for name in self.in_parts}
        self._masters = Masters(held, apart=self.in_parts, device=None if self._values is not None else device)
        self.parameters = self._masters.parameters

    @torch.no_grad()
    def write_through(self) -> None:
        """Into the model's own tensors, after an optimizer step."""
        self._masters.write_through()
        if self._values is not None:
            self._values.write_through(self.shards)
        if self.shards is not None:
            self.shards.refresh()

    def collect(self) -> None:
        """After a pass: gradients of weights in parts join those of what is held of them, and are freed."""
        assert self.shards is not None or not self.in_parts
        for name in self.in_parts:
            found = self.shards.gradient(name) if self.shards is not None else None
            if found is not None:
                holder = self.parameters[name]
                gradient = found.to(holder.device).to(holder.dtype)
                holder.grad = gradient if holder.grad is None else holder.grad.add_(gradient)

    def add_gradients(self) -> None:
        """Gradients become their sums over the processes, where backward has not added them up."""
        distributed.add_gradients([p for name, p in self.parameters.items() if name not in self.in_parts])

    def clip(self, most: float) -> float:
        """Scale all gradients down to a norm of at most `most`; the norm that they had."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not self.in_parts:
            return float(nn.utils.clip_grad_norm_(self.parameters.values(), most))
        own = nn.utils.get_total_norm([g for name, g in gradients.items() if name in self.in_parts]).square()
        distributed.add([own])
        rest = nn.utils.get_total_norm([g for name, g in gradients.items() if name not in self.in_parts])
        norm = (own + rest.to(own.device).square()).sqrt()
        nn.utils.clip_grads_with_norm_(self.parameters.values(), most, norm)
        return float(norm)

    def release(self) -> None:
        """Let go of the model, which keeps what was written through."""
        self._masters.release()
        if self._values is not None:
            self._values.release()
