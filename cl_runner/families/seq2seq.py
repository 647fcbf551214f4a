"""Encoder-decoder language models: any AutoModelForSeq2SeqLM; the loss is on the answer's tokens, its end included."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from cl_runner.batch import Batch, Output
from cl_runner.config import Backbone
from cl_runner.data.example import Example
from cl_runner.families.base import IGNORED, Answering
from cl_runner.families.encoding import Encoding
from cl_runner.families.language import LanguageModel
from cl_runner.families.tokens import mean_state, padded, token_output


class Seq2Seq(LanguageModel):
    """The encoder reads the prompt, the decoder writes the answer."""

    kind = "seq2seq"

    def __init__(self, backbone: Backbone, labels: Sequence[str]):
        if backbone.chat_template:
            raise ValueError(f"backbone {backbone.name} has no chat template. Type: backbone.chat_template=false")
        super().__init__(backbone, AutoModelForSeq2SeqLM)

    def _rules(self) -> Encoding:
        return Encoding(self.backbone, self.tokenizer, self.tokenizer.eos_token_id)

    @functools.cached_property
    def _configuration(self) -> PreTrainedConfig:
        configuration = self.source.configuration()
        if getattr(configuration, "decoder_start_token_id", None) is None:
            raise ValueError(f"{self.backbone.name} does not say what its decoder starts with (decoder_start_token_id)")
        return configuration

    def check(self, labels: Sequence[Sequence[str]], max_new_tokens: int) -> None:
        """Prompts and answers have room among the model's positions; T5's are relative and have no end."""
        assert self.backbone.max_answer_length is not None
        positions = self._positions()
        longest = max(self.backbone.max_length, self.backbone.max_answer_length, max_new_tokens)
        if positions is not None and longest > positions and self._configuration.model_type not in ("t5", "mt5"):
            raise ValueError(
                f"{self.backbone.name} reads {positions} tokens, and prompt or answer may have {longest}. "
                f"Type: backbone.max_length={positions} backbone.max_answer_length={positions}"
            )

    def _most_written(self) -> int | None:
        return None if self._configuration.model_type in ("t5", "mt5") else self._positions()

    def _positions(self) -> int | None:
        return getattr(self._configuration, "max_position_embeddings", None)

    def collate(self, examples: Sequence[Example], answers: bool = True) -> Batch:
        """input_ids, attention_mask [B, L]; decoder_input_ids, labels [B, A]; all padded on the right."""
        ends = self._answers(examples) if answers else None
        prompts = self._prompts(examples) if ends is None else self._before(examples, ends)
        batch = self._read(prompts, examples)
        return batch if ends is None else self.answered(batch, ends)

    def _read(self, prompts: Sequence[Sequence[int]], examples: Sequence[Example]) -> Batch:
        """What the encoder reads."""
        ids = padded(prompts, self.tokenizer.pad_token_id, "right")
        return Batch(
            {"input_ids": ids, "attention_mask": padded([[1] * len(row) for row in prompts], 0, "right")}, examples
        )

    def followed(self, examples: Sequence[Example], text: str) -> Batch:
        """As `collate` without answers."""
        prompts = self._encoding.followed([self._written(e) for e in examples], self._filled(text, examples))
        return self._read(prompts, examples)

    def answered(self, batch: Batch, answers: Sequence[Sequence[int]]) -> Batch:
        """What the decoder reads and writes; the encoder reads what it did."""
        labels = padded(answers, IGNORED, "right").to(batch["input_ids"].device)
        return batch | {"labels": labels, "decoder_input_ids": self._shifted(labels)}

    def _shifted(self, labels: Tensor) -> Tensor:
        """What the decoder reads to write `labels`: its start token, then all but the last token."""
        ids = labels.new_full(labels.shape, self._configuration.decoder_start_token_id)
        ids[:, 1:] = torch.where(labels != IGNORED, labels, self.tokenizer.pad_token_id)[:, :-1]
        return ids

    def forward(self, model: nn.Module, batch: Batch) -> Output:
        """Cross-entropy of the answers' tokens; logits [tokens, vocabulary]."""
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
        return token_output(model(**given, use_cache=False).logits, batch["labels"])

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the encoder's last hidden states, [B, width]."""
        assert isinstance(model, PreTrainedModel)
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return mean_state(model.get_encoder()(**given).last_hidden_state, batch["attention_mask"])

    def states(self, model: nn.Module, batch: Batch) -> Tensor:
        """The means of the encoder's hidden states."""
        assert isinstance(model, PreTrainedModel)
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found = model.get_encoder()(**given, output_hidden_states=True).hidden_states
        return torch.stack([mean_state(each, batch["attention_mask"]) for each in found])

    def _continued(self, model: PreTrainedModel, batch: Batch, how: Answering) -> tuple[Tensor, Tensor]:
        # The decoder's output holds no prompt, so that both ways to slice are one, but begins with its start token.
        read = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ids, largest = self._generated(model, how, batch.examples, 1, **read)
        return ids[:, 1:], largest

    def _label_scores(self, model: PreTrainedModel, batch: Batch, labels: Sequence[str]) -> Tensor:
        """log p(label and its end | prompt), [B, labels]; the prompt is read once."""
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states = model.get_encoder()(**given).last_hidden_state
        scores = []
        for ids in self._encoding.answers(labels):  # one at a time: memory does not grow with their number
            label = torch.tensor([ids], device=states.device).expand(len(states), -1)
            logits = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=given["attention_mask"],
                decoder_input_ids=self._shifted(label),
                use_cache=False,
            ).logits.float()
            scores.append(-functional.cross_entropy(logits.transpose(1, 2), label, reduction="none").sum(1))
        return torch.stack(scores, 1)
