"""The untouched-weights certificate: a sparse task changed nothing outside its selection, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from cl_runner.sparse.bits import combine, digest


class Untouched(RuntimeError):
    """A sparse task changed something that it must not touch."""


def rest_digests(weights: Mapping[str, Tensor], selected: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of every tensor with its selected entries set to zero, by name.

    Args:
        selected: flat positions by tensor name; a tensor that is not named is taken as it is.
    """

    def of(name: str) -> str:
        weight = weights[name].detach()
        if name in selected:
            weight = weight.clone()
            weight.view(-1)[selected[name].to(weight.device)] = 0
        return digest(weight)

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # hashlib releases the interpreter's lock
        return dict(zip(weights, pool.map(of, weights), strict=True))


def certify(
    before: Mapping[str, str], after: Mapping[str, str], selected: int, entries: int, changed: int
) -> dict[str, Any]:
    """What summary.json says of a sparse task: counts, and one hash over everything it must not touch.

    Args:
        before, after: `rest_digests` before and after the task.
        selected: entries that may change.
        entries: of the whole model.
        changed: selected entries whose value is another one now.

    Raises:
        Untouched: a tensor differs outside the selection; the text names it.
    """
    different = [name for name, digest in before.items() if after[name] != digest]
    if different:
        raise Untouched(
            f"{len(different)} tensors changed outside the selected entries, the first is {different[0]}: "
            "something other than the selected values trained, and the result is not what the method promises"
        )
    return {
        "selected": selected,
        "changed": changed,
        "untouched": entries - selected,
        "untouched_sha256": combine(after),
        "holds": True,
    }
