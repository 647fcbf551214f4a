"""What the sparse layers keep in memory between the passes, and what they never make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cl_runner.sparse.layers import CompactValues


def saved_bytes(work: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes kept for backward, without the weights themselves."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(seen.values())


def test_only_the_needed_input_columns_are_saved() -> None:
    """Two input columns of 32 for 10 positions: 80 bytes in fp32; the whole input would be 1280."""
    model = nn.Sequential(nn.Linear(32, 16, bias=False))
    values = CompactValues(model, {"0.weight": torch.tensor([3, 7, 35, 39])})
    inputs = torch.randn(10, 32)
    assert saved_bytes(lambda: model(inputs), model) == 80
    values.release()
    values = CompactValues(nn.Sequential(model), {"0.0.weight": torch.arange(512)})
    assert saved_bytes(lambda: model(inputs), model) == 1280
    values.release()


def test_no_full_gradient_is_formed() -> None:
    """Of all tensors that backward makes, none but the weight itself has as many entries as the weight."""
    model = nn.Linear(64, 64, bias=False)
    values = CompactValues(model, {"weight": torch.tensor([5, 70])})
    made: list[Tensor] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            made.extend([result] if isinstance(result, Tensor) else [])
            return result

    output = model(torch.randn(3, 64, requires_grad=True)).sum()
    with Watch():
        output.backward()
    own = model.weight.untyped_storage().data_ptr()
    largest = max(tensor.numel() for tensor in made if tensor.untyped_storage().data_ptr() != own)
    assert largest == 3 * 64
    assert model.weight.grad is None and values.parameters["weight"].grad is not None
    values.release()
