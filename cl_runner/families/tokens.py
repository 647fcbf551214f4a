"""What the families of language models share: targets, losses and generated answers, counted in answer tokens."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from cl_runner.batch import Output
from cl_runner.config import AnswerText
from cl_runner.families.base import IGNORED, Prediction, chosen_by


def padded(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> Tensor:
    """[B, L] from rows of different lengths."""
    length = max(len(row) for row in rows)
    if side == "left":
        return torch.tensor([[value] * (length - len(row)) + list(row) for row in rows])
    return torch.tensor([list(row) + [value] * (length - len(row)) for row in rows])


def left_padded(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]] | None, pad: int
) -> dict[str, Tensor]:
    """Prompts and their answers, if there are some, padded on the left, so that all answers end in the last column.

    Returns:
        input_ids, attention_mask, position_ids [B, L]; with answers labels [B, A], the last A positions.
    """
    rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)] if answers is not None else prompts
    mask = padded([[1] * len(row) for row in rows], 0, "left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": padded(rows, pad, "left"), "attention_mask": mask, "position_ids": positions}
    return batch if answers is None else {**batch, "labels": padded(answers, IGNORED, "left")}


def token_output(logits: Tensor, labels: Tensor) -> Output:
    """The answer tokens of logits [B, A, V] and labels [B, A], flattened; the loss is the mean over them."""
    mask = labels != IGNORED
    kept, targets = logits[mask].float(), labels[mask]
    return Output(functional.cross_entropy(kept, targets), kept, targets, mask.nonzero()[:, 0])


def mean_state(states: Tensor, mask: Tensor) -> Tensor:
    """[B, width], fp32: the mean of states [B, L, width] over the positions that `mask` [B, L] does not pad."""
    counts = mask[..., None].float()
    return (states.float() * counts).sum(1) / counts.sum(1)


def after_first(mask: Tensor) -> Tensor:
    """`mask` [B, L] without the first token of each row, but where it is the only one.

    A decoder's first token reads itself alone, and later ones look at it where they look at nothing: its state may be
    thousands of times as long as others' (Sun et al. 2024, arXiv:2402.17762), so that a mean with it tells a text's
    length and little else.
    """
    later = mask * (mask.cumsum(1) > 1)
    return torch.where(later.any(1, keepdim=True), later, mask)


def example_losses(output: Output, labels: Tensor, tokens: Literal["mean", "sum"]) -> Tensor:
    """The loss of each example [B] over its answer's tokens."""
    mask = labels != IGNORED
    losses = functional.cross_entropy(output.logits, output.targets, reduction="none")
    sums = losses.new_zeros(len(labels)).index_add(0, output.rows, losses)
    return sums / mask.sum(1) if tokens == "mean" else sums


def relabelled(labels: Tensor, targets: Tensor) -> Tensor:
    """Other targets where there are some; what the model reads stays what it is."""
    changed = labels.clone()
    changed[labels != IGNORED] = targets
    return changed


def branched(cache: Cache) -> Cache:
    """The same cache for a pass whose tokens it does not keep: room for one layer's is all that this needs."""
    own = copy.copy(cache)
    own.layers = []
    for layer in cache.layers:
        # These make new tensors of the old ones; others may write in place.
        if isinstance(layer, DynamicLayer) and type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
            mine = copy.copy(layer)
            mine.update = functools.partial(_update_a_copy, layer)  # type: ignore[method-assign]
            own.layers.append(mine)
        else:
            own.layers.append(copy.deepcopy(layer))
    return own


def _update_a_copy(layer: DynamicLayer, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
    return type(layer).update(copy.copy(layer), *given, **named)


def most_probable(scores: Tensor, labels: Sequence[str]) -> list[Prediction]:
    """The label of the greatest log-probability [B, labels], with its share among them."""
    confidence, index = scores.softmax(-1).max(-1)
    found = zip(index.tolist(), confidence.tolist(), chosen_by(scores), strict=True)
    return [Prediction(labels[i], sure, kept) for i, sure, kept in found]


def answer_of(text: str, rule: AnswerText) -> str:
    """What of a generated text is the answer.

    spoken: what follows the thoughts, without white space around it.
    piece: as in PIECE's release, which takes white space off first: what stands between thoughts and answer stays.
    raw: all of it, as in TRACE's.
    """
    if rule == "raw":
        return text
    if rule == "piece":
        return text.strip().rpartition("</think>")[2]
    return text.rpartition("</think>")[2].strip()
