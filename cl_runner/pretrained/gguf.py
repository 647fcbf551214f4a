"""A file of llama.cpp (GGUF) with a model of the LLaMA family: its configuration and tensors as transformers has them.

It is read here since transformers takes 12 CPU seconds for SmolLM2-135M where this takes one, and 4 for its tokenizer.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from cl_runner.git_lfs import is_pointer
from cl_runner.pretrained.gguf_blocks import LAYOUTS, OTHERS, Array, unpacked
from cl_runner.pretrained.gguf_tokenizer import make_tokenizer

#: Numbers by their type in the header; 8 is a text, 9 a list.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FREQUENCIES = "rope_freqs.weight"


class Packed(NamedTuple):
    """A tensor of the file, unpacked when it is read, as a slice of safetensors is."""

    data: Array
    kind: int
    shape: tuple[int, ...]
    heads: int | None  # whose halves llama.cpp has turned into pairs

    def __getitem__(self, _: Any) -> torch.Tensor:  # type: ignore[override]  # all of it, whatever is asked for
        found = unpacked(self.data, LAYOUTS[self.kind], self.shape)
        if self.heads is not None:
            found = found.reshape(self.heads, -1, 2, *self.shape[1:]).swapaxes(1, 2).reshape(self.shape)
        return torch.from_numpy(np.ascontiguousarray(found))


class Gguf:
    """A file, its header read.

    Args:
        key: of the file in the configuration, for messages.

    Raises:
        ValueError: it is none, not whole, or holds what is not read here; the text says what to do.
    """

    def __init__(self, path: Path, key: str):
        self._said = f"{key}={path}"
        self._data: Array = np.memmap(path, "u1", "r") if path.stat().st_size else np.empty(0, "u1")
        if bytes(self._data[:4]) != b"GGUF":
            lfs = "is a pointer of Git LFS, not the weights. Type: git lfs pull, in its folder"
            none = "is no file of llama.cpp (GGUF). Give one: backbone.gguf=FILE"
            raise ValueError(f"{self._said} {lfs if is_pointer(path) else none}")
        try:
            self._known, found, start = _header(self._data.data)
        except struct.error:
            raise self._damaged("it ends within its header") from None
        except (UnicodeDecodeError, _Odd) as error:
            raise self._damaged(str(error)) from None
        architecture = self._known.get("general.architecture")
        if architecture != "llama":
            raise ValueError(
                f"{self._said} is of the architecture {architecture!r}, and of such files those of llama alone are "
                "read. Give the model as a folder with safetensors: backbone=causal_folder backbone.checkpoint=FOLDER"
            )
        for count in ("split.count", "llama.expert_count"):
            if self._known.get(count, 0) > 1:
                what = "part of a file in several (llama-gguf-split --merge joins them)"
                raise ValueError(f"{self._said} is {what if count == 'split.count' else 'a mixture of experts'}")
        self._packed = {name: self._tensor(name, start, *where) for name, where in found.items()}

    def _damaged(self, reason: str) -> ValueError:
        size = len(self._data)
        return ValueError(f"{self._said} is no whole file of llama.cpp ({size:,} bytes; {reason}). Fetch it again")

    def _tensor(self, name: str, start: int, shape: tuple[int, ...], kind: int, offset: int) -> Packed:
        layout = LAYOUTS.get(kind)
        if layout is None:
            raise ValueError(
                f"{self._said}: {name} is of type {OTHERS.get(kind, kind)}, and read are "
                f"{', '.join(each.name for each in LAYOUTS.values())}. Make it anew from the model before it was "
                "packed (llama-quantize MODEL NEW Q8_0), or take such a file: backbone.gguf=FILE"
            )
        blocks, rest = divmod(math.prod(shape), layout.weights)
        at, end = start + offset, start + offset + blocks * layout.size
        if rest or end > len(self._data):
            raise self._damaged(f"{name} ends at byte {end:,}" if not rest else f"{name} has {rest} weights too many")
        part = name.split(".")[-2] if name.startswith("blk.") else ""
        heads = {"attn_q": self._count("attention.head_count"), "attn_k": self._heads_of_keys}.get(part)
        return Packed(self._data[at:end], kind, shape, heads)

    @property
    def _heads_of_keys(self) -> int:
        heads = self._count("attention.head_count")
        return self._count("attention.head_count_kv") if "llama.attention.head_count_kv" in self._known else heads

    def _count(self, name: str) -> int:
        found = self._known.get(f"llama.{name}")
        if not isinstance(found, int) or found < 1:
            raise self._damaged(f"its header says llama.{name}={found}")
        return found

    def _number(self, name: str, default: float) -> float:
        found = self._known.get(f"llama.{name}", default)
        if not isinstance(found, int | float) or not 0 < found < math.inf:
            raise self._damaged(f"its header says llama.{name}={found}")
        return found

    def tensors(self) -> dict[str, Packed]:
        """Every tensor by its name in transformers; what transformers has no name for is left over there."""
        return {_renamed(name): tensor for name, tensor in self._packed.items() if name != _FREQUENCIES}

    def held(self) -> dict[str, torch.Tensor]:
        """Name and shape of every tensor, as fp32 on the meta device."""
        return {name: torch.empty(packed.shape, device="meta") for name, packed in self.tensors().items()}

    def configuration(self, **named: Any) -> PreTrainedConfig:
        """The architecture's configuration.

        Args:
            named: values that the family sets.
        """
        heads, width = self._count("attention.head_count"), self._count("embedding_length")
        head = int(self._number("attention.key_length", width // heads))
        ids = self._ids()
        sizes: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": len(self._pieces),
            "hidden_size": width,
            "intermediate_size": self._count("feed_forward_length"),
            "num_hidden_layers": self._count("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._heads_of_keys,
            "head_dim": head,
            "max_position_embeddings": self._count("context_length"),
            "rms_norm_eps": float(f"{self._number('attention.layer_norm_rms_epsilon', 1e-5):.6g}"),
            "rope_parameters": self._rope(head),
            "attention_bias": "blk.0.attn_q.bias" in self._packed,
            "mlp_bias": "blk.0.ffn_up.bias" in self._packed,
            "tie_word_embeddings": "output.weight" not in self._packed,
            "dtype": "float32",
        }
        roles = {f"{role}_token_id": ids[role] for role in ("bos", "eos", "pad") if role in ids}
        try:
            return LlamaConfig(**sizes | roles | named)
        except StrictDataclassError as error:
            raise self._damaged(" ".join(str(error).split())[:100]) from None

    def _rope(self, head: int) -> dict[str, Any]:
        """Rotary positions, scaled as the header says.

        Raises:
            ValueError: in a way that is not known here.
        """
        base, turned = self._number("rope.freq_base", 10000.0), self._number("rope.dimension_count", head)
        scaling = self._known.get("llama.rope.scaling.type", "none")
        known: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
        if scaling == "linear":
            known |= {"rope_type": "linear", "factor": self._number("rope.scaling.factor", 1.0)}
        slower = self._packed.get(_FREQUENCIES)
        if slower is not None:
            found = unpacked(slower.data, LAYOUTS[slower.kind], slower.shape)
            known |= (values := _LLAMA3 | {"rope_type": "llama3", "factor": float(found.max())})
            if not np.allclose(found, _slower(base, head, values), rtol=1e-4):
                scaling = "by frequencies of its own"
        if scaling not in ("none", "linear") or turned != head:
            raise ValueError(
                f"{self._said} turns positions in a way that is not read here (scaling {scaling}, {turned:g} of {head} "
                "dimensions). Give the model as a folder: backbone=causal_folder backbone.checkpoint=FOLDER"
            )
        return known

    def _ids(self) -> dict[str, int]:
        """Special tokens by what transformers calls them."""
        named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        found = {role: self._known.get(f"tokenizer.ggml.{name}_token_id") for role, name in named.items()}
        return {role: i for role, i in found.items() if isinstance(i, int) and 0 <= i < len(self._pieces)}

    @property
    def _pieces(self) -> list[str]:
        found = self._known.get("tokenizer.ggml.tokens")
        if not isinstance(found, list) or not found:
            raise self._damaged("its header has no tokens")
        return found

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the header, with its chat template.

        Raises:
            ValueError: it is of a kind that is not known here.
        """
        return make_tokenizer(self._known, self._ids(), self._count("context_length"), self._said)


#: Of Llama 3.1 and 3.2, which write down the frequencies that follow from them.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _slower(base: float, head: int, values: Mapping[str, Any]) -> Array:
    """By how much Llama 3.1 slows each frequency down, [head / 2]."""
    turns = _LLAMA3["original_max_position_embeddings"] / (2 * math.pi * base ** (np.arange(0, head, 2) / head))
    low, high, factor = values["low_freq_factor"], values["high_freq_factor"], values["factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - share) / factor + share)


def _renamed(name: str) -> str:
    first, _, rest = name.rpartition(".")
    if first in _WHOLE:
        return f"{_WHOLE[first]}.{rest}"
    _, layer, part, *_ = [*first.split("."), "", ""]
    return f"model.layers.{layer}.{_PARTS[part]}.{rest}" if part in _PARTS else f"model.{name}"


class _Odd(Exception):
    """A header that no program writes."""


Header = tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]], int]


def _header(data: memoryview) -> Header:
    """Metadata, tensors by name as (shape, type, offset), and where their data begin.

    Raises:
        _Odd, struct.error, UnicodeDecodeError: it is damaged.
    """
    at = 4

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal at
        found = struct.unpack_from(f"<{layout}", data, at)
        at += struct.calcsize(f"<{layout}")
        return found

    def text() -> str:
        nonlocal at
        (length,) = take("Q")
        begin, at = at, at + length
        if at > len(data):
            raise _Odd("it ends within its header")
        return str(data[begin:at], "utf-8")

    def value(kind: int) -> Any:
        if kind == 8:
            return text()
        if kind == 9:
            inner, length = take("IQ")
            if inner in _NUMBERS:
                return take(f"{min(length, len(data))}{_NUMBERS[inner]}")  # more than all there is ends in an error
            if inner != 8:
                raise _Odd(f"its header holds a list of type {inner}")
            return [text() for _ in range(length)]
        if kind not in _NUMBERS:
            raise _Odd(f"its header holds a value of type {kind}")
        return take(_NUMBERS[kind])[0]

    (version, count, pairs) = take("IQQ")
    if version not in (2, 3):
        raise _Odd(f"it is of version {version}, and 2 and 3 are read")
    known = {text(): value(take("I")[0]) for _ in range(pairs)}
    tensors = {}
    for _ in range(count):
        name, (dims,) = text(), take("I")
        if dims > 4 or name in tensors:
            raise _Odd(f"its header names {name!r} {'twice' if name in tensors else f'with {dims} dimensions'}")
        shape = take(f"{dims}Q")[::-1]
        tensors[name] = (shape, *take("IQ"))
    align = known.get("general.alignment", 32)
    if not isinstance(align, int) or align < 1:
        raise _Odd(f"its header says general.alignment={align}")
    return known, tensors, -(-at // align) * align
