"""Stacks of equal layers: a pass over two of them and one over three tell what one over all of them costs, exactly.

Each further layer brings the same operations, allocations and releases once more, in one place of a stage of a pass, or
in two of them, as where activations are computed again, of which each layer leaves something until the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

#: Layers of a stack from which on the two short passes are less work than the whole one.
LEAST = 6
#: Layers of the shorter pass; the other one has one more.
FEW = 2


@dataclass(frozen=True)
class Cost:
    """What a piece of work costs, beyond what was there before it.

    Attributes:
        peak_bytes: the most that was alive at once.
        flops: of matrix products and attention, a multiplication and an addition counted as two.
        moved_bytes: read and written by all other operations.
        operations: number of kernels.
        seconds: that it took on a real model; 0 = it was counted on an imitation.
    """

    peak_bytes: int
    flops: int
    moved_bytes: int
    operations: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Counted:
    """What a stage of work costs, and the story of its memory.

    Attributes:
        start: bytes that are alive when it begins.
        changes: of the bytes alive, one after the other.
    """

    cost: Cost
    start: int
    changes: Sequence[int]


class Stack:
    """Layers of a model, all of one kind.

    Args:
        layers: held by the model.
        name: of the list in it.
    """

    def __init__(self, layers: nn.ModuleList, name: str):
        self._layers = layers
        self._name = name
        self.size = len(layers)

    @contextmanager
    def cut(self, size: int) -> Iterator[None]:
        """Inside, the model has only so many of the layers."""
        every = dict(self._layers.named_children())
        for name in list(every)[size:]:
            del self._layers._modules[name]
        try:
            yield
        finally:
            self._layers._modules.clear()
            self._layers._modules.update(every)

    def alike(self, names: Collection[str]) -> bool:
        """Whether these parameters are of each layer the same ones."""
        found: dict[str, set[str]] = {str(number): set() for number in range(self.size)}
        for name in names:
            if name.startswith(f"{self._name}."):
                number, _, rest = name.removeprefix(f"{self._name}.").partition(".")
                found[number].add(rest)
        return all(rest == found["0"] for rest in found.values())


def stack_of(model: nn.Module) -> Stack | None:
    """The stack of equal layers of a model, of several (eyes and language) the one of most weights; None: none."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) >= LEAST and not inside:
            kinds = (_kind(layer) for layer in module)
            first = next(kinds)
            if all(kind == first for kind in kinds):
                found.append((name, module))
    largest = max(found, key=lambda one: sum(p.numel() for p in one[1].parameters()), default=None)
    return None if largest is None else Stack(largest[1], largest[0])


def _kind(layer: nn.Module) -> list[object]:
    """All that a layer computes depends on, but the values of its weights and its number."""
    described: list[object] = []
    for name, module in layer.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str) and not k.endswith("_idx")}
        tensors = itertools.chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        described.append((name, type(module), plain, [(n, t.shape, t.requires_grad) for n, t in tensors], hooks))
    return described


def extended(few: Sequence[Counted], more: Sequence[Counted], layers: int) -> list[Cost] | None:
    """The costs of stages over so many layers, from those over `FEW` and one more; None if they tell nothing."""
    found = []
    times = layers - FEW - 1
    for less, one_more in zip(few, more, strict=True):
        changes = _grown(less.changes, one_more.changes, times + 1)
        if changes is None:
            return None
        start = less.start + (times + 1) * (one_more.start - less.start)
        peak = max(itertools.accumulate(changes, initial=start))
        a, b = less.cost, one_more.cost
        found.append(
            replace(
                b,
                peak_bytes=peak,
                flops=b.flops + times * (b.flops - a.flops),
                moved_bytes=b.moved_bytes + times * (b.moved_bytes - a.moved_bytes),
                operations=b.operations + times * (b.operations - a.operations),
            )
        )
    return found


def _grown(less: Sequence[int], more: Sequence[int], times: int) -> list[int] | None:
    """A story of memory that has so many times what the longer one of two has and the shorter one has not."""
    before = _common(less, more)
    after = min(_common(less[::-1], more[::-1]), len(less) - before)
    middle, longer = less[before : len(less) - after], more[before : len(more) - after]
    for first in range(len(longer) - len(middle) + 1):
        end = first + len(middle)
        if longer[first:end] == middle:
            once, again = list(longer[:first]), list(longer[end:])
            return [*less[:before], *once * times, *middle, *again * times, *less[len(less) - after :]]
    return None


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many changes two stories have in common from their beginning on."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
