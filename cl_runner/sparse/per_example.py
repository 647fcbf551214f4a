"""Every example's own gradient from one forward and backward pass over a batch, squared and summed.

Shapes: B examples, L positions, D features in, E features out, V rows of an embedding.

A batch's gradient is a sum over its examples, and the sum of squares is not the square of the sum. So hooks take
each layer's input and the gradient of its output, and form the weight's gradient per example from them. The weights
themselves need no gradient in that pass, and at most one full gradient exists at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from cl_runner.batch import Batch

Loss = Callable[[nn.Module, Batch], Tensor]


class Sums(Protocol):
    """Where the sums of one parameter are collected."""

    def opened(self) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Sums to add to in place, fp32: of the squares, and of the gradients if those are wanted."""


class _Vectors(NamedTuple):
    """Gradients of a small parameter, one per example: [B, *shape]."""

    values: Tensor


class _Products(NamedTuple):
    """Gradients left[b]^T right[b] of a matrix: [B, L, rows] and [B, L, columns]."""

    left: Tensor
    right: Tensor


class _Rows(NamedTuple):
    """Parts of gradients of a matrix: values [P, columns] that belong at (example, row) = divmod(pairs, V)."""

    pairs: Tensor
    values: Tensor


_Piece = _Vectors | _Products | _Rows
_Rule = Callable[[nn.Module, str, Tensor, Tensor], _Piece]


class PerExample:
    """Gradients and squared gradients of single examples, for the parameters whose layers it has a rule for.

    There are rules for nn.Linear, Conv1D of transformers, nn.Embedding, nn.LayerNorm and whatever looks like an RMS
    norm. Layers may be called several times and share their weights. Whether the rules are right for a model (weights
    may also be used outside their layers) is the caller's to check.

    Args:
        model: no parameter of it requires a gradient.
        loss: the sum over a batch's examples.
        names: parameters to measure; no two of them are one tensor.

    Attributes:
        coarse: whether a gradient came in less than fp32.
    """

    def __init__(self, model: nn.Module, loss: Loss, names: Collection[str]):
        self.coarse = False
        self._model = model
        self._loss = loss
        owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for role, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                owners.setdefault(parameter, []).append((module, role))
        self._roles: dict[nn.Module, dict[str, str]] = {}  # module -> weight | bias -> parameter's name
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in names and all(_rule(module) for module, _ in owners[parameter]):
                for module, role in owners[parameter]:
                    self._roles.setdefault(module, {})[role] = name

    def add(self, batch: Batch, sums: Mapping[str, Sums], weight: float = 1.0) -> set[str]:
        """Add every example's gradient and its square to `sums`; return the names that were left out.

        Args:
            weight: of the loss; of weight 0 it is a pass that adds nothing.
        """
        if not self._roles:
            return set(sums)
        pending = _Pending(self._roles, next(iter(batch.values())).shape[0], sums)
        handles = []
        try:
            for module in self._roles:
                if isinstance(module, nn.Embedding):
                    handles.append(module.register_forward_pre_hook(pending.before_call))
                handles.append(module.register_forward_hook(pending.after_call))
            loss = self._loss(self._model, batch)
            loss = loss if weight == 1 else weight * loss
            pending.end_forward()
            if loss.requires_grad:
                loss.backward()
        finally:
            for handle in handles:
                handle.remove()
        self.coarse |= pending.coarse
        covered = {name for roles in self._roles.values() for name in roles.values()}
        return set(sums) - (covered - pending.end_backward())


class _Pending:
    """One pass: what its layers were called with, until the gradients of a parameter's last call have come."""

    def __init__(self, roles: Mapping[nn.Module, Mapping[str, str]], size: int, sums: Mapping[str, Sums]):
        self.coarse = False
        self._roles = roles
        self._size = size
        self._sums = sums
        self._forward = True
        self._calls: dict[str, list[nn.Module]] = {}  # by parameter: the layers that used it
        self._looked_up: dict[str, list[Tensor]] = {}  # by embedding matrix: pairs (example, row)
        self._pieces: dict[str, list[_Piece]] = {}
        self._unfit: set[str] = set()

    def before_call(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Positions are often looked up once for all examples, [1, L]; each needs a gradient of its own."""
        if self._forward and len(arguments) == 1 and arguments[0].shape[:1] == (1,) and self._size > 1:
            return (arguments[0].expand(self._size, *arguments[0].shape[1:]),)
        return None

    def after_call(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Keep a layer's input, and wait for the gradient of its output."""
        if not self._forward:
            return None
        roles = self._roles[module]
        if not self._fits(module, arguments, output):
            self._unfit.update(roles.values())
            return None
        inputs = arguments[0].detach()
        if isinstance(module, nn.Embedding):
            inputs = inputs.clone()
            self._looked_up.setdefault(roles["weight"], []).append(_pairs(inputs, module.num_embeddings))
        version = inputs._version
        for name in roles.values():
            self._calls.setdefault(name, []).append(module)
        start = not output.requires_grad  # no layer before needs a gradient: the graph begins here
        watched = output.detach().requires_grad_() if start else output

        def on_gradient(gradient: Tensor) -> None:
            if inputs._version != version:  # overwritten since the forward pass
                self._unfit.update(roles.values())
            self.coarse |= gradient.dtype.itemsize < 4
            with torch.autocast(gradient.device.type, enabled=False):
                self._take(module, inputs, gradient.detach())

        watched.register_hook(on_gradient)
        return watched.clone() if start else None  # a copy, as the model may go on in place

    def _fits(self, module: nn.Module, arguments: tuple[object, ...], output: object) -> bool:
        """Whether the call has the shapes that the rules expect."""
        if len(arguments) != 1 or not isinstance(arguments[0], Tensor) or not isinstance(output, Tensor):
            return False
        inputs = arguments[0]
        if isinstance(module, nn.Embedding) and (inputs.is_floating_point() or inputs.is_complex()):
            return False  # a subclass that makes its positions itself, such as BART's
        if inputs.dim() < 2 or inputs.shape[0] != self._size or output.shape[0] != self._size:
            return False
        return _rule(module) is not _rms_norm or inputs.shape == output.shape == (*output.shape[:-1], _width(module))

    def end_forward(self) -> None:
        """From now on calls are no longer recorded, so that it is known which one is a parameter's last."""
        self._forward = False
        for name in self._looked_up:
            # The product's rows that were looked up are set aside: of one product, not of a sum of several.
            if sum(not isinstance(module, nn.Embedding) for module in self._calls[name]) > 1:
                self._unfit.add(name)

    def end_backward(self) -> set[str]:
        """Add what is still pending, as not every call matters to the loss; return the parameters left out."""
        for name in list(self._pieces):
            self._finish(name)
        return self._unfit

    def _take(self, module: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        """One call's part of the gradients of the layer's parameters."""
        rule = _rule(module)
        assert rule is not None
        for role, name in self._roles[module].items():
            if name in self._unfit:
                continue
            piece = rule(module, role, inputs, gradient)
            if isinstance(piece, _Products) and name in self._looked_up:
                piece = _add_tied_products(piece, torch.cat(self._looked_up[name]).unique(), self._sums[name])
            pieces = self._pieces.setdefault(name, [])
            pieces.append(piece)
            if len(pieces) == len(self._calls[name]):
                self._finish(name)

    def _finish(self, name: str) -> None:
        """Square and add what a parameter's calls have brought: the parts of one example add up before that."""
        pieces = self._pieces.pop(name)
        if name in self._unfit:
            return
        if isinstance(pieces[0], _Vectors):
            _add_vectors([piece for piece in pieces if isinstance(piece, _Vectors)], self._sums[name])
        elif isinstance(pieces[0], _Products):
            _add_products([piece for piece in pieces if isinstance(piece, _Products)], self._sums[name])
        else:
            _add_rows([piece for piece in pieces if isinstance(piece, _Rows)], self._sums[name])


def _add_vectors(pieces: Sequence[_Vectors], sums: Sums) -> None:
    total = pieces[0].values
    for piece in pieces[1:]:
        total = total + piece.values
    with sums.opened() as (squares, gradients):
        squares.add_(total.square().sum(0))
        if gradients is not None:
            gradients.add_(total.sum(0))


def _add_products(pieces: Sequence[_Products], sums: Sums) -> None:
    left, right = pieces[0]
    if len(pieces) > 1:  # several calls are like more positions of one
        left, right = torch.cat([piece.left for piece in pieces], 1), torch.cat([piece.right for piece in pieces], 1)
    with sums.opened() as (squares, gradients):
        if left.shape[1] == 1:  # (g x)^2 = g^2 x^2
            left, right = left[:, 0], right[:, 0]
            squares.addmm_(left.square().t(), right.square())
            if gradients is not None:
                gradients.addmm_(left.t(), right)
            return
        one = torch.empty_like(squares)
        for rows, columns in zip(left, right, strict=True):
            # One example at a time: its product stays in the cache until it is squared and added.
            torch.mm(rows.t(), columns, out=one)
            squares.addcmul_(one, one)
            if gradients is not None:
                gradients.add_(one)


def _add_tied_products(products: _Products, pairs: Tensor, sums: Sums) -> _Rows:
    """Add the products, but set aside their rows at `pairs`: an embedding looked those up with the same matrix.

    They get another part of the gradient before they may be squared. An output layer has V rows, of which a text
    holds few, so nothing large is kept.
    """
    kept = []
    with sums.opened() as (squares, gradients):
        one = torch.empty_like(squares)
        for example, (left, right) in enumerate(zip(*products, strict=True)):
            torch.mm(left.t(), right, out=one)
            rows = pairs[pairs // len(one) == example] % len(one)
            kept.append(one[rows])
            one[rows] = 0.0
            squares.addcmul_(one, one)
            if gradients is not None:
                gradients.add_(one)
    return _Rows(pairs, torch.cat(kept))


def _add_rows(pieces: Sequence[_Rows], sums: Sums) -> None:
    found, position = torch.unique(torch.cat([piece.pairs for piece in pieces]), return_inverse=True)
    values = torch.cat([piece.values for piece in pieces])
    total = values.new_zeros(len(found), values.shape[1]).index_add_(0, position, values)
    with sums.opened() as (squares, gradients):
        rows = found % len(squares)
        squares.index_add_(0, rows, total.square())
        if gradients is not None:
            gradients.index_add_(0, rows, total)


# Rules: the layer, which of its parameters, its input [B, ..., D], the gradient of its output [B, ..., E].


def _linear(module: nn.Module, role: str, inputs: Tensor, gradient: Tensor) -> _Piece:
    """y = x W^T + b: weight [E, D] has g^T x, bias g."""
    if role == "bias":
        return _Vectors(_positions(gradient).sum(1))
    inputs, gradient = _used(_positions(inputs), _positions(gradient))
    return _Products(gradient, inputs)


def _conv1d(module: nn.Module, role: str, inputs: Tensor, gradient: Tensor) -> _Piece:
    """y = x W + b: weight [D, E] has x^T g, bias g."""
    piece = _linear(module, role, inputs, gradient)
    return _Products(piece.right, piece.left) if isinstance(piece, _Products) else piece


def _embedding(module: nn.Module, role: str, inputs: Tensor, gradient: Tensor) -> _Piece:
    """inputs [B, ...] rows; weight [V, D]: g at the rows looked up, none at the padding; Gemma scales the rows."""
    assert isinstance(module, nn.Embedding)
    values = _positions(gradient).flatten(0, 1) * getattr(module, "embed_scale", 1.0)
    if module.padding_idx is not None:
        values = values.masked_fill((inputs == module.padding_idx).view(-1, 1), 0.0)
    return _Rows(_pairs(inputs, module.num_embeddings), values)


def _layer_norm(module: nn.Module, role: str, inputs: Tensor, gradient: Tensor) -> _Piece:
    """weight: g * normalised input, bias: g."""
    assert isinstance(module, nn.LayerNorm)
    gradient = gradient.float()
    if role == "weight":
        gradient = gradient * functional.layer_norm(inputs.float(), module.normalized_shape, eps=module.eps)
    return _Vectors(gradient.reshape(gradient.shape[0], -1, *module.normalized_shape).sum(1))


def _rms_norm(module: nn.Module, role: str, inputs: Tensor, gradient: Tensor) -> _Piece:
    """weight: g * x / sqrt(mean x^2 + eps), bias: g."""
    gradient = gradient.float()
    if role == "weight":
        inputs, epsilon = inputs.float(), _epsilon(module)
        assert epsilon is not None
        gradient = gradient * inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + epsilon)
    return _Vectors(_positions(gradient).sum(1))


_RULES: dict[type[nn.Module], _Rule] = {
    nn.Linear: _linear,
    Conv1D: _conv1d,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
}


def _rule(module: nn.Module) -> _Rule | None:
    """The rule of a layer. Every model family writes its RMS norm anew, so that one goes by its looks."""
    for kind in type(module).__mro__:
        if kind in _RULES:
            return _RULES[kind]
    own = dict(module.named_parameters(recurse=False))
    looks_like_norm = (
        "weight" in own
        and own.keys() <= {"weight", "bias"}
        and all(parameter.dim() == 1 for parameter in own.values())
        and not any(module.children())
        and _epsilon(module) is not None
    )
    return _rms_norm if looks_like_norm else None


def _epsilon(module: nn.Module) -> float | None:
    """The small number under a norm's root, by the names it goes by."""
    for name in ("variance_epsilon", "epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def _width(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return len(weight)


def _positions(values: Tensor) -> Tensor:
    """[B, ..., D] -> fp32 [B, L, D]."""
    return values.reshape(values.shape[0], -1, values.shape[-1]).float()


def _used(inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Without the positions that no example uses further on, such as all but the first in a last layer."""
    if bool(gradient[..., :8].any(2).any(0).all()):  # nearly always, and a few features show it
        return inputs, gradient
    used = gradient.any(2).any(0)
    return inputs[:, used], gradient[:, used]


def _pairs(rows: Tensor, count: int) -> Tensor:
    """Rows [B, ...] of a matrix with `count` rows as numbers that tell the examples apart, [B * ...]."""
    examples = torch.arange(rows.shape[0], device=rows.device).view(-1, *[1] * (rows.dim() - 1))
    return (examples * count + rows).reshape(-1)
