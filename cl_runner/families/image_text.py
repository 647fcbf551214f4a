"""Language models that see: any AutoModelForImageTextToText; a prompt is a picture and a question about it.

Every tensor of a batch has the examples along its first dimension, as passes over parts of a batch need it. Models with
one size of pictures (LLaVA) have that by themselves; of models that cut a picture into a grid of patches (Qwen-VL) the
patches of a batch, which they take as one long row, are padded to [examples, patches, values].
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from cl_runner.batch import Batch, Output
from cl_runner.config import Backbone
from cl_runner.data.example import Example
from cl_runner.families.base import Answering
from cl_runner.families.encoding import Encoding
from cl_runner.families.language import LanguageModel
from cl_runner.families.small_processors import small_processor
from cl_runner.families.tokens import after_first, example_losses, left_padded, mean_state, token_output
from cl_runner.sequences import Mapped

#: EXIF: how a camera was held, and the values by which width and height change places.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


class ImageText(LanguageModel):
    """As `Causal`, with a picture in front of every question; nothing of a prompt is ever cut.

    A batch of token ids alone, as probes of language make them, is read as text: without `pixel_values`.
    """

    kind = "image_text"

    def __init__(self, backbone: Backbone, labels: Sequence[str]):
        if not backbone.chat_template:
            raise ValueError(
                f"backbone {backbone.name} is asked about pictures by its chat template. "
                "Type: backbone.chat_template=true"
            )
        self._made: dict[str, str] = {}  # question -> prompt
        self._words: dict[str, str] = {}  # and back
        super().__init__(backbone, AutoModelForImageTextToText)
        own = backbone.tokenizer is not None
        self.processor = small_processor(backbone, self.tokenizer) if own else self.source.processor()
        if not self.processor.chat_template:
            raise ValueError(f"{backbone.name} has no chat template, by which it could be asked about pictures")
        self._image: int = self.processor.image_token_id
        self._starts = self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id
        self._places: dict[str, int] = {}
        named = [getattr(self.processor, f"{what}_token_id", None) for what in ("image", "video")]
        self._placeholders = tuple(i for i in named if i is not None)

    def _rules(self) -> Encoding:
        # The processor's template makes a whole prompt; only special tokens around it are left to add.
        whole = self.backbone.model_copy(
            update={"chat_template": False, "max_length": 2**31, "training_length": "apart"}
        )
        return Encoding(whole, self.tokenizer, self.tokenizer.eos_token_id, open_end=True, words=self._words)

    def check(self, labels: Sequence[Sequence[str]], max_new_tokens: int) -> None:
        """Prompt and answer have room among the model's positions."""
        assert self.backbone.max_answer_length is not None
        positions = getattr(self._configuration.get_text_config(), "max_position_embeddings", None)
        answer = max(self.backbone.max_answer_length, max_new_tokens)
        if positions is not None and self.backbone.max_length + answer > positions:
            raise ValueError(
                f"{self.backbone.name} reads {positions} tokens, and a prompt with its picture and an answer may have "
                f"{self.backbone.max_length} + {answer}. Type: backbone.max_length={max(3, positions - answer)}"
            )

    def save_reader(self, folder: Path) -> None:
        """The processor's files, the tokenizer's among them."""
        self.processor.save_pretrained(folder)

    def tokenize(self, examples: Sequence[Example], cache: Path | None) -> None:
        """Prompts and answers; pictures are read when a batch needs them.

        Raises:
            ValueError: a prompt with its picture is too long, or a picture cannot be read.
        """
        self._encoding.remember(Mapped(self._written, examples), Mapped(attrgetter("answer"), examples), cache)
        longest = max(self.lengths(examples, answers=False), default=0)
        if longest > self.backbone.max_length:
            raise ValueError(
                f"the longest prompt has {longest} tokens, its picture included, and none is cut. "
                f"Type: backbone.max_length={longest}"
            )

    def _written(self, example: Example) -> str:
        """The question as the chat template puts it, with one token for the picture."""
        if example.prompt not in self._made:
            content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
            turn: Any = {"role": "user", "content": content}
            text = self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
            if self._starts:  # the tokenizer will add what the template may have written
                text = text.removeprefix(self.tokenizer.bos_token)
            self._made[example.prompt], self._words[text] = text, example.prompt
        return self._made[example.prompt]

    def _prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Ids of each prompt, with as many tokens for the picture as the model has features of it."""
        prompts = []
        for example, row in zip(examples, self._encoding.prompts([self._written(e) for e in examples]), strict=True):
            if row.count(self._image) != 1 or self.processor.image_token in example.prompt:
                raise ValueError(
                    f"the prompt {example.prompt!r} holds {self.processor.image_token}, which stands for a picture; "
                    "leave such examples out"
                )
            place = row.index(self._image)
            prompts.append([*row[:place], *[self._image] * self._features(example), *row[place + 1 :]])
        return prompts

    def _before(self, examples: Sequence[Example], answers: Sequence[Sequence[int]]) -> list[list[int]]:
        return self._prompts(examples)

    def _features(self, example: Example) -> int:
        """Tokens that the picture takes; its header is read, no more."""
        assert example.picture is not None, "the task has no pictures"
        path = example.picture.path
        if path not in self._places:
            with opened(path) as picture:
                width, height = picture.size
                if picture.getexif().get(_ORIENTATION) in _TURNED:
                    width, height = height, width
            counted = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
            self._places[path] = int(counted.num_image_tokens[0])
        return self._places[path]

    def collate(self, examples: Sequence[Example], answers: bool = True) -> Batch:
        """The pictures, and tokens padded on the left.

        Returns:
            input_ids, attention_mask, position_ids [B, L]; labels [B, A], the last A positions; and what the processor
            makes of the pictures: pixel_values [B, 3, H, W], or [B, patches, values] with image_grid_thw [B, 3].

        Raises:
            ValueError: a picture cannot be read, or the model wants pictures of different shapes in another way.
        """
        ends = self._encoding.answers([e.answer for e in examples]) if answers else None
        tokens = left_padded(self._prompts(examples), ends, self.tokenizer.pad_token_id)
        return Batch({**tokens, **self._pictures(examples)}, examples)

    def _pictures(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        made = []
        for example in examples:
            assert example.picture is not None, "the task has no pictures"
            with opened(example.picture.path) as picture:
                try:
                    upright = ImageOps.exif_transpose(picture).convert("RGB")
                except OSError as error:
                    raise _unreadable(example.picture.path, error) from None
            made.append(self.processor.image_processor(images=upright, return_tensors="pt"))
        pixels = [one["pixel_values"] for one in made]
        if "image_grid_thw" in made[0]:
            patches = nn.utils.rnn.pad_sequence(pixels, batch_first=True)
            return {"pixel_values": patches, "image_grid_thw": torch.cat([one["image_grid_thw"] for one in made])}
        if set(made[0].keys()) != {"pixel_values"} or any(one.shape != pixels[0].shape for one in pixels):
            raise ValueError(
                f"{self.backbone.name} reads pictures in another way than as one size (LLaVA-1.5) or a grid of patches "
                "(Qwen-VL). Choose another: backbone=llava_1_5_7b"
            )
        return {"pixel_values": torch.cat(pixels)}

    def forward(self, model: nn.Module, batch: Batch) -> Output:
        """Cross-entropy of the answers' tokens; logits [tokens, vocabulary]."""
        labels = batch["labels"]
        count = labels.shape[1] + 1
        given = self._given(model, batch)
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            given["logits_to_keep"] = count
        logits: Tensor = model(**given, use_cache=False).logits
        return token_output(logits[:, -count:-1], labels)

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the prompt's last hidden states, its picture's among them, [B, width]."""
        return mean_state(self._hidden(model, batch)[-1], batch["attention_mask"])

    def states(self, model: nn.Module, batch: Batch) -> Tensor:
        """The means of the prompt's hidden states in the language model, without its first token."""
        read = after_first(batch["attention_mask"])
        return torch.stack([mean_state(each, read) for each in self._hidden(model, batch)])

    def _hidden(self, model: nn.Module, batch: Batch) -> Sequence[Tensor]:
        given = self._given(model, batch)
        found: Sequence[Tensor] = model(**given, output_hidden_states=True, use_cache=False).hidden_states
        return found

    def _given(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The model's arguments."""
        known = inspect.signature(model.forward).parameters
        given: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if "pixel_values" not in batch:
            return given | ({"position_ids": batch["position_ids"]} if "position_ids" in batch else {})
        pixels = batch["pixel_values"].to(next(model.parameters()).dtype)
        if "image_grid_thw" in batch:
            grid = batch["image_grid_thw"]
            present = torch.arange(pixels.shape[1], device=pixels.device) < grid.prod(1, keepdim=True)
            given |= {"pixel_values": pixels[present], "image_grid_thw": grid}
        else:  # a grid has positions of its own, which the model finds out
            given |= {"pixel_values": pixels, "position_ids": batch["position_ids"]}
        if "mm_token_type_ids" in known:
            given["mm_token_type_ids"] = (batch["input_ids"] == self._image).int()
        return given

    def identity(self) -> str:
        """Backbone, tokenizer, how pictures and prompts are prepared, and the library that they are put together by."""
        return self.source.identity(
            pictures=self.processor.image_processor.to_json_string(), template=self.processor.chat_template
        )

    def followed(self, examples: Sequence[Example], text: str) -> Batch:
        """As `collate` without answers: nothing of a prompt is ever cut."""
        texts = zip(examples, self._filled(text, examples), strict=True)
        longer = [dataclasses.replace(example, prompt=example.prompt + more) for example, more in texts]
        return Batch(self.collate(longer, answers=False), examples)

    def write(self, model: nn.Module, batch: Batch, how: Answering) -> list[list[int]]:
        """A token that stands for a picture is not written: the model would look for one more."""
        return super().write(model, batch, dataclasses.replace(how, never=self._placeholders))

    def _continued(self, model: PreTrainedModel, batch: Batch, how: Answering) -> tuple[Tensor, Tensor]:
        given = self._given(model, batch)
        given.pop("position_ids", None)  # generation makes them from the mask
        if "pixel_values" not in given:  # there is no picture that a token could stand for
            how = dataclasses.replace(how, never=self._placeholders)
        # No prompt is ever cut, so that both ways to slice are one.
        ids, largest = self._generated(model, how, batch.examples, batch["input_ids"].shape[1], **given)
        return ids[:, batch["input_ids"].shape[1] :], largest

    def _spoken(self, batch: Batch, ids: Tensor, how: Answering) -> list[str]:
        if not how.raw:
            return self._decoded(ids)
        # A text that is decoded alone loses the space that it begins with (LLaMA-2).
        prompts = self._decoded(batch["input_ids"])
        wholes = self._decoded(torch.cat([batch["input_ids"], ids], 1))
        return [whole.removeprefix(prompt) for whole, prompt in zip(wholes, prompts, strict=True)]

    def _label_scores(self, model: PreTrainedModel, batch: Batch, labels: Sequence[str]) -> Tensor:
        """log p(label and its end | prompt), [B, labels]; one pass for each label."""
        scores = []
        for end in self._encoding.answers(labels):
            label = torch.tensor(end, device=batch["input_ids"].device).expand(len(batch["input_ids"]), -1)
            ids = torch.cat([batch["input_ids"], label], 1)
            mask = torch.cat([batch["attention_mask"], torch.ones_like(label)], 1)
            answered = batch | {"input_ids": ids, "attention_mask": mask, "labels": label}
            answered["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
            scores.append(-example_losses(self.forward(model, answered), label, "sum"))
        return torch.stack(scores, 1)


def opened(path: str) -> Image.Image:
    """A picture of which only the header is read yet.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return Image.open(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> ValueError:
    return ValueError(f"{path} is not a readable picture ({error}). Fetch it again")
