"""Which layers of a backbone values act on, found by the names of its parameters."""

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


#: Projections of an attention layer, as `module_of` calls them.
KINDS = ("query", "key", "value", "attention_output")
#: All linear layers of a block.
LINEAR = (*KINDS, "query_key_value", "ffn_gate", "ffn_input", "ffn_output")


def all_projections(model: nn.Module, cross_attention: bool, among: Sequence[str] = KINDS) -> list[Target]:
    """Every layer of some kinds in the model's order.

    Args:
        cross_attention: whether a decoder's attention to its encoder counts as well.
    """
    never, found = frozen(model), []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding) or f"{name}.weight" in never:
            continue
        crosses = "EncDecAttention" in name or "encoder_attn" in name
        if module_of(f"{name}.weight") in among and (cross_attention or not crosses):
            rows, columns = weight.shape
            sizes = (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)
            found.append(Target(name, module, *sizes))
    return found


def find_targets(model: nn.Module, kinds: Sequence[str], cross_attention: bool, option: str) -> list[Target]:
    """The projections of these kinds.

    Args:
        kinds: some of `KINDS`.
        option: the key that lists them, for the message.

    Raises:
        ValueError: a kind has no layer in this backbone.
    """
    projections = all_projections(model, cross_attention)
    present = [kind for kind in KINDS if any(module_of(f"{t.name}.weight") == kind for t in projections)]
    for kind in kinds:
        if kind not in present:
            raise ValueError(
                f"{option}: this backbone has no layers that are {kind} projections; it has "
                f"{', '.join(present) or 'none that are known'}. "
                f"Type: {option}=[{present[-1] if present else kind}]"
            )
    return [target for target in projections if module_of(f"{target.name}.weight") in kinds]


def linear_layers(model: nn.Module, kinds: Sequence[str], option: str) -> list[Target]:
    """The linear layers of these kinds, a decoder's attention to its encoder among them.

    Where query, key and value are one layer, it stands for each of them.

    Args:
        kinds: some of `LINEAR`; empty = all of them.
        option: the key that lists them, for the message.

    Raises:
        ValueError: a kind has no layer in this backbone.
    """
    found = {target: module_of(f"{target.name}.weight") for target in all_projections(model, True, LINEAR)}
    present = [kind for kind in LINEAR if kind in found.values()]
    wanted = set(kinds or present)
    if "query_key_value" in present and wanted & {"query", "key", "value"}:
        wanted = wanted - {"query", "key", "value"} | {"query_key_value"}
    missing = [kind for kind in LINEAR if kind in wanted and kind not in present]
    if missing or not found:
        raise ValueError(
            f"{option}: this backbone has no {missing[0] if missing else 'linear'} layers; it has "
            f"{', '.join(present) or 'none that are known'}. "
            f"Type: {option}=[{', '.join(kind for kind in present if kind in wanted) or ', '.join(present)}]"
        )
    return [target for target, kind in found.items() if kind in wanted]
