"""Adapters on peft's layers: of which task, on which layers. An adapter is called by its task's number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cl_runner.layers.peft_folder import add_up, write
from cl_runner.layers.wrapped import Wrapped


class Adapters(Wrapped):
    """Low-rank adapters of one kind (Hu et al. 2022, arXiv:2106.09685): W x + (alpha / r) B A x.

    Args:
        model: whose layers get them; on the meta device, adapters are there as well.
        layers: full names of linear layers.
        options: of peft's LoraConfig.

    Attributes:
        names: of the parameters of each adapter.
        start: values that the weights beneath lost to the first adapter, by its parameters' names.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], options: dict[str, Any]):
        super().__init__(model)
        transposed = isinstance(model.get_submodule(layers[0]), Conv1D)
        self._config = LoraConfig(target_modules=list(layers), fan_in_fan_out=transposed, **options)
        self._tuner: LoraModel | None = None
        self.names: dict[str, list[str]] = {}
        self.start: dict[str, Tensor] = {}

    def add(self, name: str, seed: int) -> None:
        """One more; the same seed gives the same values."""
        before = {id(parameter) for parameter in self._model.parameters()}
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        empty = next(self._model.parameters()).device.type == "meta"
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            if self._tuner is None:
                self._tuner = LoraModel(self._model, self._config, name, low_cpu_mem_usage=empty)
            else:
                self._tuner.peft_config[name] = self._config
                self._tuner.inject_adapter(self._model, name, low_cpu_mem_usage=empty)
        self.names[name] = [n for n, parameter in self._model.named_parameters() if id(parameter) not in before]
        if not self.start and self._config.init_lora_weights == "pissa":
            self.start = {n: self._model.get_parameter(n).detach().clone() for n in self.names[name]}

    def use(self, names: Sequence[str]) -> None:
        """From now on the outputs of these are added up."""
        assert self._tuner is not None
        self._tuner.set_adapter(list(names))

    def remove(self, name: str) -> None:
        """The model without this one."""
        assert self._tuner is not None
        self._tuner.delete_adapter(name)
        del self.names[name]

    def write(self, folder: Path, names: Sequence[str], **how: Any) -> None:
        """Several adapters as one that peft loads: see `peft_folder.write`."""
        assert self._tuner is not None
        write(folder, self._tuner, add_up(self._tuner, names, self.start), **how)

    def merge(self) -> None:
        """The weights beneath get what all adapters in use add to them."""
        for _, layer in self.layers():
            layer.merge(adapter_names=list(self.names))

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Names and modules of what has or had adapters."""
        for name, module in self._model.named_modules():
            if isinstance(module, LoraLayer):
                yield name, module
