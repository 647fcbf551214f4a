"""Importance of every weight: the exact diagonal Fisher, from one forward and backward pass per batch.

Shapes: B examples, L positions, D features in, E features out, V rows of an embedding.

A batch's gradient is a sum over its examples, and the sum of squares is not the square of the sum. So hooks
take each layer's input and the gradient of its output, and form the weight's gradient per example from them.
The weights themselves need no gradient in that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = Mapping[str, Tensor]
LossSum = Callable[[nn.Module, dict[str, Tensor]], Tensor]


def exact_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_sum: LossSum,
    names: Collection[str],
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """The exact diagonal empirical Fisher at the current weights (PE, 2022.naacl-industry.35, eq. 1).

    F_i = 1/N sum_j (d log p(y_j|x_j) / d theta_i)^2 over N examples, without dropout. nn.Linear,
    nn.LayerNorm and nn.Embedding go through one pass per batch. What has no rule of its own (another kind of
    layer, a layer called twice, tied weights, weights used outside their layer) goes through one pass per
    example, with the same result. Two examples of the first batch are computed both ways to find out which
    weights that concerns.

    Args:
        batches: tensors by name, each with the examples along its first dimension.
        loss_sum: the sum over a batch's examples of -log p(y|x).
        names: the parameters to measure.
        on_batch: called after each batch with the number of examples done; may raise to interrupt.

    Returns:
        fp32 tensors of the parameters' shapes, by name, on their devices.

    Raises:
        ValueError: there are no examples, a name is no parameter, or a Fisher value is not finite.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise ValueError(f"the model has no parameter {unknown[0]!r}")
    totals = {name: torch.zeros_like(parameters[name], dtype=torch.float32) for name in names}
    done = 0
    with _measuring(model), torch.enable_grad():
        fast: _PerExample | None = None
        for given in batches:
            batch = dict(given)
            size = _size(batch)
            if fast is None and size > 1:
                fast = _agreeing(model, {key: tensor[:2] for key, tensor in batch.items()}, loss_sum, totals)
            # A single example needs no rules: its gradient is the batch's.
            left = set(totals) if fast is None or size == 1 else fast.add(batch, totals)
            if left:
                _add_one_by_one(model, batch, loss_sum, {name: totals[name] for name in sorted(left)})
            done += size
            if on_batch is not None:
                on_batch(done)
    if done == 0:
        raise ValueError("importance needs at least one example, got none")
    for name, total in totals.items():
        total.div_(done)
        if not bool(torch.isfinite(total).all()):
            raise ValueError(f"the Fisher of {name} is not finite: weights or loss have overflowed")
    return totals


def _size(batch: Mapping[str, Tensor]) -> int:
    """Number of examples."""
    return next(iter(batch.values())).shape[0]


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no parameter requires a gradient; afterwards everything is as before."""
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval()
    model.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _add_one_by_one(
    model: nn.Module, batch: Mapping[str, Tensor], loss_sum: LossSum, totals: Mapping[str, Tensor]
) -> None:
    """Add every example's squared gradient to `totals`: one pass per example, right for any model."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = [parameters[name] for name in totals]
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        for i in range(_size(batch)):
            loss = loss_sum(model, {key: tensor[i : i + 1] for key, tensor in batch.items()})
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            for total, gradient in zip(totals.values(), gradients, strict=True):
                if gradient is not None:
                    gradient = gradient.float()
                    total.addcmul_(gradient, gradient)
    finally:
        for parameter in wanted:
            parameter.requires_grad_(False)


def _agreeing(
    model: nn.Module, probe: Mapping[str, Tensor], loss_sum: LossSum, totals: Mapping[str, Tensor]
) -> _PerExample:
    """The one-pass measurement of those parameters for which it agrees with single examples on `probe`."""
    slow = {name: torch.zeros_like(total) for name, total in totals.items()}
    _add_one_by_one(model, probe, loss_sum, slow)
    quick = {name: torch.zeros_like(total) for name, total in totals.items()}
    fast = _PerExample(model, loss_sum, totals)
    left = fast.add(probe, quick)
    largest = max((float(score.max()) for score in slow.values() if score.numel()), default=0.0)
    for name in set(totals) - left:
        difference = float((quick[name] - slow[name]).abs().max()) if slow[name].numel() else 0.0
        # A wrong rule is wrong by about the value itself. Gradients that are zero but for rounding (the key's
        # bias cancels in the softmax) may differ by all of it.
        if not difference <= 1e-2 * float(slow[name].max()) + 1e-10 * largest:
            left.add(name)
    return _PerExample(model, loss_sum, set(totals) - left)


class _PerExample:
    """One forward and backward pass that adds squared per-example gradients for the layers it has a rule for.

    Args:
        names: parameters to measure; those that no rule covers are left to the caller.
    """

    def __init__(self, model: nn.Module, loss_sum: LossSum, names: Collection[str]):
        self._model = model
        self._loss_sum = loss_sum
        owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for role, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                owners.setdefault(parameter, []).append((module, role))
        self._roles: dict[nn.Module, dict[str, str]] = {}  # module -> weight | bias -> parameter's name
        for name, parameter in model.named_parameters(remove_duplicate=False):
            (module, role), *others = owners[parameter]
            if name in names and not others and type(module) in _RULES:
                self._roles.setdefault(module, {})[role] = name

    def add(self, batch: Mapping[str, Tensor], totals: Mapping[str, Tensor]) -> set[str]:
        """Add the squared gradients of every example to `totals`; return the names that were left out."""
        size = _size(batch)
        calls: dict[nn.Module, int] = {}
        unfit: set[nn.Module] = set()
        handles = []

        def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            # Positions are often looked up once for all examples, [1, L]; each needs a gradient of its own.
            if len(arguments) == 1 and arguments[0].shape[:1] == (1,) and size > 1:
                return (arguments[0].expand(size, *arguments[0].shape[1:]),)
            return None

        def after(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            calls[module] = calls.get(module, 0) + 1
            if len(arguments) != 1 or arguments[0].dim() < 2 or arguments[0].shape[0] != size:
                unfit.add(module)
                return None
            inputs, version = arguments[0].detach(), arguments[0]._version
            start = not output.requires_grad  # no layer before needs a gradient: the graph begins here
            watched = output.detach().requires_grad_() if start else output

            def on_gradient(gradient: Tensor) -> None:
                if inputs._version != version:  # overwritten since the forward pass
                    unfit.add(module)
                if module in unfit:
                    return
                roles = {role: totals[name] for role, name in self._roles[module].items()}
                _RULES[type(module)](module, inputs, gradient.detach(), roles)

            watched.register_hook(on_gradient)
            return watched.clone() if start else None  # a copy, as the model may go on in place

        try:
            for module in self._roles:
                if type(module) is nn.Embedding:
                    handles.append(module.register_forward_pre_hook(before))
                handles.append(module.register_forward_hook(after))
            loss = self._loss_sum(self._model, dict(batch)) if self._roles else None
            unfit.update(module for module, count in calls.items() if count > 1)
            if loss is not None and loss.requires_grad:
                loss.backward()
        finally:
            for handle in handles:
                handle.remove()
        fit = [roles.values() for module, roles in self._roles.items() if module not in unfit]
        return set(totals).difference(*fit)


def _linear(module: nn.Module, inputs: Tensor, gradient: Tensor, totals: Mapping[str, Tensor]) -> None:
    """inputs [B, ..., D], gradient [B, ..., E]; weight [E, D]: g^T x per example."""
    inputs = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1]).float()
    gradient = gradient.reshape(gradient.shape[0], -1, gradient.shape[-1]).float()
    if "bias" in totals:
        totals["bias"].add_(gradient.sum(1).square().sum(0))
    if "weight" not in totals:
        return
    # Positions that no example uses further on, such as all but the first in a last layer, add nothing.
    used = gradient.any(2).any(0)
    inputs, gradient = inputs[:, used], gradient[:, used]
    if inputs.shape[1] == 1:  # (g x)^2 = g^2 x^2
        totals["weight"].addmm_(gradient[:, 0].square().t(), inputs[:, 0].square())
        return
    one = torch.empty_like(totals["weight"])
    for x, g in zip(inputs, gradient, strict=True):
        # One example at a time: its product stays in the cache until it is squared and added.
        torch.mm(g.t(), x, out=one)
        totals["weight"].addcmul_(one, one)


def _layer_norm(module: nn.Module, inputs: Tensor, gradient: Tensor, totals: Mapping[str, Tensor]) -> None:
    """inputs, gradient [B, ..., *normalized_shape]: g * normalised input and g, summed over positions."""
    assert isinstance(module, nn.LayerNorm)
    shape = module.normalized_shape
    gradient = gradient.float()
    if "bias" in totals:
        totals["bias"].add_(_sum_positions(gradient, shape).square().sum(0))
    if "weight" in totals:
        normalised = functional.layer_norm(inputs.float(), shape, eps=module.eps)
        totals["weight"].add_(_sum_positions(gradient * normalised, shape).square().sum(0))


def _sum_positions(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[B, ..., *shape] -> [B, *shape]."""
    return values.reshape(values.shape[0], -1, *shape).sum(1)


def _embedding(module: nn.Module, inputs: Tensor, gradient: Tensor, totals: Mapping[str, Tensor]) -> None:
    """inputs [B, ...] rows, gradient [B, ..., D]; weight [V, D]: repeated rows add up before squaring."""
    assert isinstance(module, nn.Embedding)
    examples = torch.arange(inputs.shape[0], device=inputs.device).view(-1, *[1] * (inputs.dim() - 1))
    pairs = (examples * module.num_embeddings + inputs).reshape(-1)  # (example, row) as one number
    found, position = torch.unique(pairs, return_inverse=True)
    summed = torch.zeros(len(found), module.embedding_dim, device=gradient.device)
    summed.index_add_(0, position, gradient.reshape(-1, module.embedding_dim).float())
    rows = found % module.num_embeddings
    if module.padding_idx is not None:
        summed[rows == module.padding_idx] = 0.0
    totals["weight"].index_add_(0, rows, summed.square())


_RULES: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], None]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
