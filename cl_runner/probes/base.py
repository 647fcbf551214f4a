"""What a probe of general ability is: it measures the live model before the first and after every task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from cl_runner.learner import Learner
from cl_runner.needs import ProbePass


class Probe(ABC):
    """Subclasses are dataclasses and final; their fields are the probe's options under probe.<node>.

    Attributes:
        higher_is_better: whether a fall of its numbers is a loss of ability.
        unit: of its numbers: "%", or what an axis should say.
        in_parts: whether it can ask a model whose weights are whole nowhere (`hardware.shard=always`).
    """

    families: ClassVar[tuple[str, ...]] = ("causal", "seq2seq", "image_text")
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "%"
    in_parts: ClassVar[bool] = True
    node: str  # where its options stand in the configuration: probe.<node>

    def check(self) -> None:  # noqa: B027  # may stay empty
        """Raise ValueError, before a model is loaded, if something it needs is missing, with what to type."""

    def prepare(self, learner: Learner, folder: Path) -> None:  # noqa: B027  # may stay empty
        """Once on the untouched model; what is needed later is written into `folder`, and read again on resume."""

    @abstractmethod
    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """Numbers of the model as it is now, by name; weights, gradients and modes stay what they are.

        Args:
            folder: for what should outlast the run, such as answers.
            after: the row of the matrix that it belongs to, part of file names in `folder`.
        """

    def passes(self, evaluated: Sequence[int]) -> Sequence[ProbePass] | None:
        """What `prepare` and `measure` let the model do, for plans and the time left; None = the probe does not say.

        Args:
            evaluated: examples of each task that an evaluation asks about.
        """
        return None

    def names(self) -> Sequence[str]:
        """What `measure` will return, for the report; empty if only measuring tells."""
        return ()


def positions_of(model: nn.Module) -> int | None:
    """Tokens that a language model reads at most, or its speaking part does; None = it does not say."""
    config: Any = model.config
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Without dropout and without gradients; every module's mode is given back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
