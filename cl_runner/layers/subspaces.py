"""Layers whose weights are cut at a singular value, on peft's OSF layers: the larger ones' directions are kept.

"Sculpting Subspaces" (OSF, arXiv:2504.07097): W = U S V^T; of the directions of the largest singular values nothing
changes, and the rest U_low S_low V_low^T learns at right angles to them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft import OSFConfig
from peft.tuners.osf.layer import Linear
from torch import Tensor, nn

from cl_runner.layers.wrapped import Wrapped


class Subspaces(Wrapped):
    """The cuts of some linear layers, one at a time.

    Args:
        model: whose layers are wrapped.
        layers: full names of nn.Linear layers.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]):
        super().__init__(model)
        self._layers = list(layers)
        self._config = OSFConfig(target_modules=self._layers)
        for name in self._layers:
            layer = model.get_submodule(name)
            # Made around a layer without weights, whose singular values nobody has to find.
            wrapped = Linear(copy.deepcopy(layer).to("meta"), "none", self._config, effective_rank=1)
            wrapped.delete_adapter("none")
            wrapped.base_layer = layer
            model.set_submodule(name, wrapped)

    def cut(self, name: str, kept_share: float) -> None:
        """Find the singular values of all weights, and keep the directions of the largest.

        Args:
            kept_share: of the singular values of a weight.
        """
        for _, layer in self.layers():
            width = min(layer.in_features, layer.out_features)
            kept = min(max(int(width * kept_share), 1), width - 1)
            layer.update_layer(name, kept, self._config)
            layer.set_adapter([name])

    def parameters(self, name: str) -> list[str]:
        """Names of what learns."""
        return [f"{path}.osf_svd_params.{name}.{part}" for path in self._layers for part in ("U_low", "S_low", "V_low")]

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Names and modules."""
        for path in self._layers:
            yield path, self._model.get_submodule(path)

    def turned(self, name: str, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """U_low and V_low without what lies along the kept directions: names and values.

        Args:
            values: by parameter name.
        """
        for path, layer in self.layers():
            place = f"{path}.osf_svd_params.{name}"
            for part, kept, rest in (
                ("U_low", layer._osf_U_high, layer._osf_U_low_init[name]),
                ("V_low", layer._osf_V_high, layer._osf_V_low_init[name]),
            ):
                # Directions are columns of U, and rows of V. peft holds those that are kept only where the others do
                # not span all of the rest.
                found = values[f"{place}.{part}"].detach()
                turned, rest = (found, rest) if part == "U_low" else (found.T, rest.T)
                if name in kept:
                    along = (kept[name] if part == "U_low" else kept[name].T).to(found.dtype)
                    turned = turned - along @ (along.T @ turned)
                else:
                    turned = rest.to(found.dtype) @ (rest.to(found.dtype).T @ turned)
                yield f"{place}.{part}", turned if part == "U_low" else turned.T

    def remove(self, name: str) -> None:
        """No cut any more."""
        for _, layer in self.layers():
            layer.delete_adapter(name)
            layer._detach_hooks()
