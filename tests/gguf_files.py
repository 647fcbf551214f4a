"""Small files of llama.cpp, written value by value, for tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

#: What llama.cpp calls the parts of a layer.
PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"


def little_llama(tied: bool = True, tokens: int = 262, **sizes: Any) -> LlamaForCausalLM:
    """Two layers of 32 numbers, four heads of which two share their keys."""
    torch.manual_seed(0)
    known = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
    known |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=tokens, tie_word_embeddings=tied, **known | sizes))


def metadata(model: LlamaForCausalLM, **values: Any) -> dict[str, Any]:
    """What the header of a model's file says; bytes are its words, joined by three merges."""
    c = model.config
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "Ġb", "12"]
    return {
        "general.architecture": "llama",
        "llama.block_count": c.num_hidden_layers,
        "llama.context_length": c.max_position_embeddings,
        "llama.embedding_length": c.hidden_size,
        "llama.feed_forward_length": c.intermediate_size,
        "llama.attention.head_count": c.num_attention_heads,
        "llama.attention.head_count_kv": c.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": c.hidden_size // c.num_attention_heads,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(pieces) - 3),
        "tokenizer.ggml.merges": ["Ġ a", "Ġ b", "1 2"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    } | values


def tensors_of(model: LlamaForCausalLM) -> dict[str, Any]:
    """Every tensor as llama.cpp names and turns it, fp32."""
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    found = {}
    for name, tensor in model.state_dict().items():
        module, _, last = name.rpartition(".")
        values = tensor.numpy()
        if module in WHOLE:
            if module != "lm_head" or not model.config.tie_word_embeddings:
                found[f"{WHOLE[module]}.{last}"] = values
            continue
        _, _, layer, part = module.split(".", 3)
        if PARTS[part] in heads:
            turned = values.reshape(heads[PARTS[part]], 2, -1, values.shape[1])
            values = turned.swapaxes(1, 2).reshape(values.shape)
        found[f"blk.{layer}.{PARTS[part]}.{last}"] = np.ascontiguousarray(values)
    return found


def q8_0(values: Any) -> bytes:
    """fp32 in blocks of 32 signed bytes, each behind its scale."""
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
    numbers = np.round(blocks / scale.astype("f4")).clip(-127, 127).astype("i1")
    return np.concatenate([scale.view("u1"), numbers.view("u1")], 1).tobytes()


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind, first = _value(value[0])[:4], value[0]
        rest = b"".join(_text(v) if isinstance(first, str) else _value(v)[4:] for v in value)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + rest
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<Ii", 5, value)


def write_gguf(
    path: Path, known: Mapping[str, Any], tensors: Mapping[str, Any], packed: Mapping[str, tuple[int, bytes]] = {}
) -> Path:
    """The file.

    Args:
        packed: tensors that are of another type than fp32: its number and the bytes.
    """
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(known))
    head += b"".join(_text(key) + _value(value) for key, value in known.items())
    body = b""
    for name, values in tensors.items():
        kind, data = packed.get(name, (0, values.astype("<f4").tobytes()))
        shape = values.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(body))
        body += data + bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return path
