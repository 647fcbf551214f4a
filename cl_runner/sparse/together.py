"""A pass of importance over single examples where no process has all of the weights: all processes pass at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from cl_runner import distributed
from cl_runner.batch import Batch
from cl_runner.shards import Shards, local
from cl_runner.sparse.agreement import disagreeing, finite
from cl_runner.sparse.per_example import Loss, PerExample
from cl_runner.sparse.sums import Total, largest_of


def pass_together(
    model: nn.Module,
    batches: Iterator[Batch],
    loss: Loss,
    totals: Mapping[str, Total],
    count: Callable[[int], None],
    shards: Shards,
    compared: Batch | None,
) -> tuple[int, int]:
    """Add all batches to `totals`; the numbers of units and examples.

    A process that has no batch left in the last round passes another one's, of weight 0.
    """
    examples = 0
    fast: PerExample | None = None

    def checked(model: nn.Module, batch: Batch) -> Tensor:
        return finite(loss(model, batch), examples, size)

    while held := list(itertools.islice(batches, distributed.size())):
        size = sum(next(iter(batch.values())).shape[0] for batch in held)
        if fast is None:
            fast = _agreeing(model, held[0].rows(0, 1) if compared is None else compared, checked, totals, shards)
        mine = next((batch for number, batch in enumerate(held) if distributed.mine(number)), None)
        fast.add(held[0] if mine is None else mine, totals, weight=float(mine is not None))
        examples += size
        count(size)
    return examples, examples


def _agreeing(model: nn.Module, example: Batch, loss: Loss, totals: Mapping[str, Total], shards: Shards) -> PerExample:
    """The rules, where they agree with plain backward on one example: its gradients are compared row by row.

    Raises:
        ValueError: a parameter has no rule, or one that does not agree.
    """
    fast = PerExample(model, loss, totals)
    left = fast.add(example.twice(), totals)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    compared = {name: parameters[name] for name in totals if name not in left}
    for parameter in compared.values():
        parameter.requires_grad_(True)
    loss(model, example).backward()
    largest: dict[str, float] = {}
    differences: dict[str, float] = {}
    for name, parameter in compared.items():
        gradient, parameter.grad = parameter.grad, None
        parameter.requires_grad_(False)
        own = local(shards.cut(name, totals[name].fisher))
        if gradient is None:  # it is not used
            found = torch.zeros_like(own)
        else:  # of parts the sum over all processes, each of which passed the same example
            found = local(gradient).to(own.device).float() / (distributed.size() if name in shards else 1)
        largest[name] = 2 * largest_of(found) ** 2
        differences[name] = largest_of(own - 2 * found.square())
    largest = {name: max(one[name] for one in distributed.gathered(largest)) for name in largest}
    differences = {name: max(one[name] for one in distributed.gathered(differences)) for name in differences}
    left |= disagreeing(largest, differences, fast.coarse)
    for total in totals.values():
        total.clear()
    if left:
        raise ValueError(
            f"hardware.shard=always: the importance of {min(left)} needs a pass for each example, which no process "
            "makes alone where the weights lie in parts. Type: hardware.shard=true"
        )
    return fast
