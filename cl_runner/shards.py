"""A model whose weights lie in parts over the processes of a run while it trains: FSDP2, torch's `fully_shard`.

In a step of training a block's weights are whole only while it computes, and of what trains whole each process holds
its own rows of values, gradients and the optimizer's state. Between trainings, where a run selects, measures, answers
and hashes, every process has the whole weights (`gather`), and nothing there is written otherwise than for one process.

With `always` no process ever has them: a pass then needs all processes wherever it is made. Before each, a process
says that it makes one; one that is done makes passes that count nothing as long as another one says so (`wait`).

The first process alone has read the model (handed_out.py); block after block comes to all, and each keeps its rows.

A tensor's rows are cut as `Tensor.chunk` cuts them. What outlives a step is held as DTensor, which knows its whole
shape: `whole` brings it together again, so that files hold no trace of the number of processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as collectives
from torch.distributed import ProcessGroup, Work
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from cl_runner import distributed
from cl_runner.handed_out import receive
from cl_runner.sparse.bits import digest
from cl_runner.stored import Stored

Result = TypeVar("Result")

#: torch 2.13 gave them these names, and warns of the old ones.
_all_gather: Any = getattr(collectives, "all_gather_single", None) or collectives.all_gather_into_tensor
_reduce_scatter: Any = getattr(collectives, "reduce_scatter_single", None) or collectives.reduce_scatter_tensor


def available() -> bool:
    """Whether this torch adds gradients up on every kind of device (2.8)."""
    return hasattr(FSDPModule, "set_force_sum_reduction_for_comms")


def in_parts(tensor: Tensor) -> bool:
    """Whether each process has its rows of a tensor."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor in parts, which it shares memory with; another one as it is."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, in every process, which all have to ask for; one that is not in parts as it is."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def collected(tree: Any) -> Any:
    """A tree of a run's state with whole tensors in main memory in the place of parts; of the first process alone."""
    if isinstance(tree, DTensor):
        found = whole(tree)
        return found.cpu() if distributed.first() else None
    if isinstance(tree, dict):
        return {key: collected(value) for key, value in tree.items()}
    return [collected(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def placed(shards: Shards | None, tree: Any) -> Any:
    """A tree of saved state (of `Stored`, for weights in parts) as it lies while a model trains."""
    return tree if shards is None else shards.placed(tree)


class Shards:
    """The weights of a model in parts, or whole: whole at first, but for `always`.

    Args:
        model: as `handed_out.begun` made it; its blocks are what transformers does not split over devices.
        added: names of parameters that a method brought along, which are small and whole in every process.
        device: to compute on.
        always: whether the weights lie in parts between trainings as well.

    Attributes:
        gathered: every process has the whole weights.
        training: the model trains, and all processes make as many passes by themselves.
    """

    def __init__(self, model: nn.Module, added: frozenset[str], device: torch.device, always: bool = False):
        self._mesh = init_device_mesh(device.type, (distributed.size(),))
        self.always = always
        # T5's blocks return views, on which torch would lose its hook if something were added in place: nothing is.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        blocks = list(_blocks(model))
        received: set[nn.Module] = set()
        for module in [*blocks, model]:
            receive([one for one in module.modules() if one not in received], device)
            received.update(module.modules())
            # Half-precision gradients are added up in fp32.
            policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
            apart = {p for name, p in model.named_parameters() if name in added or p.ndim == 0}
            fully_shard(module, mesh=self._mesh, mp_policy=policy, ignored_params=apart)
        self._model = model
        self._modules: list[FSDPModule] = [module for module in [*blocks, model] if isinstance(module, FSDPModule)]
        for sharded in self._modules:
            # Losses are parts of a whole already: their gradients add up.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
            if hasattr(sharded, "set_custom_all_gather"):
                # torch's own classes of these are not public.
                sharded.set_custom_all_gather(_Gather(self))  # type: ignore[arg-type]
                sharded.set_custom_reduce_scatter(_Scatter(self))  # type: ignore[arg-type]
        # By itself torch takes the part of a model that is asked first for the whole of it, such as T5's encoder.
        fully_shard.state(model)._lazy_init()  # type: ignore[attr-defined]  # torch sets it on the function
        self._parts = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
        self.gathered = self.training = self._idle = False
        if always:  # before torch's own hook, which brings weights together
            model.register_forward_pre_hook(self._announce, prepend=True)
        self.gather()

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    # whole or in parts
    def gather(self) -> None:
        """Every process has the whole weights; passes are its own business, and gradients stay where they are.

        With `always` they stay in parts, and passes are made together.
        """
        self.refresh()
        self.training, self.gathered = False, not self.always
        for module in self._modules:
            self._exchanging(module, self.always)
            if self.gathered:
                module.unshard()

    @torch.no_grad()
    def part(self) -> None:
        """Each process keeps its rows of the weights as they are now; from here on all make their passes together."""
        for name, parameter in self._model.named_parameters():
            if self.gathered and name in self._parts:
                local(self._parts[name]).copy_(self._rows(parameter))
                self._parts[name].requires_grad_(parameter.requires_grad)
        self.training, self.gathered = True, False
        for module in self._modules:
            self._exchanging(module, True)
        self.refresh()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, in the middle of training, every process has the whole weights, or passes as `gather` says."""
        assert self.training
        self.gather()
        yield
        self.part()

    def _exchanging(self, module: FSDPModule, on: bool) -> None:
        # What lies outside of blocks is needed at both ends of a pass of training.
        both_ends = self.training and module is self._model
        module.set_reshard_after_forward(on and not both_ends, recurse=False)
        module.set_reshard_after_backward(on, recurse=False)
        module.set_requires_gradient_sync(on, recurse=False)

    def refresh(self) -> None:
        """The rows have changed: the next pass brings the weights together anew."""
        for module in self._modules:
            module.reshard()

    def one_by_one(self) -> Iterator[dict[str, nn.Parameter]]:
        """All parameters, as passes use them: those of a block are whole while they are looked at, if not always."""
        everything = dict(self._model.named_parameters())
        if self.gathered:
            yield everything
            return
        yield {name: p for name, p in everything.items() if name not in self._parts}
        for module in self._modules:
            module.unshard()
            found = dict(self._model.named_parameters())
            yield {name: p for name, p in found.items() if name in self._parts and not isinstance(p, DTensor)}
            module.reshard()

    # passes of weights that are always in parts
    def _announce(self, model: nn.Module, given: Any) -> None:
        if not self.training and not self._idle:
            with distributed.together():
                distributed.any_of(True)

    @torch.no_grad()
    def wait(self, idle: Callable[[], object]) -> None:
        """This process has made its passes: as long as others make some, it makes such as count nothing.

        Args:
            idle: one pass.
        """
        self._idle = self.always
        while self.always and distributed.any_of(False):
            idle()
        self._idle = False

    def of_first(self, function: Callable[[], Result], idle: Callable[[], object]) -> Result:
        """What the first process finds, as `once`, by passes that it makes alone: the others' count nothing."""

        @distributed.once
        def found() -> Result:
            try:
                return function()
            finally:
                with distributed.together():
                    self.wait(idle)

        if not distributed.first():
            self.wait(idle)
        return found()

    # all weights, tensor after tensor
    def digests(self, weights: Mapping[str, Tensor], without: Mapping[str, Tensor] | None = None) -> dict[str, str]:
        """`tensor_digests`, in every process: each hashes its share, and holds two whole tensors at most.

        Args:
            without: flat positions by name, in whose place there is zero (`certificate.rest_digests`).
        """
        found: dict[str, Future[str]] = {}
        last: Future[str] | None = None
        with ThreadPoolExecutor(1) as pool:
            for number, (name, tensor) in enumerate(weights.items()):
                full = whole(tensor)
                if distributed.mine(number):
                    if last is not None:
                        last.result()
                    if without is not None and name in without:
                        full = full.detach().clone()
                        full.view(-1)[without[name].to(full.device)] = 0
                    last = found[name] = pool.submit(digest, full)
        every = distributed.gathered({name: each.result() for name, each in found.items()})
        joined = {name: each for one in every for name, each in one.items()}
        return {name: joined[name] for name in weights}

    @torch.no_grad()
    def fill(self, weights: Mapping[str, Tensor | None]) -> None:
        """The model gets whole tensors, by name, that the first process has in main memory."""
        for name, parameter in self._model.named_parameters():
            full = weights[name]
            if full is None:
                full = torch.empty(parameter.shape, dtype=parameter.dtype)
            full = full.detach().to(self._mesh.device_type)
            distributed.send(full)
            local(parameter).copy_(self._rows(full) if name in self._parts else full)
        self.refresh()

    # a tensor's parts
    def _span(self, rows: int) -> tuple[int, int]:
        """The first of this process's rows, of so many, and the one behind its last."""
        each = -(-rows // self._mesh.size())
        begin = min(rows, each * self._mesh.get_local_rank())
        return begin, min(rows, begin + each)

    def _rows(self, full: Tensor | Stored) -> Tensor:
        begin, end = self._span(full.shape[0])
        return full.rows(begin, end) if isinstance(full, Stored) else full.detach()[begin:end]

    def own(self, name: str) -> Tensor:
        """This process's rows of a parameter; what is written there is the model's."""
        return local(self._parts[name])

    def cut(self, name: str, full: Tensor | Stored) -> Tensor:
        """A tensor of a parameter's shape in parts, on the model's device; of one that is whole everywhere itself."""
        if name not in self._parts or isinstance(full, DTensor):
            return full.whole() if isinstance(full, Stored) else full
        assert full.shape == self._parts[name].shape, f"{name}: {full.shape}"
        rows = self._rows(full).to(self.own(name).device, copy=True).contiguous()
        return self._tensor(name, rows)

    def _tensor(self, name: str, rows: Tensor) -> Tensor:
        shape, stride = self._parts[name].shape, self._parts[name].stride()
        return DTensor.from_local(rows, self._mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def joined(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows, by the name of their parameter, as tensors that know the whole; others as they are."""
        return {n: self._tensor(n, v.detach()) if self._fits(n, v) else v for n, v in values.items()}

    def _fits(self, name: str, value: Tensor) -> bool:
        return name in self._parts and value.shape == self.own(name).shape and not isinstance(value, DTensor)

    def split(self, values: Mapping[str, Stored]) -> dict[str, Tensor]:
        """The counterpart of `joined`, of what was saved."""
        return {n: local(self.cut(n, v)) if self._sized(n, v) else v.whole() for n, v in values.items()}

    def placed(self, tree: Any) -> Any:
        """A tree of saved state on the model's device, of which tensors of a parameter's size, by its name, are cut."""
        if isinstance(tree, dict):
            alike = {key: isinstance(value, Stored) and self._sized(key, value) for key, value in tree.items()}
            return {key: self.cut(key, each) if alike[key] else self.placed(each) for key, each in tree.items()}
        if isinstance(tree, list):
            return [self.placed(each) for each in tree]
        return tree.whole().to(self._mesh.device_type) if isinstance(tree, Stored) else tree

    def _sized(self, name: str, value: Stored) -> bool:
        return name in self._parts and value.shape == self._parts[name].shape

    def gradient(self, name: str) -> Tensor | None:
        """This process's rows of a gradient that the passes so far added up, which is forgotten then."""
        parameter = self._parts[name]
        found, parameter.grad = parameter.grad, None
        return None if found is None else local(found)

    # some entries
    def _mine(self, name: str, index: Tensor) -> tuple[slice, Tensor]:
        """Which of sorted flat positions lie in this process's rows, and where there."""
        part = self._parts[name]
        width = part.numel() // max(1, part.shape[0])
        ends = torch.tensor(self._span(part.shape[0]), device=index.device) * width
        low, high = torch.searchsorted(index, ends).tolist()
        return slice(low, high), index[low:high] - ends[0]

    @torch.no_grad()
    def write(self, name: str, index: Tensor, values: Tensor) -> None:
        """Entries of a parameter become these values; each process writes what lies in its rows.

        Args:
            index: sorted flat positions [K]; `values`: [K].
        """
        own = self.own(name)
        some, places = self._mine(name, index)
        own.view(-1).index_copy_(0, places, values[some].to(own.dtype))

    @contextmanager
    def at(self, weights: Mapping[str, Tensor], positions: Mapping[str, Tensor]) -> Iterator[None]:
        """The model in parts at other values, as `Learner.at` says it."""
        own = {name: self.own(name) for name in weights if name in self._parts}
        now = {name: rows.clone() for name, rows in own.items()}
        for name, rows in own.items():
            if name in positions:
                self.write(name, positions[name], weights[name])
            else:
                rows.copy_(local(self.cut(name, weights[name])))
        others = {n: p for n, p in self._model.named_parameters() if n in weights and n not in own}
        before = {name: parameter.data for name, parameter in others.items()}
        for name, parameter in others.items():
            assert name not in positions, f"{name} is whole everywhere, and trains as a whole"
            parameter.data = weights[name]
        self.refresh()
        yield
        for name, rows in own.items():
            rows.copy_(now[name])
        for name, parameter in others.items():
            parameter.data = before[name]
        self.refresh()


class _Counting:
    """What torch's FSDP2 asks to send something, which counts it; not what the whole weights between trainings cost."""

    def __init__(self, shards: Shards):
        self._shards = shards

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def count(self, tensor: Tensor) -> None:
        if self._shards.training:
            distributed.count_sent(tensor.nbytes)


class _Gather(_Counting):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: ProcessGroup, async_op: bool = False
    ) -> Work | None:
        self.count(input_tensor)
        return _all_gather(output_tensor, input_tensor, group=group, async_op=async_op)


class _Scatter(_Counting):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: ProcessGroup, op: Any, async_op: bool = False
    ) -> Work:
        self.count(input_tensor)
        return _reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a model, in its order."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from (block for block in module if type(block).__name__ in kinds)
