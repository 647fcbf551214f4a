"""Which layers of a backbone retrieved values act on, found by the names of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cl_runner.families.freezing import frozen
from cl_runner.sparse.summary import module_of


@dataclass(frozen=True)
class Target:
    """A linear layer, or GPT-2's Conv1D, which is one with its weight transposed."""

    name: str
    module: nn.Module
    width_in: int
    width_out: int


def find_targets(model: nn.Module, kinds: Sequence[str], cross_attention: bool) -> list[Target]:
    """The projections of these kinds in every attention layer, in the model's order.

    Args:
        kinds: attention_output, query, key, value.
        cross_attention: whether a decoder's attention to its encoder counts as well.

    Raises:
        ValueError: a kind has no layer in this backbone.
    """
    never, found = frozen(model), []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding) or f"{name}.weight" in never:
            continue
        if module_of(f"{name}.weight") in kinds and (cross_attention or "EncDecAttention" not in name):
            rows, columns = weight.shape
            sizes = (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)
            found.append(Target(name, module, *sizes))
    present = {module_of(f"{target.name}.weight") for target in found}
    for kind in kinds:
        if kind not in present:
            known = sorted({module_of(f"{name}.weight") for name, _ in model.named_modules()})
            has = ", ".join(k for k in known if k in ("attention_output", "query", "key", "value")) or "none of them"
            raise ValueError(
                f"method.slm.targets: this backbone has no layers that are {kind} projections; it has {has}. "
                f"Type: method.slm.targets=[{has.partition(',')[0] if present else 'attention_output'}]"
            )
    return found
