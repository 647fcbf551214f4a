"""Decoder language models: any AutoModelForCausalLM; the loss is on the answer's tokens, its end included."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cl_runner.config import Backbone
from cl_runner.data.example import Example
from cl_runner.families.base import IGNORED, Answering, Batch, Family, Output, Prediction
from cl_runner.families.encoding import Encoding
from cl_runner.families.loading import Source
from cl_runner.families.tokens import (
    branched,
    example_losses,
    generation_config,
    most_probable,
    padded,
    relabelled,
    spoken,
    token_output,
)


class Causal(Family):
    """Rows are padded on the left, so that all answers end in the last column and only their logits are computed."""

    one_target = False

    def __init__(self, backbone: Backbone, labels: Sequence[str]):
        if backbone.max_answer_length is None:
            raise ValueError(f"backbone {backbone.name} is a language model. Type: backbone.max_answer_length=512")
        self.backbone = backbone
        self.source = Source(backbone, AutoModelForCausalLM)
        self.tokenizer = self.source.tokenizer
        self._encoding = Encoding(backbone, self.tokenizer, self.tokenizer.eos_token_id, open_end=True)

    @functools.cached_property
    def _configuration(self) -> PreTrainedConfig:
        return self.source.configuration()

    def build(self, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The checkpoint's model; one with random weights depends on `seed`."""
        return self.source.build(self._configuration, seed), self.tokenizer

    def skeleton(self) -> PreTrainedModel:
        """The architecture on the meta device."""
        return self.source.skeleton(self._configuration)

    def check(self, labels: Sequence[Sequence[str]], max_new_tokens: int) -> None:
        """Prompt and answer have room among the model's positions."""
        assert self.backbone.max_answer_length is not None
        positions = getattr(self._configuration, "max_position_embeddings", None)
        answer = max(self.backbone.max_answer_length, max_new_tokens)
        if positions is not None and self.backbone.max_length + answer > positions:
            raise ValueError(
                f"{self.backbone.name} reads {positions} tokens, and prompt and answer may have "
                f"{self.backbone.max_length} + {answer}. Type: backbone.max_length={max(3, positions - answer)}"
                + (f" backbone.max_answer_length={positions // 2}" if answer > positions - 3 else "")
            )

    def tokenize(self, examples: Sequence[Example], cache: Path | None) -> None:
        """Prompts and answers."""
        self._encoding.remember([e.prompt for e in examples], [e.answer for e in examples], cache)

    def lengths(self, examples: Sequence[Example], answers: bool = True) -> list[int]:
        """Tokens of each prompt and answer."""
        prompts = [len(row) for row in self._encoding.prompts([e.prompt for e in examples])]
        if not answers:
            return prompts
        return [n + len(a) for n, a in zip(prompts, self._encoding.answers([e.answer for e in examples]), strict=True)]

    def targets(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each answer."""
        return [len(row) for row in self._encoding.answers([e.answer for e in examples])]

    def collate(self, examples: Sequence[Example], answers: bool = True) -> Batch:
        """input_ids, attention_mask, position_ids [B, L], padded on the left; labels [B, A], the last A positions."""
        prompts = self._encoding.prompts([e.prompt for e in examples])
        ends = self._encoding.answers([e.answer for e in examples]) if answers else [[] for _ in examples]
        rows = [[*prompt, *end] for prompt, end in zip(prompts, ends, strict=True)]
        mask = padded([[1] * len(row) for row in rows], 0, "left")
        batch = {
            "input_ids": padded(rows, self.tokenizer.pad_token_id, "left"),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        }
        if answers:
            batch["labels"] = padded(ends, IGNORED, "left")
        return batch

    def forward(self, model: nn.Module, batch: Batch) -> Output:
        """Cross-entropy of the answers' tokens; logits [tokens, vocabulary]."""
        labels = batch["labels"]
        logits = self._last_logits(model, batch, labels.shape[1] + 1)
        return token_output(logits[:, :-1], labels)

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

    def loss_sum(self, model: nn.Module, batch: Batch, tokens: Literal["mean", "sum"]) -> Tensor:
        """Sum over the examples of the mean, or sum, of -log p of the answer's tokens."""
        return example_losses(self.forward(model, batch), batch["labels"], tokens).sum()

    def relabel(self, batch: Batch, targets: Tensor) -> Batch:
        """Other targets; the answer that the model reads stays."""
        return {**batch, "labels": relabelled(batch["labels"], targets)}

    def identity(self) -> str:
        """Backbone, tokenizer, and the library that they are put together by."""
        return self.source.identity()

    def answer(self, model: nn.Module, batch: Batch, how: Answering) -> list[Prediction]:
        """Generated text, or the most probable label."""
        assert isinstance(model, PreTrainedModel)
        if how.labels:
            return most_probable(self._label_scores(model, batch, how.labels), how.labels)
        ids = model.generate(  # type: ignore[operator]  # typed as a module's attribute
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=generation_config(model, self.tokenizer, how),
        )
        assert isinstance(ids, Tensor)
        start = batch["input_ids"].shape[1]
        texts = self.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
        if how.raw:  # a text that is decoded alone loses the space that it begins with (LLaMA-2)
            whole = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            prompts = self.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
            return [Prediction(w.removeprefix(p), None) for w, p in zip(whole, prompts, strict=True)]
        if how.slice_by == "prefix":  # as released with PIECE: what truncation or decoding changed stays in the answer
            whole = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
            prompts = [self._encoding.prompt_of(ids[mask].tolist()) for ids, mask in rows]
            texts = [w.removeprefix(p) for w, p in zip(whole, prompts, strict=True)]
        return [Prediction(spoken(text), None) for text in texts]

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
                logits = model(**following, past_key_values=branched(read.past_key_values), use_cache=True).logits
                losses = functional.cross_entropy(logits.float().transpose(1, 2), label[:, 1:], reduction="none")
                score = score - losses.sum(1)
            scores.append(score)
        return torch.stack(scores, 1)


def _forward_arguments(model: nn.Module) -> Container[str]:
    return inspect.signature(model.forward).parameters
