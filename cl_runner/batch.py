"""What a step is made of: examples that share a loss, a batch of tensors that knows its examples, and its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_runner.data.example import Example


class Batch(dict[str, Tensor]):
    """Tensors by name, whose first dimension is examples, and the examples that they were made of.

    Attributes:
        examples: row by row; empty for texts that are no examples, such as a start token from which a model writes.
    """

    def __init__(self, tensors: Mapping[str, Tensor], examples: Sequence[Example] = ()):
        super().__init__(tensors)
        self.examples = tuple(examples)

    def __or__(self, more: Mapping[str, Tensor]) -> Batch:  # type: ignore[override]  # a batch, not a plain dict
        return Batch({**self, **more}, self.examples)

    @property
    def tasks(self) -> list[int]:
        """The number of each row's task; -1 of what belongs to none."""
        return [example.task for example in self.examples] or [-1] * len(self["input_ids"])

    def rows(self, start: int, end: int) -> Batch:
        """The examples from `start` up to, not including, `end`."""
        return Batch({name: tensor[start:end] for name, tensor in self.items()}, self.examples[start:end])

    def twice(self) -> Batch:
        """All examples, and all of them again."""
        return Batch({name: torch.cat([tensor, tensor]) for name, tensor in self.items()}, self.examples * 2)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch({name: tensor.to(device) for name, tensor in self.items()}, self.examples)


@dataclass(frozen=True)
class Part:
    """Examples of one optimizer step that share a loss: its mean over all their targets, times `weight`.

    Attributes:
        kind: what the hooks `prepare` and `loss` know it by; "new" is the batch that the loop drew.
        labels: whether the answers' own loss counts, or only what methods add to it.
        answers: token ids that are read and learned in place of the examples' own answers; None = those.
    """

    examples: Sequence[Example]
    weight: float = 1.0
    kind: str = "new"
    labels: bool = True
    answers: Sequence[Sequence[int]] | None = None


@dataclass
class Output:
    """The positions that count, flattened: one per example for a classifier, one per answer token otherwise."""

    loss: Tensor  # scalar, mean over the targets
    logits: Tensor  # [N, V]
    targets: Tensor  # [N]
    rows: Tensor  # [N]: which example of the batch each target belongs to


def longest_first(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """All positions in parts of `size`, longest first, so that padding is small and memory peaks at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]
