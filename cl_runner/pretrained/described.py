"""What the config.json of a checkpoint says that cannot be trained here, found before anything of it is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.utils import is_flash_attn_2_available

from cl_runner.config import FamilyKind
from cl_runner.pretrained.places import adapter_message, read_json

#: Transformers' class that makes the models of each kind.
MODELS: dict[FamilyKind, Any] = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "image_text": AutoModelForImageTextToText,
    "classifier": AutoModelForSequenceClassification,
}
#: Files that a tokenizer is made of.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "spiece.model", "sentencepiece*.model", "tekken.json", "*.tiktoken")
#: Sizes of an architecture of which there is at least one.
_SIZES = re.compile(
    r"(num_(hidden_|encoder_|decoder_)?layers|n_layers?|(encoder|decoder)_layers|num_(attention_|key_value_)?heads|n_heads?"
    r"|hidden_size|intermediate_size|vocab_size|d_model|d_ff|d_kv|n_embd|max_position_embeddings|n_positions)"
)


def check_folder(folder: Path, key: str) -> None:
    """The configuration of a checkpoint's folder is one that is read and trained here.

    Args:
        key: of the checkpoint in the configuration.

    Raises:
        ValueError: otherwise; the text says why and what to do.
    """
    said = read_json(folder / "config.json")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{key}={folder}: {adapter_message()}")
    quantised = said.get("quantization_config")
    if quantised:
        how = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else "unknown"
        raise ValueError(
            f"{key}={folder}: its weights are quantised ({how}, by quantization_config of its config.json), and such "
            "weights do not train here. Give the checkpoint from before it was quantised"
        )
    kind = said.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"{key}={folder}: {_unknown(kind, said.get('auto_map'))}")


def _unknown(kind: Any, code: Any) -> str:
    """Why an architecture is not known."""
    if code:
        return (
            f"its architecture {kind!r} is Python code in the folder (auto_map of its config.json), and code of "
            "checkpoints is never run here. Give a checkpoint of an architecture that transformers itself has"
        )
    if not isinstance(kind, str):
        return "its config.json does not say which architecture it is (model_type). Save it by save_pretrained"
    close = difflib.get_close_matches(kind, list(CONFIG_MAPPING), n=1)
    return (
        f"transformers {transformers.__version__} has no architecture {kind!r} (model_type of its config.json)"
        f"{f'. Nearest: {close[0]!r}' if close else ''}. Perhaps a newer one has it: pip install -U transformers"
    )


def check_tokenizer_files(folder: Path, key: str) -> None:
    """A folder has files of a tokenizer.

    Raises:
        ValueError: it has none: transformers would make one without words.
    """
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
        raise ValueError(
            f"{key}={folder}: there is no tokenizer in that folder (tokenizer.json, tokenizer_config.json). Save the "
            "model's own beside it: AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained(FOLDER)"
        )


def check_kind(configuration: PreTrainedConfig, auto: Any, key: str, name: str) -> None:
    """The architecture has models that read and write as the family does.

    Args:
        auto: transformers' class that makes the family's models.
        key: of the checkpoint in the configuration.
        name: of the checkpoint.

    Raises:
        ValueError: it has none, or is an encoder, which would see the answer that it is to write.
    """
    fitting = [kind for kind, maker in MODELS.items() if _fits(configuration, maker)]
    if _fits(configuration, auto):
        return
    choices = [f"backbone={kind}_folder {key}={name}" for kind in fitting if kind != "image_text"]
    if key == "backbone.gguf":
        choices = [f"backbone=causal_gguf {key}={name}"]
    raise ValueError(
        f"{key}={name}: {configuration.model_type} is none of the architectures of {auto.__name__}, by which this "
        "backbone is made. "
        + (f"Type: {' (or: '.join(choices)}{')' * (len(choices) - 1)}" if choices else "Give another checkpoint")
    )


def _fits(configuration: PreTrainedConfig, auto: Any) -> bool:
    # transformers puts a decoder's head on an encoder as well; it would see the answer that it is to write.
    encoder = type(configuration) in AutoModelForMaskedLM._model_mapping and not configuration.is_encoder_decoder
    if auto is AutoModelForCausalLM and encoder and not getattr(configuration, "is_decoder", True):
        return False
    return type(configuration) in auto._model_mapping


def check_attention(attention: str) -> None:
    """The implementation of attention is installed.

    Raises:
        ValueError: it is not, or there is no GPU for it.
    """
    if attention == "flash_attention_2" and not (torch.cuda.is_available() and is_flash_attn_2_available()):
        lacks = "the package flash-attn is not installed" if torch.cuda.is_available() else "torch sees no GPU here"
        raise ValueError(
            f"backbone.attention=flash_attention_2: {lacks}. Type: backbone.attention=sdpa"
            + (" (or: pip install flash-attn)" if torch.cuda.is_available() else "")
        )


def check_sizes(sizes: Mapping[str, Any], node: str = "backbone.architecture") -> None:
    """There is at least one of what an architecture is made of.

    Raises:
        ValueError: there is none of something.
    """
    for name, value in sizes.items():
        if isinstance(value, Mapping):
            check_sizes(value, f"{node}.{name}")
        elif _SIZES.fullmatch(name) and isinstance(value, int) and value < 1:
            raise ValueError(f"{node}.{name} must be at least 1, got {value}. Type: {node}.{name}=1")
