"""Encoder classifiers: any AutoModelForSequenceClassification with one head over the union of all tasks' labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cl_runner.batch import Batch, Output
from cl_runner.config import Backbone
from cl_runner.data.example import Example
from cl_runner.families.base import Answering, Family, Prediction, chosen_by
from cl_runner.families.encoding import Encoding
from cl_runner.families.loading import Source
from cl_runner.families.rows import parts
from cl_runner.pretrained.tensors import some
from cl_runner.sequences import Mapped


class Classifier(Family):
    """`labels` is the union over all tasks in order of first appearance, or as the checkpoint's head has them.

    The head never grows.
    """

    kind = "classifier"
    one_target = True

    def __init__(self, backbone: Backbone, labels: Sequence[str]):
        self.backbone = backbone
        new = backbone.head == "new"
        self.source = Source(backbone, AutoModelForSequenceClassification, new_head=new)
        self.labels = tuple(labels) if new else self._labels_of_checkpoint(labels)
        self.tokenizer = self.source.tokenizer
        self._encoding = Encoding(backbone, self.tokenizer)

    def _labels_of_checkpoint(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The rows of the checkpoint's head.

        Raises:
            ValueError: it has none, or one of other labels.
        """
        own = self.source.labels()
        if set(own) != set(labels):
            has = f"a head of the labels {some(own)}" if own else "no head"
            raise ValueError(
                f"backbone.head=checkpoint: {self.backbone.pretrained or self.backbone.name} has {has}, and this order "
                f"has the labels {some(labels)}. Type: backbone.head=new"
            )
        return own

    @functools.cached_property
    def _configuration(self) -> PreTrainedConfig:
        configuration = self.source.configuration(
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id={label: i for i, label in enumerate(self.labels)},
        )
        positions = configuration.to_dict().get("max_position_embeddings", self.backbone.max_length)
        limit = min(positions, self.tokenizer.model_max_length)
        if self.backbone.max_length > limit:
            raise ValueError(
                f"backbone.max_length={self.backbone.max_length} is longer than the {limit} tokens that "
                f"{self.backbone.name} can read. Type: backbone.max_length={limit}"
            )
        return configuration

    def build(self, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The checkpoint's encoder, with a head drawn from `seed` unless the checkpoint's is asked for."""
        return self.source.build(self._configuration, seed), self.tokenizer

    def skeleton(self) -> PreTrainedModel:
        """The architecture on the meta device."""
        return self.source.skeleton(self._configuration)

    def verify(self, skeleton: PreTrainedModel) -> Sequence[str]:
        """What of the checkpoint is not used, or drawn anew."""
        return self.source.choose(skeleton).said

    def check(self, labels: Sequence[Sequence[str]], max_new_tokens: int) -> None:
        """Every task has a closed set of labels."""
        if not all(labels):
            raise ValueError(
                f"backbone {self.backbone.name} classifies, and a task of this order has answers in free text. "
                "Choose a language model, such as: backbone=tiny_llama"
            )

    def tokenize(self, examples: Sequence[Example], cache: Path | None) -> None:
        """The texts' tokens; labels need none."""
        self._encoding.remember(Mapped(attrgetter("prompt"), examples), [], cache)

    def noted(self, examples: Sequence[Example], training: bool = True) -> dict[str, int]:
        """Texts that are cut, or hold special tokens."""
        return self._encoding.noted(Mapped(attrgetter("prompt"), examples), [])

    def lengths(self, examples: Sequence[Example], answers: bool = True) -> list[int]:
        """Tokens of each example, at most `max_length`."""
        return [len(row) for part in parts(examples) for row in self._encoding.prompts([e.prompt for e in part])]

    def targets(self, examples: Sequence[Example]) -> list[int]:
        """One label each."""
        return [1] * len(examples)

    def collate(self, examples: Sequence[Example], answers: bool = True) -> Batch:
        """input_ids and attention_mask [B, L], labels [B]."""
        rows = self._encoding.prompts([e.prompt for e in examples])
        length = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        tensors = {
            "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
            "labels": torch.tensor([self.labels.index(e.answer) for e in examples]),
        }
        return Batch(tensors, examples)

    def forward(self, model: nn.Module, batch: Batch) -> Output:
        """Cross-entropy over the union of labels; logits [B, labels]."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        rows = torch.arange(len(logits), device=logits.device)
        return Output(functional.cross_entropy(logits, batch["labels"]), logits, batch["labels"], rows)

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The first token's last hidden state, [B, width]."""
        return self._hidden(model, batch)[-1][:, 0].float()

    def states(self, model: nn.Module, batch: Batch) -> Tensor:
        """The first token's hidden states."""
        return torch.stack([each[:, 0].float() for each in self._hidden(model, batch)])

    def _hidden(self, model: nn.Module, batch: Batch) -> Sequence[Tensor]:
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found: Sequence[Tensor] = model(**given, output_hidden_states=True).hidden_states
        return found

    def loss_sum(self, model: nn.Module, batch: Batch, tokens: Literal["mean", "sum"]) -> Tensor:
        """Sum of -log p(label | text); a label is one target."""
        output = self.forward(model, batch)
        return functional.cross_entropy(output.logits, output.targets, reduction="sum")

    def relabel(self, batch: Batch, targets: Tensor) -> Batch:
        """Other labels [B]."""
        return batch | {"labels": targets}

    def identity(self) -> str:
        """Backbone, tokenizer, labels, and the library that they are put together by."""
        return self.source.identity(labels=self.labels)

    def answer(self, model: nn.Module, batch: Batch, how: Answering) -> list[Prediction]:
        """The most probable label and its probability, of all labels or of those that are known to be possible."""
        logits = self.forward(model, batch).logits
        if how.labels:
            impossible = torch.ones(len(self.labels), dtype=torch.bool, device=logits.device)
            impossible[[self.labels.index(label) for label in how.labels]] = False
            logits = logits.masked_fill(impossible, -torch.inf)
        confidence, index = logits.softmax(-1).max(-1)
        found = zip(index.tolist(), confidence.tolist(), chosen_by(logits), strict=True)
        return [Prediction(self.labels[i], sure, kept) for i, sure, kept in found]
