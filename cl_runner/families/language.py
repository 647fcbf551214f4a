"""What all language models share, with or without an encoder, with or without pictures: tokens, losses, answers."""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cl_runner.batch import Batch
from cl_runner.config import Backbone
from cl_runner.data.example import Example
from cl_runner.families.base import Answering, Family, Prediction, Unanswerable, chosen_by
from cl_runner.families.encoding import Encoding, Recited
from cl_runner.families.loading import Source
from cl_runner.families.rows import parts
from cl_runner.families.tokens import answer_of, example_losses, left_padded, most_probable, relabelled
from cl_runner.sequences import Mapped


class LanguageModel(Family):
    """Abstract: an example has a target for every token of its answer, the end included.

    Args:
        auto: transformers' class that makes the models.
    """

    one_target = False

    def __init__(self, backbone: Backbone, auto: Any):
        if backbone.max_answer_length is None:
            raise ValueError(f"backbone {backbone.name} is a language model. Type: backbone.max_answer_length=128")
        self.backbone = backbone
        self.source = Source(backbone, auto)
        self.tokenizer = self.source.tokenizer
        self._encoding = self._rules()

    @abstractmethod
    def _rules(self) -> Encoding:
        """How texts become tokens."""

    def _prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Ids of each prompt."""
        return self._encoding.prompts([self._written(e) for e in examples])

    def _before(self, examples: Sequence[Example], answers: Sequence[Sequence[int]]) -> list[list[int]]:
        """Ids of each prompt in training, before these answers."""
        return self._encoding.before([self._written(e) for e in examples], answers)

    def _answers(self, examples: Sequence[Example]) -> list[list[int]]:
        """Ids of each answer, its end included; of a recital all that is to be written."""
        rows = self._encoding.answers([e.answer for e in examples])
        whole = [e for e in examples if e.recital is not None]
        if not whole:
            return rows
        starts = [e.recital.start for e in whole if e.recital]
        written = [Recited(e.prompt, e.recital.between, e.answer) for e in whole if e.recital]
        recited = iter(self._encoding.recited(starts, written, self._most_written()))
        return [row if e.recital is None else next(recited) for e, row in zip(examples, rows, strict=True)]

    def _most_written(self) -> int | None:
        """Tokens that the model can write, whatever it reads before; None = as many as it reads."""
        return None

    def spelled(self, text: str) -> list[int]:
        """Ids of a text alone."""
        return self._encoding.alone([text])[0]

    def _filled(self, text: str, examples: Sequence[Example]) -> list[str]:
        """A text with each answer in it, cut where its ids are."""
        end, rows = self.tokenizer.eos_token_id, self._answers(examples)
        answers = [
            e.answer if row[-1] == end else self._decoded([row])[0] for e, row in zip(examples, rows, strict=True)
        ]
        return [text.format(answer=answer) for answer in answers]

    @abstractmethod
    def _continued(self, model: PreTrainedModel, batch: Batch, how: Answering) -> tuple[Tensor, Tensor]:
        """Ids [B, tokens] of generated answers alone, and the largest logit [B, 1] of the first token of each."""

    def _spoken(self, batch: Batch, ids: Tensor, how: Answering) -> list[str]:
        """Generated answers as texts."""
        return self._decoded(ids)

    @abstractmethod
    def _label_scores(self, model: PreTrainedModel, batch: Batch, labels: Sequence[str]) -> Tensor:
        """log p(label and its end | prompt), [B, labels]."""

    @functools.cached_property
    def _configuration(self) -> PreTrainedConfig:
        return self.source.configuration()

    def build(self, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The checkpoint's model; one with random weights depends on `seed`."""
        return _one_product(self.source.build(self._configuration, seed)), self.tokenizer

    def skeleton(self) -> PreTrainedModel:
        """The architecture on the meta device."""
        return _one_product(self.source.skeleton(self._configuration))

    def verify(self, skeleton: PreTrainedModel) -> Sequence[str]:
        """What of the checkpoint is not used, or drawn anew."""
        return self.source.choose(skeleton).said

    def tokenize(self, examples: Sequence[Example], cache: Path | None) -> None:
        """Prompts and answers."""
        self._encoding.remember(Mapped(self._written, examples), Mapped(attrgetter("answer"), examples), cache)

    def check_labels(self, labels: Sequence[str], max_new_tokens: int | None) -> None:
        """A label is written in the tokens there are, end included, and holds none that decoding leaves out."""
        limit = self._encoding.answer_limit()
        reader = self._encoding.reader
        rows = zip(labels, reader.ids(labels) if labels else [], strict=True)
        for label, row in sorted(rows, key=lambda pair: -len(pair[1])):  # what the longest one needs suffices
            special = reader.found(label)
            if special is not None:
                raise Unanswerable(label, f"holds {special!r}, a special token of the tokenizer")
            if len(row) + 1 > limit:
                reason = (
                    f"has {len(row) + 1} tokens with the one that ends it, and an answer is cut at {limit} in training"
                )
                raise Unanswerable(label, reason, "backbone.max_answer_length", self._beyond(len(row) + 1 - limit))
            if max_new_tokens is not None and len(row) > max_new_tokens:
                reason = f"has {len(row)} tokens, and an answer is at most {max_new_tokens} tokens long"
                raise Unanswerable(label, reason, "max_new_tokens", len(row) + 1)

    def _beyond(self, tokens: int) -> int:
        """`max_answer_length` so that an answer has so many tokens more."""
        return (self.backbone.max_answer_length or 0) + tokens

    def noted(self, examples: Sequence[Example], training: bool = True) -> dict[str, int]:
        """Texts and answers that are cut, or hold special tokens."""
        return self._encoding.noted(Mapped(self._written, examples), Mapped(attrgetter("answer"), examples), training)

    def _written(self, example: Example) -> str:
        """The text that is encoded for an example."""
        return example.prompt if example.recital is None else example.recital.start

    def lengths(self, examples: Sequence[Example], answers: bool = True) -> list[int]:
        """Tokens of each prompt, and of its answer."""
        found: list[int] = []
        for part in parts(examples):
            ends = self._answers(part) if answers else []
            prompts = self._before(part, ends) if answers else self._prompts(part)
            found += [len(p) + len(a) for p, a in itertools.zip_longest(prompts, ends, fillvalue=())]
        return found

    def targets(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each answer."""
        return [len(row) for part in parts(examples) for row in self._answers(part)]

    def loss_sum(self, model: nn.Module, batch: Batch, tokens: Literal["mean", "sum"]) -> Tensor:
        """Sum over the examples of the mean, or sum, of -log p of the answer's tokens."""
        return example_losses(self.forward(model, batch), batch["labels"], tokens).sum()

    def relabel(self, batch: Batch, targets: Tensor) -> Batch:
        """Other targets; the answer that the model reads stays."""
        return batch | {"labels": relabelled(batch["labels"], targets)}

    def identity(self) -> str:
        """Backbone, tokenizer, and the library that they are put together by."""
        return self.source.identity()

    def answer(self, model: nn.Module, batch: Batch, how: Answering) -> list[Prediction]:
        """Generated text, or the most probable label."""
        assert isinstance(model, PreTrainedModel)
        if how.labels:
            return most_probable(self._label_scores(model, batch, how.labels), how.labels)
        ids, largest = self._continued(model, batch, how)
        found = zip(self._spoken(batch, ids, how), chosen_by(largest), strict=True)
        return [Prediction(text if how.raw else answer_of(text, how.text), None, kept) for text, kept in found]

    def answered(self, batch: Batch, answers: Sequence[Sequence[int]]) -> Batch:
        """All rows padded on the left, as families without an encoder have them."""
        rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        prompts = [ids[mask].tolist() for ids, mask in rows]
        tokens = left_padded(prompts, answers, self.tokenizer.pad_token_id)
        return batch | {name: tensor.to(batch["input_ids"].device) for name, tensor in tokens.items()}

    def write(self, model: nn.Module, batch: Batch, how: Answering) -> list[list[int]]:
        """Up to the first token that ends an answer, or all there may be."""
        assert isinstance(model, PreTrainedModel)
        ends, rows = self._ends(model), self._continued(model, batch, how)[0].tolist()
        lengths = [next((place for place, i in enumerate(row, 1) if i in ends), len(row)) for row in rows]
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def _ends(self, model: PreTrainedModel) -> list[int]:
        """Tokens that end an answer: a chat model may end its turn with another one than the text's end."""
        own = model.generation_config.eos_token_id
        ends = own if isinstance(own, list) else [own]
        return list(dict.fromkeys(i for i in [self.tokenizer.eos_token_id, *ends] if i is not None))

    def _generated(
        self, model: PreTrainedModel, how: Answering, examples: Sequence[Example], begins: int, **given: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Token ids of prompt and answer: greedy, or the sampling asked for; the answer's first token's largest logit.

        Of the checkpoint's own settings only its special tokens count: transformers would fill in the rest, such as a
        penalty on repetitions, where none is given.

        Args:
            examples: that are answered, one for each row.
            begins: the position of an answer's first token in what is generated.
        """
        own = model.generation_config
        start = own.decoder_start_token_id
        special = {
            "eos_token_id": self._ends(model),
            "pad_token_id": self.tokenizer.pad_token_id,
            "decoder_start_token_id": getattr(model.config, "decoder_start_token_id", None) if start is None else start,
        }
        chosen: dict[str, Any] = {"do_sample": False}
        if how.sampling is not None:
            chosen = {
                "do_sample": True,
                "temperature": how.sampling.temperature,
                "top_k": how.sampling.top_k or 0,
                "top_p": how.sampling.top_p if how.sampling.top_p is not None else 1.0,
                "repetition_penalty": how.repetition_penalty,
            }
        if how.never:
            chosen["suppress_tokens"] = list(how.never)
        asked = GenerationConfig(max_new_tokens=how.max_new_tokens, num_beams=1, **special, **chosen)
        deterministic = torch.are_deterministic_algorithms_enabled()
        first = _FirstToken()
        try:
            model.generation_config = GenerationConfig(**special)
            if how.sampling is not None:  # its cumulative sums have no deterministic kernel on a GPU
                torch.use_deterministic_algorithms(False)
            ids = model.generate(  # type: ignore[operator]  # typed as a module's attribute
                **given,
                generation_config=asked,
                synced_gpus=False,  # of weights that a training shards too: whoever answers has the whole ones
                logits_processor=LogitsProcessorList([first]),
                stopping_criteria=StoppingCriteriaList([self._stopping(how, examples, begins)] if how.until else []),
            )
        finally:
            model.generation_config = own
            torch.use_deterministic_algorithms(deterministic)
        assert isinstance(ids, Tensor) and first.largest is not None
        return ids, first.largest

    def _stopping(self, how: Answering, examples: Sequence[Example], begins: int) -> StoppingCriteria:
        """Ends an answer of which nothing is read any more; where a model can think, behind its thoughts."""
        thinks = _THOUGHT in self.tokenizer.get_vocab()

        def done(text: str, example: Example) -> bool:
            _, thought, answer = text.rpartition(_THOUGHT)
            if (thinks and not thought) or answer.endswith("\ufffd"):  # a character that has not come to its end
                return False
            return all(read(answer.lstrip(), example) for read in how.until)

        return _Done(lambda ids: list(map(done, self._decoded(ids[:, begins:]), examples)))

    def _decoded(self, ids: Tensor | list[list[int]]) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts


#: Ends what a model thinks before it answers (`answer_of`).
_THOUGHT = "</think>"


class _Done(StoppingCriteria):
    """Of each row of token ids, whether it is done."""

    def __init__(self, done: Callable[[Tensor], list[bool]]):
        self._done = done

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        return torch.tensor(self._done(input_ids), device=input_ids.device)


class _FirstToken(LogitsProcessor):
    """Looks at the first token's logits while an answer is generated, and changes nothing."""

    def __init__(self) -> None:
        self.largest: Tensor | None = None  # [B, 1], fp32

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.largest is None:
            self.largest = scores.float().amax(-1, keepdim=True)
        return scores


def _one_product(model: PreTrainedModel) -> PreTrainedModel:
    """The model, whose head reads one block of memory.

    It reads the last positions of each row, and torch 2.13 takes the product of such a slice with weights that do not
    train row by row, from a copy of the weights for each: 16 rows and the vocabulary of SmolLM2 take 6 times as long in
    fp32, 120 times in bf16 (scripts/bench/head.py).
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_in_one_block)
    return model


def _in_one_block(head: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.contiguous() for one in given)
