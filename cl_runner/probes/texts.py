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


def rows(learner: Learner, start: Sequence[int], examples: Sequence[Example] | int) -> Batch:
    """A batch without answers, each row of which is these token ids.

    Args:
        examples: one for each row, by which methods know it; or how many rows there are, which nothing is known of.
    """
    number = examples if isinstance(examples, int) else len(examples)
    ids = torch.tensor([list(start)] * number, device=learner.device)
    known = () if isinstance(examples, int) else examples
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, known)


def written(learner: Learner, ids: Sequence[Sequence[int]], examples: Sequence[Example] = ()) -> Batch:
    """Texts, in token ids, every token of which is a target; no token ends them.

    Before each stands the token that begins a text, which is all that an encoder reads, as in the
    lm-evaluation-harness.

    Args:
        examples: one for each text, by which methods know it; empty = by what is read.
    """
    start = [beginning(learner.family.tokenizer)]
    return learner.family.answered(rows(learner, start, examples or len(ids)), ids)
