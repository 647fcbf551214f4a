"""Decoder language models: any AutoModelForCausalLM; the loss is on the answer's tokens, its end included."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from cl_runner.batch import Batch, Output
from cl_runner.config import Backbone
from cl_runner.data.example import Example
from cl_runner.families.base import IGNORED, Answering
from cl_runner.families.chats import ChatReader, Row
from cl_runner.families.encoding import Encoding
from cl_runner.families.language import LanguageModel
from cl_runner.families.tokens import after_first, branched, left_padded, mean_state, padded, token_output


class Causal(LanguageModel):
    """Rows are padded on the left, so that all answers end in the last column and only their logits are computed.

    Of a chat whose turns a template writes, the answer begins with the first token that is learned; between learned
    turns stand tokens without a target.
    """

    kind = "causal"

    def __init__(self, backbone: Backbone, labels: Sequence[str]):
        super().__init__(backbone, AutoModelForCausalLM)

    def _rules(self) -> Encoding:
        return Encoding(self.backbone, self.tokenizer, self.tokenizer.eos_token_id, open_end=True)

    def check(self, labels: Sequence[Sequence[str]], max_new_tokens: int) -> None:
        """Prompt and answer have room among the model's positions."""
        assert self.backbone.max_answer_length is not None
        positions = getattr(self._configuration, "max_position_embeddings", None)
        answer = max(self.backbone.max_answer_length, max_new_tokens)
        if positions is not None and self.backbone.longest_in_training > max(
            positions, self.backbone.max_length + answer
        ):
            raise ValueError(
                f"{self.backbone.name} reads {positions} tokens, and a prompt with its answer may have "
                f"{self.backbone.longest_in_training} by backbone.training_length={self.backbone.training_length}. "
                "Type: backbone.training_length=apart (or a smaller backbone.max_length)"
            )
        if positions is not None and self.backbone.max_length + answer > positions:
            raise ValueError(
                f"{self.backbone.name} reads {positions} tokens, and prompt and answer may have "
                f"{self.backbone.max_length} + {answer}. Type: backbone.max_length={max(3, positions - answer)}"
                + (f" backbone.max_answer_length={positions // 2}" if answer > positions - 3 else "")
            )

    @functools.cached_property
    def _chats(self) -> ChatReader:
        return ChatReader(self.backbone, self.tokenizer, self._encoding.reader, self.tokenizer.eos_token_id)

    def _mixed(
        self,
        examples: Sequence[Example],
        texts: Callable[[Sequence[Example]], list[list[int]]],
        chats: Callable[[Row], Sequence[int]],
    ) -> list[list[int]]:
        """Ids by one rule for examples that are texts, and by another for those that are chats."""
        plain = iter(texts([e for e in examples if e.chat is None]))
        return [next(plain) if e.chat is None else list(chats(self._chats.row(e))) for e in examples]

    def _prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        return self._mixed(examples, super()._prompts, lambda row: row.ids[: row.answer])

    def _before(self, examples: Sequence[Example], answers: Sequence[Sequence[int]]) -> list[list[int]]:
        own = [answer for e, answer in zip(examples, answers, strict=True) if e.chat is None]
        before = super()._before
        return self._mixed(examples, lambda texts: before(texts, own), lambda row: row.ids[: row.first])

    def _answers(self, examples: Sequence[Example]) -> list[list[int]]:
        return self._mixed(examples, super()._answers, lambda row: row.ids[row.first :])

    def targets(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each answer; of a chat those of all learned turns."""
        counts = iter(super().targets([e for e in examples if e.chat is None]))
        return [next(counts) if e.chat is None else sum(map(bool, self._chats.row(e).turns)) for e in examples]

    def tokenize(self, examples: Sequence[Example], cache: Path | None) -> None:
        """Prompts and answers; chats are kept in memory alone."""
        super().tokenize(_texts_of(examples), cache)
        for example in examples:
            if example.chat is not None:
                self._chats.row(example)

    def noted(self, examples: Sequence[Example], training: bool = True) -> dict[str, int]:
        """Texts and answers that are cut, or hold special tokens; turns of chats that have no room."""
        chats = [e for e in examples if e.chat is not None]
        found = super().noted(_texts_of(examples), training)
        return found | self._chats.noted(chats) if chats else found

    def collate(self, examples: Sequence[Example], answers: bool = True) -> Batch:
        """Rows padded on the left.

        Returns:
            input_ids, attention_mask, position_ids [B, L]; labels [B, A], the last A positions; where there are chats
            turns [B, A] as well: which turn of the assistant a label is of, counted from 1, 0 where there is none.
        """
        ends = self._answers(examples) if answers else None
        prompts = self._prompts(examples) if ends is None else self._before(examples, ends)
        tensors = left_padded(prompts, ends, self.tokenizer.pad_token_id)
        if ends is not None and any(e.chat is not None for e in examples):
            numbers = self._mixed(examples, self._once, lambda row: row.turns[row.first :])
            tensors["turns"] = padded(numbers, 0, "left")
            tensors["labels"] = tensors["labels"].masked_fill(tensors["turns"] == 0, IGNORED)
        return Batch(tensors, examples)

    def _once(self, examples: Sequence[Example]) -> list[list[int]]:
        """The turn of every token of an answer to a text: the first."""
        return [[1] * len(row) for row in super()._answers(examples)]

    def forward(self, model: nn.Module, batch: Batch) -> Output:
        """Cross-entropy of the answers' tokens; logits [tokens, vocabulary]."""
        labels = batch["labels"]
        logits = self._last_logits(model, batch, labels.shape[1] + 1)
        return token_output(logits[:, :-1], labels)

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the prompt's last hidden states, [B, width]."""
        return mean_state(self._hidden(model, batch)[-1], batch["attention_mask"])

    def states(self, model: nn.Module, batch: Batch) -> Tensor:
        """The means of the prompt's hidden states, without its first token."""
        read = after_first(batch["attention_mask"])
        return torch.stack([mean_state(each, read) for each in self._hidden(model, batch)])

    def _hidden(self, model: nn.Module, batch: Batch) -> Sequence[Tensor]:
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if "position_ids" in _forward_arguments(model):
            # Of a probe's batch as the library counts them when it generates.
            counted = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
            given["position_ids"] = batch.get("position_ids", counted)
        found: Sequence[Tensor] = model(**given, output_hidden_states=True, use_cache=False).hidden_states
        return found

    def _last_logits(self, model: nn.Module, batch: Batch, count: int) -> Tensor:
        """Logits [B, count, V] of the last positions."""
        given: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
        known = _forward_arguments(model)
        if "position_ids" in known:
            given["position_ids"] = batch["position_ids"]
        if "logits_to_keep" in known:
            given["logits_to_keep"] = count
        logits: Tensor = model(**given, use_cache=False).logits
        return logits[:, -count:]

    def followed(self, examples: Sequence[Example], text: str) -> Batch:
        """As `collate` without answers."""
        prompts = self._encoding.followed([self._written(e) for e in examples], self._filled(text, examples))
        return Batch(left_padded(prompts, None, self.tokenizer.pad_token_id), examples)

    def _continued(self, model: PreTrainedModel, batch: Batch, how: Answering) -> tuple[Tensor, Tensor]:
        read = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ids, largest = self._generated(model, how, batch.examples, read["input_ids"].shape[1], **read)
        return ids[:, read["input_ids"].shape[1] :], largest

    def _spoken(self, batch: Batch, ids: Tensor, how: Answering) -> list[str]:
        read = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if not how.raw and how.slice_by == "ids":
            return self._decoded(ids)
        if how.raw:  # a text that is decoded alone loses the space that it begins with (LLaMA-2)
            prompts = self._decoded(read["input_ids"])
        else:  # as released with PIECE: what truncation or decoding changed stays in the answer
            rows = zip(read["input_ids"], read["attention_mask"].bool(), strict=True)
            prompts = [self._encoding.prompt_of(row[mask].tolist()) for row, mask in rows]
        wholes = self._decoded(torch.cat([read["input_ids"], ids], 1))
        return [whole.removeprefix(prompt) for whole, prompt in zip(wholes, prompts, strict=True)]

    def _label_scores(self, model: PreTrainedModel, batch: Batch, labels: Sequence[str]) -> Tensor:
        """log p(label and its end | prompt), [B, labels]; the prompt is read once."""
        examples, device = len(batch["input_ids"]), batch["input_ids"].device
        known = _forward_arguments(model)
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if "position_ids" in known:
            given["position_ids"] = batch["position_ids"]
        read = model(**given, **({"logits_to_keep": 1} if "logits_to_keep" in known else {}), use_cache=True)
        first = read.logits[:, -1].float().log_softmax(-1)  # [B, V]: the labels' first tokens
        scores = []
        # One label at a time: a cache for every row and label would outgrow the model.
        for ids in self._encoding.answers(labels):
            label = torch.tensor([ids], device=device).expand(examples, -1)
            score = first[:, ids[0]]
            if len(ids) > 1:
                mask = given["attention_mask"]
                following: dict[str, Any] = {
                    "input_ids": label[:, :-1],
                    "attention_mask": torch.cat([mask, mask.new_ones(examples, len(ids) - 1)], 1),
                }
                if "position_ids" in given:
                    steps = torch.arange(1, len(ids), device=device)
                    following["position_ids"] = given["position_ids"][:, -1:] + steps
                following |= {"past_key_values": branched(read.past_key_values), "use_cache": True}
                losses = functional.cross_entropy(
                    model(**following).logits.float().flatten(0, 1), label[:, 1:].flatten(), reduction="none"
                )
                score = score - losses.view(examples, -1).sum(1)
            scores.append(score)
        return torch.stack(scores, 1)


def _forward_arguments(model: nn.Module) -> Container[str]:
    return inspect.signature(model.forward).parameters


def _texts_of(examples: Sequence[Example]) -> Sequence[Example]:
    """Those that are no chats."""
    if all(example.chat is None for example in examples):
        return examples
    return [example for example in examples if example.chat is None]
