"""A model that the first process of a run reads, or draws, in main memory, and hands out to the others.

So what loads a model has one way, whatever it is of: tied weights, conversions of names and types, new heads, GGUF.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from cl_runner import distributed
from cl_runner.families.base import Family


def begun(family: Family, seed: int) -> PreTrainedModel:
    """The starting model: the first process has its weights, in main memory, and the others the architecture alone."""
    made: list[PreTrainedModel] = []

    @distributed.once
    def read() -> Any:
        made.append(family.build(seed)[0])
        how = getattr(made[0], "generation_config", None)
        return None if how is None else how.to_dict()

    how = read()  # a checkpoint has a file of it beside its weights
    if made:
        return made[0]
    model = family.skeleton()
    if how is not None:
        model.generation_config = GenerationConfig.from_dict(how)
    return model


def _tensors(modules: Iterable[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Where modules have their tensors, and these: parameters, buffers, and what is neither."""
    for module in modules:
        for place in (module._parameters, module._buffers, vars(module)):
            for name, tensor in list(place.items()):
                if isinstance(tensor, Tensor):
                    yield place, name, tensor


@torch.no_grad()
def receive(modules: Iterable[nn.Module], device: torch.device) -> None:
    """The tensors of modules become what the first process has of them, on the device."""
    places = list(_tensors(modules))
    # Of these an architecture does not know all: some stay in fp32 where others are loaded in half precision.
    kinds = distributed.shared([str(tensor.dtype).removeprefix("torch.") for *_, tensor in places])
    made: dict[int, Tensor] = {}  # what is tied stays so
    for (place, name, tensor), kind in zip(places, kinds, strict=True):
        if id(tensor) not in made:
            if distributed.first():
                sent = tensor.detach().to(device).contiguous()
            else:
                sent = torch.empty(tensor.shape, dtype=getattr(torch, kind), device=device)
            distributed.send(sent)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(sent, tensor.requires_grad) if is_parameter else sent
        place[name] = made[id(tensor)]
