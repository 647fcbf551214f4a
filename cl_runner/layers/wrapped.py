"""Layers that peft has wrapped: the weights beneath, what they are with what was learned, and the way back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Wrapped(ABC):
    """Some layers of a model as peft has them: a layer `query` is called `query.base_layer` then.

    Args:
        model: whose layers they are.
    """

    def __init__(self, model: nn.Module):
        self._model = model

    @abstractmethod
    def layers(self) -> Iterator[tuple[str, Any]]:
        """Names and modules."""

    def beneath(self) -> list[str]:
        """Names of the weights beneath."""
        return [f"{path}.base_layer.weight" for path, _ in self.layers()]

    @torch.no_grad()
    def merged(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Names of the weights beneath, and what they are with what `name` learned, one after the other."""
        for path, layer in self.layers():
            weight = layer.get_base_layer().weight
            yield f"{path}.base_layer.weight", weight + layer.get_delta_weight(name).to(weight.dtype)

    def unwrap(self) -> None:
        """The model has its own layers and names again."""
        for path, layer in list(self.layers()):
            self._model.set_submodule(path, layer.get_base_layer())
