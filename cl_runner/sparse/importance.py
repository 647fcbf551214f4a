"""Importance of every weight: G, the sum of gradients over the data, and F, the sum of their squares.

A unit is what one gradient is taken of: a single example, which gives the exact diagonal Fisher (PE,
2022.naacl-industry.35, eq. 1), or a micro-batch, as in the released code of PIECE (arXiv:2511.15375).
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from cl_runner import distributed
from cl_runner.batch import Batch
from cl_runner.shards import Shards, whole
from cl_runner.sparse.agreement import disagreeing, finite
from cl_runner.sparse.per_example import Loss, PerExample
from cl_runner.sparse.sums import Total, largest_of
from cl_runner.sparse.together import pass_together

Batches = Callable[[], Iterable[Mapping[str, Tensor]]]
#: Called with a batch and a generator on the CPU: the batch with other labels.
Draw = Callable[[Batch, torch.Generator], Batch]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Importance:
    """Sums over units b of their gradients g_b, by parameter, in the parameters' shapes.

    Attributes:
        gradient: G_i = sum_b g_b,i, if it was asked for.
        fisher: F_i = sum_b g_b,i^2.
        units: number of units, B.
        examples: number of examples in them.
    """

    gradient: Mapping[str, Tensor] | None
    fisher: Mapping[str, Tensor]
    units: int
    examples: int

    def to(self, device: torch.device) -> Importance:
        """The same sums on a device."""
        gradient = None if self.gradient is None else {name: g.to(device) for name, g in self.gradient.items()}
        return Importance(gradient, {name: f.to(device) for name, f in self.fisher.items()}, self.units, self.examples)

    def on(self, device: torch.device) -> Importance:
        """The same sums, each whole on a device when it is looked up, and not kept there."""
        gradient = None if self.gradient is None else OnDevice(self.gradient, device)
        return Importance(gradient, OnDevice(self.fisher, device), self.units, self.examples)

    def mean_fisher(self) -> dict[str, Tensor]:
        """F / B, new tensors: with single examples as units the Fisher of PE eq. 1."""
        return {name: total / self.units for name, total in self.fisher.items()}


class OnDevice(Mapping[str, Tensor]):
    """Tensors that are whole on a device when looked up: at such as lie in parts all processes look at once."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device):
        self._tensors, self._device = tensors, device

    def __getitem__(self, name: str) -> Tensor:
        return whole(self._tensors[name]).to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def measure(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    names: Collection[str],
    *,
    micro_batch: int = 1,
    gradient: bool = False,
    dtype: torch.dtype = torch.float32,
    accumulate: Literal["device", "cpu"] = "device",
    passes: int = 1,
    draw: Draw | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    compared: Batch | None = None,
    dealt: bool = False,
    shards: Shards | None = None,
) -> Importance:
    """G and F at the current weights, without dropout.

    Single examples need one pass per batch where `per_example` has a rule for the layer. Anything else (another kind
    of layer, weights used outside their layer, T5's table of relative positions) needs one pass per example: forward
    and backward as far as those weights, so that even one small tensor may cost most of what the rules save. One
    example is computed both ways to find out which weights that concerns.

    Args:
        batches: gives the batches anew at every call; tensors by name, each with the examples along its first
            dimension, all in fixed order.
        loss: the sum over the given examples if `micro_batch` is 1, else their mean.
        names: the parameters to measure.
        micro_batch: examples per unit. Batches are cut into units; only the last may leave a smaller one.
        gradient: whether to sum G too.
        dtype: of the sums. bfloat16 rounds gradients, squares and sums like the released PIECE; it takes one pass per
            unit. In a bf16 model the bits depend on the padding beside an example as well.
        accumulate: the sums live on the parameters' devices, or in main memory, with at most one tensor's on the
            device.
        passes: over all batches, each for another part of the parameters, whose sums then move to main memory. The
            result is bitwise the same for any number.
        draw: replaces the labels, such as by `draw_labels`, with the same draws in every pass.
        seed: of those draws.
        on_batch: called after each batch with the number of examples done in all passes; may raise to interrupt.
        compared: the example that is computed both ways; None = the first one. A short one is as good, and cheaper.
        dealt: whether the processes of the run take the batches in turns, and add up their sums: the same in all of
            them, and in another order than one process's.
        shards: in which the weights lie, and then the sums as well: of single examples in fp32, with `dealt`. While a
            pass goes on each process holds the whole sums of that pass's parameters.

    Raises:
        ValueError: there are no examples, a name is no parameter, a loss or sum is not finite, or with `shards` a
            parameter has no rule.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise ValueError(f"the model has no parameter {unknown[0]!r}")
    assert micro_batch >= 1 and passes >= 1, f"{micro_batch=}, {passes=}"
    assert len({parameters[name] for name in names}) == len(names), "two names for one tensor"
    found: dict[str, Total] = {}
    counts: set[tuple[int, int]] = set()
    done = 0

    def drawn() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for given in batches():
            batch = given if isinstance(given, Batch) else Batch(given)
            if draw is not None:
                with torch.no_grad():
                    batch = draw(batch, generator)
            yield batch

    def count(examples: int) -> None:
        nonlocal done
        done += examples
        if on_batch is not None:
            on_batch(done)

    with _measuring(model), torch.enable_grad():
        for group in _groups(model, names, passes):
            totals = {name: Total(parameters[name], gradient, dtype, accumulate == "cpu") for name in group}
            if shards is None:
                counts.add(_pass(model, drawn(), loss, totals, micro_batch, count, compared, dealt))
            else:
                assert micro_batch == 1 and dtype == torch.float32 and dealt
                counts.add(pass_together(model, drawn(), loss, totals, count, shards, compared))
            if dealt:
                distributed.add(part for total in totals.values() for part in total.sums())
            for name, total in totals.items():
                total.check(name)
                if shards is not None:
                    total.cut(functools.partial(shards.cut, name))
                elif passes > 1:
                    total.to_host()
            found |= totals
    assert len(counts) == 1, f"the batches differ from pass to pass: {sorted(counts)} units and examples"
    units, examples = counts.pop()
    if examples == 0:
        raise ValueError("importance needs at least one example, got none")
    sums = {name: found[name].gradient for name in names}
    return Importance(
        {name: total for name, total in sums.items() if total is not None} if gradient else None,
        {name: found[name].fisher for name in names},
        units,
        examples,
    )


def cap(examples: Sequence[Item], max_examples: int | None, seed: int) -> list[Item]:
    """At most `max_examples` of the examples, each equally likely, in their order; None: all."""
    if max_examples is None or max_examples >= len(examples):
        return list(examples)
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), max_examples))]


def draw_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Labels [N] from the model's own distribution (the true Fisher's), logits [N, V]: one number drawn for each row.

    So the draws depend on the order of the rows, not on how they are cut into batches.
    """
    # On the CPU: a GPU's running sum of fractions is not deterministic.
    cumulative = logits.detach().double().softmax(-1).cpu().cumsum(-1)
    points = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64)
    labels = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True).squeeze(1)
    return labels.clamp_max(logits.shape[1] - 1).to(logits.device)


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter requires a gradient or has one; afterwards everything is as before."""
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    model.eval()
    model.requires_grad_(False)
    model.zero_grad()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = gradients[parameter]


def _groups(model: nn.Module, names: Collection[str], count: int) -> list[list[str]]:
    """`count` or fewer groups of neighbouring parameters, about equal in size; a module's own stay together."""
    blocks: dict[str, list[str]] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name in names:
            blocks.setdefault(name.rpartition(".")[0], []).append(name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    sizes = {block: sum(parameters[name].numel() for name in held) for block, held in blocks.items()}
    total = sum(sizes.values())
    groups: dict[int, list[str]] = {}
    before = 0
    for block, held in blocks.items():
        middle = before + sizes[block] / 2  # a block goes where its middle lies
        groups.setdefault(min(int(count * middle / max(total, 1)), count - 1), []).extend(held)
        before += sizes[block]
    return list(groups.values())


def _pass(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    totals: Mapping[str, Total],
    micro_batch: int,
    count: Callable[[int], None],
    compared: Batch | None,
    dealt: bool,
) -> tuple[int, int]:
    """Add all batches to `totals`; the numbers of units and examples."""
    units = examples = 0
    fast: PerExample | None = None
    exact = micro_batch == 1 and all(total.fisher.dtype == torch.float32 for total in totals.values())

    def checked(model: nn.Module, batch: Batch) -> Tensor:
        return finite(loss(model, batch), examples, size)

    waiting = 0
    for number, batch in enumerate(batches):
        size = next(iter(batch.values())).shape[0]
        if examples % micro_batch:
            raise ValueError(
                f"importance in micro-batches of {micro_batch} needs batches of a multiple of that, got {examples} "
                "examples in all but the last"
            )
        if exact and size > 1 and fast is None:
            fast = _agreeing(model, batch.rows(0, 1) if compared is None else compared, checked, totals)
        if not dealt or distributed.mine(number):
            left = set(totals)
            if fast is not None and size > 1:  # a single example needs no rules: its gradient is the batch's
                left = fast.add(batch, totals)
            if left:
                _each_unit(model, batch, checked, left, micro_batch, lambda name, g: totals[name].add(g))
        units += -(-size // micro_batch)
        examples += size
        waiting += size
        if not dealt or distributed.round_ends(number):
            count(waiting)
            waiting = 0
    if waiting:
        count(waiting)
    return units, examples


def _each_unit(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    names: Collection[str],
    micro_batch: int,
    take: Callable[[str, Tensor], None],
) -> None:
    """Hand every unit's gradient to `take` and free it, tensor by tensor: one pass per unit, right for any model."""
    wanted = {name: parameter for name, parameter in model.named_parameters(remove_duplicate=False) if name in names}

    def taking(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient, parameter.grad = parameter.grad, None
            take(name, gradient)

        return hook

    handles = []
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(_recomputing(model))
        for name, parameter in wanted.items():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(taking(name)))
        for start in range(0, next(iter(batch.values())).shape[0], micro_batch):
            value = loss(model, batch.rows(start, start + micro_batch))
            if value.requires_grad:
                value.backward()
    finally:
        stack.close()
        for handle in handles:
            handle.remove()
        for parameter in wanted.values():
            parameter.requires_grad_(False)


@contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Inside, layers that keep no activations while they train keep none while they are measured.

    transformers has them do so in training alone, which would turn dropout on.
    """
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    layers = [module for module in layers if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _agreeing(model: nn.Module, example: Batch, loss: Loss, totals: Mapping[str, Total]) -> PerExample:
    """The one-pass measurement of those parameters for which it agrees with plain backward on one example.

    It is given the example twice: where rows are not examples, squares of sums come out four times as large, not two.
    """
    fast = PerExample(model, loss, totals)
    left = fast.add(example.twice(), totals)
    largest = dict.fromkeys(totals, 0.0)
    differences: dict[str, float] = {}

    def compare(name: str, gradient: Tensor) -> None:
        largest[name] = 2 * largest_of(gradient.float()) ** 2
        differences[name] = totals[name].difference(gradient, 2)

    compared = set(totals) - left
    _each_unit(model, example, loss, compared, 1, compare)
    # What is not used has no gradient: 0.
    found = {name: differences.get(name, largest_of(totals[name].fisher)) for name in compared}
    left |= disagreeing({name: largest[name] for name in compared}, found, fast.coarse)
    for total in totals.values():
        total.clear()
    return PerExample(model, loss, set(totals) - left)
