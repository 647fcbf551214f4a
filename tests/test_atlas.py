"""Names of modules over families, where selected entries lie, and overlap against sets of Python."""

from __future__ import annotations

import random
import time

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from cl_runner.report.drawing import MODULES as DRAWN
from cl_runner.sparse.atlas import describe_masks, overlap, places
from cl_runner.sparse.groups import layer_groups
from cl_runner.sparse.summary import MODULES, module_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
ATTENTION = {"query", "key", "value", "attention_output"}
GATED = {*ATTENTION, "ffn_gate", "ffn_input", "ffn_output", "layer_norm"}


def skeleton(kind: type, configuration: PreTrainedConfig) -> dict[str, int]:
    """Sizes of a model's parameters by name, from the meta device."""
    with torch.device("meta"):
        model = kind.from_config(configuration)  # type: ignore[attr-defined]
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "configuration", "block", "outside"),
    [
        (
            AutoModelForSequenceClassification,
            BertConfig(**SMALL),
            {*ATTENTION, "ffn_input", "ffn_output", "layer_norm"},
            {"embeddings", "layer_norm", "pooler", "classifier"},
        ),
        (
            AutoModelForSequenceClassification,
            RobertaConfig(**SMALL),
            {*ATTENTION, "ffn_input", "ffn_output", "layer_norm"},
            {"embeddings", "layer_norm", "classifier"},
        ),
        (
            AutoModelForCausalLM,
            GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, **TOKENS),
            {"query_key_value", "attention_output", "ffn_input", "ffn_output", "layer_norm"},
            {"embeddings", "layer_norm"},
        ),
        (
            AutoModelForCausalLM,
            LlamaConfig(**SMALL, tie_word_embeddings=False),
            GATED,
            {"embeddings", "layer_norm", "lm_head"},
        ),
        (
            AutoModelForSequenceClassification,
            LlamaConfig(**SMALL),
            GATED,
            {"embeddings", "layer_norm", "classifier"},
        ),
        (
            AutoModelForCausalLM,
            Qwen3Config(**SMALL, head_dim=8, num_key_value_heads=2, tie_word_embeddings=True, **TOKENS),
            GATED,
            {"embeddings", "layer_norm"},
        ),
        (
            AutoModelForCausalLM,
            Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=2),
            GATED,
            {"embeddings", "layer_norm"},
        ),
        (
            AutoModelForSeq2SeqLM,
            T5Config(**T5),
            {*ATTENTION, "ffn_input", "ffn_output", "layer_norm", "embeddings"},
            {"embeddings", "layer_norm"},
        ),
        (
            AutoModelForSeq2SeqLM,
            T5Config(**T5, feed_forward_proj="gated-gelu"),
            {*GATED, "embeddings"},
            {"embeddings", "layer_norm"},
        ),
    ],
    ids=["bert", "roberta", "gpt2", "llama", "llama_classifier", "qwen3", "gemma2", "t5", "t5_gated"],
)
def test_every_parameter_of_a_family_has_a_module(
    kind: type, configuration: PreTrainedConfig, block: set[str], outside: set[str]
) -> None:
    sizes = skeleton(kind, configuration)
    rows = places({}, sizes)
    assert sum(row["parameters"] for row in rows) == sum(sizes.values())
    in_blocks = {row["module"] for row in rows if row["layer"][-1].isdigit()}
    assert in_blocks == block
    assert {row["module"] for row in rows if not row["layer"][-1].isdigit()} == outside
    first = next(layer for layer in layer_groups(list(sizes), "layer").values() if layer.endswith(".0"))
    assert len({row["layer"] for row in rows if row["layer"].startswith(first.removesuffix("0"))}) == 2


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("bert.encoder.layer.3.attention.output.dense.bias", "attention_output"),
        ("bert.encoder.layer.3.output.dense.weight", "ffn_output"),
        ("bert.encoder.layer.3.attention.output.LayerNorm.weight", "layer_norm"),
        ("classifier.out_proj.weight", "classifier"),
        ("transformer.h.0.attn.c_proj.weight", "attention_output"),
        ("transformer.h.0.mlp.c_proj.weight", "ffn_output"),
        ("model.layers.0.self_attn.q_norm.weight", "layer_norm"),
        ("model.layers.0.mlp.up_proj.weight", "ffn_input"),
        ("decoder.block.0.layer.1.EncDecAttention.o.weight", "attention_output"),
        ("decoder.block.0.layer.2.DenseReluDense.wi_0.weight", "ffn_gate"),
        ("decoder.block.0.layer.2.DenseReluDense.wi_1.weight", "ffn_input"),
        ("keyboard.valued.weight", "other"),
    ],
)
def test_the_names_that_are_easily_confused(name: str, module: str) -> None:
    assert module_of(name) == module


def test_the_report_draws_every_module() -> None:
    assert set(DRAWN) == {module for module, _ in MODULES} | {"other"}


def test_places_count_by_hand() -> None:
    sizes = {"h.0.ln_1.weight": 4, "h.0.mlp.c_fc.weight": 32, "h.0.mlp.c_fc.bias": 8, "h.1.ln_1.weight": 4}
    indices = {"h.0.mlp.c_fc.weight": torch.tensor([0, 5, 31]), "h.0.mlp.c_fc.bias": torch.tensor([7])}
    assert places(indices, sizes) == [
        {"layer": "h.0", "module": "layer_norm", "selected": 0, "parameters": 4},
        {"layer": "h.0", "module": "ffn_input", "selected": 4, "parameters": 40},
        {"layer": "h.1", "module": "layer_norm", "selected": 0, "parameters": 4},
    ]


def test_overlap_by_hand() -> None:
    groups = {"a": "one", "b": "one", "c": "two", "d": "three"}
    left = {"a": torch.tensor([0, 3, 9]), "c": torch.tensor([1])}
    right = {"a": torch.tensor([3, 9, 10, 11]), "b": torch.tensor([0]), "c": torch.tensor([2])}
    # one: 2 in both of {0, 3, 9, 10, 11} and b's 0; two: none of 2; nothing in three.
    assert overlap(left, right, groups) == {"all": 2 / 8, "layers": {"one": 2 / 6, "two": 0.0}}
    assert overlap(right, left, groups) == overlap(left, right, groups)
    assert overlap(left, left, groups) == {"all": 1.0, "layers": {"one": 1.0, "two": 1.0}}


def test_overlap_is_that_of_sets() -> None:
    draw = random.Random(0)
    groups = {f"t{i}": f"layer{i // 3}" for i in range(12)}
    for _ in range(20):
        sets = [{name: set(draw.sample(range(50), draw.randrange(50))) for name in groups} for _ in range(2)]
        first, second = ({n: torch.tensor(sorted(s)) for n, s in found.items() if s} for found in sets)
        pairs = [{(name, i) for name, found in s.items() for i in found} for s in sets]
        found = overlap(first, second, groups)
        assert found["all"] == len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])
        for layer, jaccard in found["layers"].items():
            a, b = ({p for p in s if groups[p[0]] == layer} for s in pairs)
            assert jaccard == len(a & b) / len(a | b)


def test_overlap_of_millions_takes_a_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    # Every second entry on average: |A| = |B| = n / 2, a quarter of n in both, three quarters in one.
    masks = [(torch.rand(4_000_000, generator=generator) < 0.5).nonzero().view(-1) for _ in range(2)]
    began = time.perf_counter()
    found = overlap({"w": masks[0]}, {"w": masks[1]}, {"w": "w"})
    assert found["all"] == pytest.approx(1 / 3, abs=0.002)
    assert time.perf_counter() - began < 5


def test_a_selection_outside_the_groups_is_an_error() -> None:
    with pytest.raises(AssertionError, match="outside the groups"):
        overlap({"x": torch.tensor([1])}, {"a": torch.tensor([1])}, {"a": "one"})


def test_masks_are_described_with_the_layers_of_the_whole_model() -> None:
    # The embedding alone would not tell that `transformer` is a backbone; the block's name does.
    sizes = {"transformer.wte.weight": 100, "transformer.h.0.ln_1.weight": 10}
    now, before = torch.tensor([1, 2]), torch.tensor([2, 3])
    found = describe_masks("b", {"transformer.wte.weight": now}, sizes, {"a": {"transformer.wte.weight": before}})
    assert found == {
        "task": "b",
        "cells": [
            {"layer": "transformer.wte", "module": "embeddings", "selected": 2, "parameters": 100},
            {"layer": "transformer.h.0", "module": "layer_norm", "selected": 0, "parameters": 10},
        ],
        "overlap": {"a": {"all": 1 / 3, "layers": {"transformer.wte": 1 / 3}}},
    }
