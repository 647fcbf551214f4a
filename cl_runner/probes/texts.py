"""Texts that a language model reads from their beginning, with nothing before them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from cl_runner.batch import Batch
from cl_runner.data.example import Example
from cl_runner.learner import Learner


def beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that a text begins with; where there is none, the one that ends the text before."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert isinstance(token, int), "a language model's tokenizer ends its texts"
    return token


def before(learner: Learner) -> list[int]:
    """What a model reads before a text: the token that begins one; of an encoder-decoder an empty text."""
    tokenizer = learner.family.tokenizer
    if learner.family.kind == "causal":
        return [beginning(tokenizer)]
    return list(tokenizer("")["input_ids"]) or [tokenizer.eos_token_id]


def beginnings(learner: Learner, examples: Sequence[Example] | int) -> Batch:
    """A batch, without answers, of so many rows of `before`.

    Args:
        examples: one for each row, by which methods know it; or how many rows there are, which nothing is known of.
    """
    rows = examples if isinstance(examples, int) else len(examples)
    ids = torch.tensor([before(learner)] * rows, device=learner.device)
    known = () if isinstance(examples, int) else examples
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, known)


def written(learner: Learner, ids: Sequence[Sequence[int]], examples: Sequence[Example] = ()) -> Batch:
    """Texts, in token ids, every token of which is a target; no token ends them.

    Args:
        examples: one for each text, by which methods know it; empty = by what is read.
    """
    return learner.family.answered(beginnings(learner, examples or len(ids)), ids)
