"""What an optimizer holds and moves beside the values that train (cl_runner/optimizer.py)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from cl_runner.config import OptimizerName

#: Reads and writes of clipping, in bytes per trained fp32 entry and step.
CLIPPING = 12


@dataclass(frozen=True)
class OptimizerNumbers:
    """An optimizer in numbers.

    Attributes:
        momentum: whether SGD has any.
        decay: whether weights decay.
    """

    name: OptimizerName = "adamw"
    momentum: bool = False
    decay: bool = True

    def state_bytes(self, shapes: Iterable[Sequence[int]]) -> int:
        """Bytes of its state for tensors of these shapes, fp32."""
        match self.name:
            case "adamw":
                return 8 * sum(prod(shape) for shape in shapes)
            case "sgd":
                return 4 * self.momentum * sum(prod(shape) for shape in shapes)
            case "adafactor":  # sums of squares by row and by column; of a vector all of them
                return 4 * sum(
                    prod(shape[:-1]) + prod(shape[:-2]) * shape[-1] if len(shape) > 1 else prod(shape)
                    for shape in shapes
                )

    def room(self, trained: int, largest: int, on_gpu: bool) -> int:
        """Bytes that a step needs for a moment, beside gradients.

        Args:
            trained: entries of all tensors.
            largest: entries of the largest one.
        """
        match self.name:
            case "adamw":  # fused
                return 0
            case "sgd":  # gradients with their decay: on a GPU of all tensors at once
                return 4 * self.decay * (trained if on_gpu else largest)
            case "adafactor":  # squares, their sum with a constant, and the step of the tensor before
                return 12 * largest

    @property
    def traffic(self) -> int:
        """Bytes that a step reads and writes per trained entry, clipping included."""
        match self.name:
            case "adamw":
                own = 28
            case "sgd":
                own = 12 + 8 * self.momentum + 8 * self.decay
            case "adafactor":  # a dozen operations, each over whole tensors
                own = 80
        return own + CLIPPING
