"""Prompts of tasks as parameters of a model, each with a residual network of its own if one is wanted.

Lester et al. 2021 (arXiv:2104.08691); Progressive Prompts, Razdaibiedina et al. 2023 (arXiv:2301.12314).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Network = Literal["none", "mlp1", "mlp2"]


def network(kind: Network, columns: int, bottleneck: int, layer_norm: bool) -> nn.Module | None:
    """What a prompt passes through: mlp1 as released for BERT, mlp2 as for T5, whose hidden layer halves once more."""
    if kind == "none":
        return None
    if kind == "mlp2":
        return nn.Sequential(
            nn.Linear(columns, bottleneck),
            nn.ReLU(),
            nn.Linear(bottleneck, bottleneck // 2),
            nn.Tanh(),
            nn.Linear(bottleneck // 2, columns),
        )
    parts = [nn.Linear(columns, bottleneck), nn.ReLU(), nn.Linear(bottleneck, columns)]
    return nn.Sequential(*parts, *([nn.LayerNorm(columns)] if layer_norm else []))


class SoftPrompts(nn.Module):
    """P, or P + MLP(P), by name; nothing trains unless it is told to.

    Attributes:
        values: P of each, [length, columns].
        networks: of those that have one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values, self.networks = nn.ParameterDict(), nn.ModuleDict()

    def add(self, name: str, values: Tensor, through: nn.Module | None) -> None:
        """One more."""
        self.values[name] = nn.Parameter(values, requires_grad=False)
        if through is not None:
            self.networks[name] = through.requires_grad_(False)

    def of(self, name: str) -> Tensor:
        """[length, columns], as the model reads it."""
        values: Tensor = self.values[name]
        return values + self.networks[name](values) if name in self.networks else values

    def all(self, names: list[str]) -> Tensor:
        """Several, one after the other."""
        return torch.cat([self.of(name) for name in names])

    def parameters_of(self, name: str) -> list[str]:
        """Names of its parameters in this module."""
        return [n for n, _ in self.named_parameters() if n == f"values.{name}" or n.startswith(f"networks.{name}.")]
