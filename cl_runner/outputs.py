"""What a task's training changed of the answers: which of them, and how far the logits moved that they were chosen by.

A task may train weights that nothing depends on: "152 of 152 changed" is then no sign of learning. The answers of the
row before are compared with those of the row after, which are there anyway.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_runner.families.base import Prediction

#: Of a task's test set: CRC-32 of each answer [n], and its logits [n, K], fp32.
Recorded = dict[str, Tensor]


def record(predictions: Sequence[Prediction]) -> Recorded:
    """What is kept of a test set's answers until the next row is there."""
    answers = torch.tensor([zlib.crc32(p.text.encode("utf-8", "surrogatepass")) for p in predictions])
    counts = {len(p.logits) for p in predictions}
    kept = b"".join(p.logits for p in predictions) if len(counts) == 1 else b""
    return {
        "answers": answers,
        "logits": torch.from_numpy(np.frombuffer(kept, np.float32).copy()).view(len(answers), -1),
    }


def changes(before: Mapping[str, Recorded], after: Mapping[str, Recorded], task: str) -> dict[str, dict[str, Any]]:
    """What is another one than before, of the task's own test set ("own") and of all that both rows asked ("all").

    Returns:
        For each the number of examples, of answers changed, and the largest absolute change of a logit: of all labels
        of a classifier or a closed set, of the largest of the first token where an answer is generated, which is the
        least that the largest change can be; None if a method predicts without logits.
    """
    asked = [name for name in after if name in before]
    found = {}
    for kind, names in (("own", [name for name in asked if name == task]), ("all", asked)):
        if names:
            pairs = [(before[name], after[name]) for name in names]
            moved = [_largest(old["logits"], new["logits"]) for old, new in pairs]
            found[kind] = {
                "examples": sum(len(new["answers"]) for _, new in pairs),
                "changed": sum(int((old["answers"].cpu() != new["answers"]).sum()) for old, new in pairs),
                "largest_logit_change": max((each for each in moved if each is not None), default=None),
            }
    return found


def _largest(before: Tensor, after: Tensor) -> float | None:
    """Of [n, K]; logits that are no finite numbers, as of labels that cannot be the answer, are left out."""
    before = before.cpu()
    if before.shape != after.shape or not after.numel():
        return None
    both = before.isfinite() & after.isfinite()
    return float((after - before).abs()[both].max()) if bool(both.any()) else None


def text(found: Mapping[str, Mapping[str, Any]], task: str) -> str:
    """What of the answers changed, in a line."""
    if not found:
        return f"{task}: its answers cannot be compared, as no test set was asked before it"
    parts = [
        f"{each['changed']} of {each['examples']} {'of its own' if kind == 'own' else 'in all'}"
        for kind, each in found.items()
    ]
    moved = found["all"]["largest_logit_change"]
    return f"{task}: answers changed: {', '.join(parts)}" + (
        "" if moved is None else f"; largest change of a logit {moved:.2g}"
    )
