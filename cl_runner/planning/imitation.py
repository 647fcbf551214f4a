"""A model of tensors without content, and what a piece of work on it costs: bytes alive at once, operations, traffic.

Every tensor has its real type and shape, so autograd saves and frees exactly what it does in a run, and the largest
sum of living storages is the peak that an allocator would see, but for rounding and workspaces inside kernels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from cl_runner.build import recompute_activations
from cl_runner.planning.alike import FEW, Cost, Counted, extended, stack_of

Device = Literal["cpu", "cuda"]


class Ledger(TorchDispatchMode):
    """Counts what the operations inside it allocate, free, compute and move; for any device."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.flops = 0
        self.moved_bytes = 0
        self.operations = 0
        self._known: set[int] = set()  # storages that are counted already, or that the work was given
        self._start = 0
        self._changes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # autograd asks it several times for each operation
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {id(tensor.untyped_storage()) for tensor in _tensors(args)}
        moved = 0
        for tensor in _tensors((result,)):
            storage = tensor.untyped_storage()
            key = id(storage)
            if key not in given or func._schema.is_mutable:
                moved += tensor.numel() * tensor.element_size()
            if key not in self._known and key not in given:
                self._known.add(key)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        if moved:  # not a view
            self.operations += 1
            count = flop_registry.get(func._overloadpacket, _flops_of.get(func._overloadpacket))
            if count is not None:
                self.flops += count(*args, **kwargs, out_val=result)
            else:
                self.moved_bytes += moved + sum(t.numel() * t.element_size() for t in _tensors(args))
        return result

    def _change(self, amount: int) -> None:
        self._changes.append(amount)
        self.live_bytes += amount
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._change(-size)

    def counted(self) -> Counted:
        """What has been counted since the start or the last call; what lives goes on living."""
        cost = Cost(self.peak_bytes, self.flops, self.moved_bytes, self.operations)
        counted = Counted(cost, self._start, self._changes)
        self.peak_bytes, self.flops, self.moved_bytes, self.operations = self.live_bytes, 0, 0, 0
        self._start, self._changes = self.live_bytes, []
        return counted

    def cost(self) -> Cost:
        """The same without the story of its memory."""
        return self.counted().cost


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *rest: Any, out_val: Any = None, **options: Any) -> int:
    """query [B, H, L, D], key [B, H, S, D], value [B, H, S, W]: the products of scores and of outputs."""
    batch, heads, length, width = query.shape
    return 2 * batch * heads * length * key.shape[2] * (width + value.shape[3])


def _attention_backward_flops(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
) -> int:
    """Scores once more, and two products for each of the forward pass's."""
    batch, heads, length, width = query.shape
    return 2 * batch * heads * length * key.shape[2] * (3 * width + 2 * value.shape[3])


#: torch knows the GPU's fused attention only.
_flops_of: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@contextmanager
def _gpu_attention() -> Iterator[None]:
    """Attention as a GPU computes it: fused, also with dropout, which the CPU's fused kernel does not know."""
    original = functional.scaled_dot_product_attention
    # A torch function mode would not reach the layers that activation checkpointing computes again.
    functional.scaled_dot_product_attention = _fused_attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa and key.shape[1] != query.shape[1]:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    result: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]
    return result


class Imitation:
    """A model of tensors without content.

    Args:
        skeleton: the architecture on the meta device; its parameters and buffers are replaced.
        dtype: of the weights.
        device: what the run computes on; the imitation itself needs no such device.
    """

    def __init__(self, skeleton: PreTrainedModel, dtype: torch.dtype, device: Device):
        self.model = skeleton
        self.device = device
        self._mode = FakeTensorMode()
        made: dict[int, Any] = {}  # tied weights stay tied
        with self._mode:
            for module in skeleton.modules():
                for name, weight in module._parameters.items():
                    if weight is not None and id(weight) not in made:
                        made[id(weight)] = nn.Parameter(torch.empty(weight.shape, dtype=dtype, device="cpu"))
                    module._parameters[name] = made.get(id(weight))
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
        self._stack = stack_of(skeleton)

    def empty(self, *shape: int) -> Tensor:
        """A tensor without content, fp32, that is there before any work."""
        with self._mode:
            return torch.empty(shape)

    def sizes(self) -> dict[str, int]:
        """Number of entries of each parameter, tied ones once."""
        return {name: p.numel() for name, p in self.model.named_parameters()}

    def cost(self, work: Callable[[PreTrainedModel], object]) -> Cost:
        """What `work` on the model costs; gradients it leaves behind count as alive, and are removed afterwards."""
        return self.costs([lambda model, _: work(model)])[0]

    def costs(
        self,
        stages: Sequence[Callable[[PreTrainedModel, Any], Any]],
        chosen: Sequence[Collection[str]] = (),
        folds: bool = True,
    ) -> list[Cost]:
        """The costs of stages that follow one another, and each of which goes through the layers once or not at all.

        Args:
            stages: each is given the model and what the stage before returned, which then counts as alive.
            chosen: names of parameters that the stages treat otherwise than others.
            folds: whether equal layers are counted from few of them.
        """
        if folds and self._stack is not None and all(self._stack.alike(names) for names in chosen):
            few, more = (self._counted(stages, FEW + further) for further in (0, 1))
            found = extended(few, more, self._stack.size)
            if found is not None:
                return found
        return [counted.cost for counted in self._counted(stages)]

    def _counted(
        self, stages: Sequence[Callable[[PreTrainedModel, Any], Any]], layers: int | None = None
    ) -> list[Counted]:
        """The stages on a model of so many layers; None = of all."""
        ledger = Ledger()
        attention = _gpu_attention() if self.device == "cuda" else nullcontext()
        fewer = nullcontext() if self._stack is None or layers is None else self._stack.cut(layers)
        found, kept = [], None
        with fewer, self._mode, attention, ledger:
            for stage in stages:
                kept = stage(self.model, kept)
                found.append(ledger.counted())
            del kept
        for parameter in self.model.parameters():
            parameter.grad = None
        return found


class _Keep(torch.autograd.Function):
    """Hands a layer's output on, keeps some columns of its input until backward, and needs room there."""

    @staticmethod
    def forward(ctx, output, inputs, columns, room):  # type: ignore[no-untyped-def]  # torch leaves contexts open
        positions = inputs.numel() // inputs.shape[-1]
        ctx.save_for_backward(inputs if columns is None else inputs.new_empty(positions, columns))
        ctx.room = room
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]  # as above
        (kept,) = ctx.saved_tensors
        kept.new_empty(ctx.room, dtype=torch.float32)
        return gradient, None, None, None


@contextmanager
def keeping_inputs(model: nn.Module, columns: Mapping[nn.Module, int | None], room: bool) -> Iterator[None]:
    """No parameter requires a gradient, but the graph begins at the embeddings, and layers keep their inputs.

    Args:
        columns: of a layer's input that are kept for backward; None = the input itself.
        room: whether backward needs room for one fp32 tensor of the size of the layer's weights.
    """
    model.requires_grad_(False)

    def begin(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.detach().requires_grad_() if torch.is_grad_enabled() else output

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not (torch.is_grad_enabled() and output.requires_grad):
            return None
        size = sum(p.numel() for p in module.parameters(recurse=False)) if room else 0
        kept: Tensor = _Keep.apply(output, arguments[0].detach(), columns[module], size)
        return kept

    handles = [m.register_forward_hook(begin) for m in model.modules() if isinstance(m, nn.Embedding)]
    handles += [module.register_forward_hook(keep) for module in columns]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def checkpointing(model: PreTrainedModel, active: bool) -> Iterator[None]:
    """Activations of whole layers are computed again in backward, if `active`.

    Raises:
        ValueError: the architecture cannot do that.
    """
    if not active:
        yield
        return
    # transformers 5.2x renamed it.
    stop = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    config = model.config.get_text_config()  # of a model that sees, its language's
    uses_cache = config.use_cache
    config.use_cache = False
    recompute_activations(model)
    try:
        yield
    finally:
        stop()
        config.use_cache = uses_cache
