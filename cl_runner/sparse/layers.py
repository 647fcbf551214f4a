"""Training only selected entries of a model's weights, as compact vectors of values that any optimizer can hold.

The optimizer never sees the other entries, so neither its moments nor weight decay nor clipping can touch them: they
stay bitwise what they were. Backward computes the gradient of the selected entries from a layer's input and the
gradient of its output; the full gradient of a weight matrix is not formed while few of its entries are selected.

Shapes: T positions (all dimensions of the input but the last), D features in, E features out, K selected entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from cl_runner.masters import hand_on_gradient
from cl_runner.shards import Shards

#: What one multiply-add of a thin matrix product costs, in units of one gathered product of one selected entry (two
#: loads, a multiplication, an addition), by device. On the CPU as scripts/bench/sparse_products.py measures it; on a
#: GPU an estimate from bandwidth and peak rates.
MULTIPLY_ADD = {"cpu": 1 / 40, "cuda": 1 / 2000}

#: The same for a product of at least `WIDE` columns, which keeps the processor busier: dense gradients win above about
#: 0.7 % of scattered entries.
WIDE_MULTIPLY_ADD = {"cpu": 1 / 150, "cuda": 1 / 4000}
WIDE = 128

#: Above this share of a layer's input columns the input is saved as it is, which other layers may share.
WHOLE_INPUT = 0.5

#: What a second kind of product for the same weight costs before its first entry, in the same units.
SECOND_PRODUCT = 64

#: Elements of a buffer of gathered products: few enough to stay in a CPU's cache, many enough to fill a GPU.
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}


class CompactValues:
    """The selected entries of some tensors as fp32 parameters of their own (fp64 for fp64), one vector per tensor.

    nn.Linear, Conv1D (GPT-2) and nn.Embedding compute the gradient of the selected entries directly. Every other use
    of a selected tensor (norms, tied weights used outside their layer, layers of other types) makes the tensor's
    gradient as usual, which is gathered and freed at once. A tensor that is used in both ways gets the sum.

    Args:
        model: parameters without selected entries do not train.
        indices: sorted flat positions by parameter name; names as `model.named_parameters()` gives them.
        shards: in which the weights lie; None = every process has all of them.
    """

    def __init__(self, model: nn.Module, indices: Mapping[str, Tensor], shards: Shards | None = None):
        self._indices: dict[str, Tensor] = {}
        self._weights: dict[str, nn.Parameter] = {}
        found: dict[str, nn.Parameter] = {}
        self._hooks: list[RemovableHandle] = []
        self._layers: list[nn.Module] = []
        for weights in [dict(model.named_parameters())] if shards is None else shards.one_by_one():
            found |= self._take_over(model, weights, indices)
        self.parameters = {name: found[name] for name in indices}

    def _take_over(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], indices: Mapping[str, Tensor]
    ) -> dict[str, nn.Parameter]:
        """Values of what is selected of these weights; hooks and layers bring their gradients."""
        self._weights |= (mine := {name: weight for name, weight in weights.items() if name in indices})
        self._indices |= {name: indices[name].to(weight.device) for name, weight in mine.items()}
        entries = {name: _take(weight, self._indices[name]).to(_values_type(weight)) for name, weight in mine.items()}
        found = {name: nn.Parameter(values) for name, values in entries.items()}
        for name, weight in weights.items():
            weight.requires_grad_(name in indices)
        self._hooks += [hand_on_gradient(weight, found[name], self._indices[name]) for name, weight in mine.items()]
        names = {id(weight): name for name, weight in mine.items()}
        for module in model.modules():
            own = {role: names[id(p)] for role, p in module.named_parameters(recurse=False) if id(p) in names}
            make = _FORWARDS.get(type(module))
            # A forward of somebody else's on this one instance may use the weights in any way.
            if own and make is not None and "forward" not in vars(module):
                values = {role: (found[name], self._indices[name]) for role, name in own.items()}
                forward = make(module, values)
                if forward is not None:
                    module.forward = forward
                    self._layers.append(module)
        return found

    @torch.no_grad()
    def write_through(self, shards: Shards | None = None) -> None:
        """Copy the values into the model's own tensors, after an optimizer step.

        Args:
            shards: in which they lie now.
        """
        for name, weight in self._weights.items():
            if shards is not None and name in shards:
                shards.write(name, self._indices[name], self.parameters[name])
            else:
                weight.view(-1).index_copy_(0, self._indices[name], self.parameters[name].to(weight.dtype))

    def release(self) -> None:
        """Give the layers their own forward back; the model keeps the last values written through."""
        for hook in self._hooks:
            hook.remove()
        for module in self._layers:
            del module.forward


def _values_type(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


@torch.no_grad()
def _take(weight: Tensor, index: Tensor) -> Tensor:
    assert weight.is_contiguous(), "flat positions need a contiguous tensor"
    return weight.view(-1)[index]


@dataclass(frozen=True)
class Products:
    """How the gradient of the selected entries of a weight [E, D] is computed: see `plan_products`.

    Attributes:
        columns: sorted input columns that are saved for backward; None = the whole input.
        thin: output rows, or saved columns, whose whole product is formed; None = all of them (`by_rows` says which),
            an empty tensor = none.
        by_rows: whether `thin` counts output rows.
        thin_entries, thin_places: entries (of K) that the thin product holds, and where in it, flat.
        rest_entries, rest_rows, rest_columns: entries that are gathered; rows of the output, saved columns.
        cost: per position, in gathered products.
    """

    count: int
    columns: Tensor | None
    thin: Tensor | None
    by_rows: bool
    thin_entries: Tensor
    thin_places: Tensor
    rest_entries: Tensor
    rest_rows: Tensor
    rest_columns: Tensor
    cost: float

    @property
    def kind(self) -> str:
        """ "dense" (everything is formed), "thin", "gathered" or "thin + gathered"."""
        if self.thin is None:
            return "dense" if self.columns is None else "thin"
        if not len(self.thin):
            return "gathered"
        return "thin + gathered" if len(self.rest_entries) else "thin"


def plan_products(rows: Tensor, columns: Tensor, outputs: int, inputs: int, device: str) -> Products:
    """The cheapest way to the gradient of entries (rows[k], columns[k]) of a weight, sum over T of g[:, r] x[:, c].

    Important entries cluster in few columns, whose product with the whole output gradient is thin and quick;
    scattered ones are gathered one by one; when many are selected, the product of everything is the quickest. Each
    column (or each row, whichever is cheaper altogether) is put where it costs less.

    Args:
        rows, columns: [K] of the output and of the input.
        outputs, inputs: E, D.
        device: type of the device, for `MULTIPLY_ADD`.
    """
    unit = MULTIPLY_ADD.get(device, MULTIPLY_ADD["cpu"])
    used, slots = columns.unique(return_inverse=True)
    saved: Tensor | None = used
    width = len(used)
    if width > WHOLE_INPUT * inputs:
        saved, slots, width = None, columns, inputs
    wide = WIDE_MULTIPLY_ADD.get(device, WIDE_MULTIPLY_ADD["cpu"]) if width >= WIDE else unit
    everything = outputs * width * wide
    options = []
    for by_rows, lines, length in ((False, slots, outputs), (True, rows, width)):
        counts = torch.bincount(lines, minlength=width if not by_rows else outputs)
        # A line of the thin product costs its whole length; rows of the output gradient are copied together first.
        price = length * unit + (1.0 if by_rows else 0.0)
        thin = (counts > price).nonzero().view(-1)
        rest = int(counts.sum() - counts[thin].sum())
        both = SECOND_PRODUCT if len(thin) and rest else 0
        options.append((len(thin) * price + rest + both, by_rows, lines, thin))
        options.append((float(len(rows)), by_rows, lines, thin[:0]))
    cost, by_rows, lines, chosen = min(options, key=lambda option: option[0])
    empty = torch.empty(0, dtype=torch.int64, device=rows.device)
    if everything <= cost:
        places = slots * outputs + rows  # the product is [columns, E]
        order = torch.arange(len(rows), device=rows.device)
        return Products(len(rows), saved, None, False, order, places, empty, empty, empty, everything)
    number = torch.full((int(lines.max()) + 1,), -1, device=rows.device)
    number[chosen] = torch.arange(len(chosen), device=rows.device)
    at = number[lines]
    thin_entries, rest_entries = (at >= 0).nonzero().view(-1), (at < 0).nonzero().view(-1)
    along = slots if by_rows else rows
    places = at[thin_entries] * (width if by_rows else outputs) + along[thin_entries]
    return Products(
        len(rows),
        saved,
        chosen,
        by_rows,
        thin_entries,
        places,
        rest_entries,
        rows[rest_entries],
        slots[rest_entries],
        cost,
    )


def selected_gradient(plan: Products, saved: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the selected entries.

    Args:
        saved: [T, columns saved] of the input.
        gradient: [T, E] of the output, of the same type.

    Returns:
        [K] in `dtype`.
    """
    found = torch.empty(plan.count, dtype=dtype, device=gradient.device)
    if plan.thin is None:
        product = saved.t() @ gradient
        return product.view(-1)[plan.thin_places].to(dtype)
    if len(plan.thin):
        if plan.by_rows:
            product = gradient.index_select(1, plan.thin).t() @ saved
        else:
            product = saved.index_select(1, plan.thin).t() @ gradient
        found[plan.thin_entries] = product.view(-1)[plan.thin_places].to(dtype)
    if len(plan.rest_entries):
        total = torch.zeros(len(plan.rest_entries), dtype=dtype, device=gradient.device)
        step = max(1, CHUNK.get(gradient.device.type, CHUNK["cpu"]) // len(plan.rest_entries))
        for start in range(0, len(gradient), step):
            left = gradient[start : start + step].index_select(1, plan.rest_rows).to(dtype)
            right = saved[start : start + step].index_select(1, plan.rest_columns).to(dtype)
            total += left.mul_(right).sum(0)
        if len(plan.rest_entries) == plan.count:
            return total
        found[plan.rest_entries] = total
    return found


def _bias_gradient(gradient: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, E] -> the sums over T of the selected outputs."""
    if len(index) > gradient.shape[1] // 4:
        return gradient.sum(0, dtype=dtype)[index]
    return gradient.index_select(1, index).sum(0, dtype=dtype)


class _Linear(torch.autograd.Function):
    """y = x W + b with W [D, E] (or its transpose), whose gradient is that of the selected entries."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weight_values: Tensor | None,
        bias_values: Tensor | None,
        plan: Products | None,
        bias_index: Tensor | None,
        transposed: bool,
    ) -> Tensor:
        output = functional.linear(inputs, weight if transposed else weight.t(), bias)
        # The same tensor without the mark of a view, so that a model may go on in place.
        output = torch.ops.aten._unsafe_view.default(output, output.shape)
        kept = None
        if plan is not None:
            flat = inputs.reshape(-1, inputs.shape[-1])
            kept = flat if plan.columns is None else flat.index_select(1, plan.columns)
            kept = kept.to(output.dtype)  # under autocast the product saw the input in this type
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, kept)  # type: ignore[attr-defined, arg-type]
        ctx.plan, ctx.bias_index, ctx.transposed = plan, bias_index, transposed  # type: ignore[attr-defined]
        ctx.types = (inputs.dtype, _values_type(weight))  # type: ignore[attr-defined]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]  # torch leaves the type of its contexts open
        weight, kept = ctx.saved_tensors
        inputs_type, values_type = ctx.types
        back = of_weight = of_bias = None
        with torch.autocast(gradient.device.type, enabled=False):
            flat = gradient.reshape(-1, gradient.shape[-1])  # attention hands it on transposed: one copy for all
            # First what only reads the gradient: it has just been made and is still in the cache.
            if ctx.plan is not None:
                of_weight = selected_gradient(ctx.plan, kept, flat, values_type)
            if ctx.bias_index is not None:
                of_bias = _bias_gradient(flat, ctx.bias_index, values_type)
            if weight is not None:
                matrix = weight if ctx.transposed else weight.t()
                back = (flat @ matrix.to(flat.dtype)).to(inputs_type).view(*gradient.shape[:-1], matrix.shape[1])
        return back, None, None, of_weight, of_bias, None, None, None


class _Embedding(torch.autograd.Function):
    """Rows of a table, whose gradient is that of the selected entries."""

    @staticmethod
    def forward(ctx: FunctionCtx, ids: Tensor, weight: Tensor, values: Tensor, plan: _Rows) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.plan, ctx.type = plan, values.dtype  # type: ignore[attr-defined]
        return functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]  # as above
        (ids,) = ctx.saved_tensors
        return None, None, ctx.plan.gradient(ids, gradient, ctx.type), None


@dataclass(frozen=True)
class _Rows:
    """The selected entries of an embedding [V, width]: sorted rows that hold some, and each entry's place."""

    rows: Tensor  # [R]
    slots: Tensor  # [K] row of an entry among `rows`
    columns: Tensor  # [K]
    padding: int | None

    def gradient(self, ids: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        """ids [...], gradient [..., width] -> [K]; only rows that occur in `ids` take part."""
        found = torch.zeros(len(self.slots), dtype=dtype, device=gradient.device)
        flat = ids.reshape(-1)
        slot = torch.searchsorted(self.rows, flat).clamp_(max=len(self.rows) - 1)
        trains = self.rows[slot] == flat
        if self.padding is not None:
            trains &= flat != self.padding
        present, place = slot[trains].unique(return_inverse=True)
        if not len(present):
            return found
        width = gradient.shape[-1]
        sums = torch.zeros(len(present), width, dtype=dtype, device=gradient.device)
        sums.index_add_(0, place, gradient.reshape(-1, width)[trains].to(dtype))
        number = torch.full((len(self.rows),), -1, device=gradient.device)
        number[present] = torch.arange(len(present), device=gradient.device)
        at = number[self.slots]
        entries = (at >= 0).nonzero().view(-1)
        found[entries] = sums[at[entries], self.columns[entries]]
        return found


Forward = Callable[[Tensor], Tensor]
_Values = Mapping[str, tuple[Tensor, Tensor]]  # weight | bias -> values [K], flat positions [K]


def _linear_forward(module: nn.Module, values: _Values) -> Forward:
    """For nn.Linear, weight [E, D], and Conv1D, weight [D, E]."""
    assert isinstance(module, nn.Linear | Conv1D)
    transposed = isinstance(module, nn.Linear)
    plan = None
    weight_values, positions = values.get("weight", (None, None))
    if positions is not None:
        first, second = positions // module.weight.shape[1], positions % module.weight.shape[1]
        rows, columns = (first, second) if transposed else (second, first)
        outputs, inputs = module.weight.shape if transposed else module.weight.shape[::-1]
        plan = plan_products(rows, columns, outputs, inputs, positions.device.type)
    bias_values, bias_index = values.get("bias", (None, None))
    plain = module.forward

    def forward(input: Tensor) -> Tensor:  # as the layer's own, for calls by name
        if not torch.is_grad_enabled():
            return plain(input)
        bias = None if module.bias is None else module.bias.detach()
        weight = module.weight.detach()
        result: Tensor = _Linear.apply(input, weight, bias, weight_values, bias_values, plan, bias_index, transposed)
        return result

    return forward


def _embedding_forward(module: nn.Module, values: _Values) -> Forward | None:
    assert isinstance(module, nn.Embedding)
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return None
    weight_values, positions = values["weight"]
    rows, slots = (positions // module.embedding_dim).unique(return_inverse=True)
    plan = _Rows(rows, slots, positions % module.embedding_dim, module.padding_idx)
    plain = module.forward

    def forward(input: Tensor) -> Tensor:  # as above
        if not torch.is_grad_enabled():
            return plain(input)
        result: Tensor = _Embedding.apply(input, module.weight.detach(), weight_values, plan)
        return result

    return forward


_FORWARDS: dict[type[nn.Module], Callable[[nn.Module, _Values], Forward | None]] = {
    nn.Linear: _linear_forward,
    Conv1D: _linear_forward,
    nn.Embedding: _embedding_forward,
}
