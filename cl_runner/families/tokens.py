"""What the families of language models share: targets, losses and generated answers, counted in answer tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cl_runner.families.base import IGNORED, Answering, Output, Prediction


def padded(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> Tensor:
    """[B, L] from rows of different lengths."""
    length = max(len(row) for row in rows)
    if side == "left":
        return torch.tensor([[value] * (length - len(row)) + list(row) for row in rows])
    return torch.tensor([list(row) + [value] * (length - len(row)) for row in rows])


def token_output(logits: Tensor, labels: Tensor) -> Output:
    """The answer tokens of logits [B, A, V] and labels [B, A], flattened; the loss is the mean over them."""
    mask = labels != IGNORED
    rows, targets = logits[mask].float(), labels[mask]
    return Output(functional.cross_entropy(rows, targets), rows, targets)


def example_losses(output: Output, labels: Tensor, tokens: Literal["mean", "sum"]) -> Tensor:
    """The loss of each example [B] over its answer's tokens."""
    mask = labels != IGNORED
    losses = functional.cross_entropy(output.logits, output.targets, reduction="none")
    of_example = mask.nonzero()[:, 0]
    sums = losses.new_zeros(len(labels)).index_add(0, of_example, losses)
    return sums / mask.sum(1) if tokens == "mean" else sums


def relabelled(labels: Tensor, targets: Tensor) -> Tensor:
    """Other targets where there are some; what the model reads stays what it is."""
    changed = labels.clone()
    changed[labels != IGNORED] = targets
    return changed


def generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: Answering) -> GenerationConfig:
    """Greedy, or the sampling asked for, and nothing of the checkpoint's own settings but its special tokens."""
    own = model.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    # A chat model may end its turn with another token than the text's end.
    ids = list(dict.fromkeys(i for i in [tokenizer.eos_token_id, *ends] if i is not None))
    start = own.decoder_start_token_id
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    chosen: dict[str, Any] = {"do_sample": False}
    if how.sampling is not None:
        chosen = {
            "do_sample": True,
            "temperature": how.sampling.temperature,
            "top_k": how.sampling.top_k or 0,
            "top_p": how.sampling.top_p if how.sampling.top_p is not None else 1.0,
        }
    return GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ids,
        decoder_start_token_id=start,
        **chosen,
    )


def branched(cache: Cache) -> Cache:
    """A copy of a cache that grows on its own."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    own.batch_repeat_interleave(1)  # copies the tensors, those without content as well, as deepcopy does not
    return own


def most_probable(scores: Tensor, labels: Sequence[str]) -> list[Prediction]:
    """The label of the greatest log-probability [B, labels], with its share among them."""
    confidence, index = scores.softmax(-1).max(-1)
    return [Prediction(labels[i], c) for i, c in zip(index.tolist(), confidence.tolist(), strict=True)]


def spoken(text: str) -> str:
    """A generated answer without the thoughts before it and white space around it."""
    return text.rpartition("</think>")[2].strip()
