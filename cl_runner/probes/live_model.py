"""The model under training as the lm-evaluation-harness sees it: every pass is one that the method knows of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from cl_runner.batch import Batch
from cl_runner.data.example import Example
from cl_runner.learner import Learner

#: (context, continuation) or None, their tokens; as the harness hands them on.
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class LiveModel(HFLM):
    """Rows that the harness makes of its requests, with what the method needs to know of a request's context.

    Args:
        learner: whose model it is, in its mode.
        options: of the harness's own class.
    """

    def __init__(self, learner: Learner, **options: Any):
        self._learner = learner
        self._contexts: dict[tuple[int, ...], str] = {}  # by the tokens of a row
        self._prompts: list[str] = []  # of the batch that will be generated
        super().__init__(pretrained=learner.model, **options)
        longer = self._prepared(torch.zeros(1, 1, dtype=torch.long, device=self.device), None, [""])
        room = longer["input_ids"].shape[1] - 1  # that the method takes for prompts of its own
        if room:
            self._max_length = self.max_length - room

    def _prepared(self, ids: Tensor, mask: Tensor | None, contexts: Sequence[str]) -> Batch:
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
        batch = Batch(given, [Example(context, "") for context in contexts])
        return self._learner.method.before_forward(self._learner, batch)

    def _loglikelihood_tokens(self, requests: Sequence[Request], *options: Any, **named: Any) -> list[Any]:
        """Requests with the same tokens and other contexts take turns, since a row is known by its tokens."""
        found: dict[int, Any] = {}
        waiting = list(range(len(requests)))
        while waiting:
            self._contexts, now = {}, []
            for i in waiting:
                texts, context, continuation = requests[i]
                # A text that is scored as a whole has no context: what is read says where it belongs.
                whole = self.tokenizer.decode(context + continuation) if texts is None else texts[1]
                known = texts[0] if texts and (texts[0] or self.backend == "seq2seq") else whole
                if self._contexts.setdefault(self._row(context, continuation), known) == known:
                    now.append(i)
            scored = super()._loglikelihood_tokens([requests[i] for i in now], *options, **named)
            found.update(zip(now, scored, strict=True))
            waiting = [i for i in waiting if i not in found]
        return [found[i] for i in range(len(requests))]

    def _row(self, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """The tokens that the model reads of a request, as the harness cuts them."""
        if self.backend == "causal":
            return _unpadded((context + continuation)[-(self.max_length + 1) :][:-1])
        return _unpadded(context[-self.max_length :])

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        batch = self._prepared(inps, attn_mask, [self._contexts[_unpadded(row)] for row in inps.tolist()])
        if labels is not None:
            logits: Tensor = super()._model_call(batch["input_ids"], batch["attention_mask"], labels)
            return logits
        logits = super()._model_call(batch["input_ids"])
        return logits[:, -inps.shape[1] :]

    def tok_batch_encode(self, strings: list[str], *options: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """The harness encodes the prompts of a batch right before it lets the model go on from them."""
        self._prompts = list(strings)
        encoded: tuple[Tensor, Tensor] = super().tok_batch_encode(strings, *options, **named)
        return encoded

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor, **options: Any
    ) -> Tensor:
        batch = self._prepared(context, attention_mask, self._prompts)
        # A decoder gives back what it read, too.
        room = batch["input_ids"].shape[1] - context.shape[1] if self.backend == "causal" else 0
        options["attention_mask"] = batch["attention_mask"]
        written: Tensor = super()._model_generate(batch["input_ids"], max_length + room, stop, **options)
        return written[:, room:]


def _unpadded(row: list[int]) -> tuple[int, ...]:
    """Without the zeros at its end, which the harness fills rows with."""
    length = len(row)
    while length and row[length - 1] == 0:
        length -= 1
    return tuple(row[:length])
