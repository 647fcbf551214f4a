"""Groups of tensors, patterns of their names, types of their modules; shares of zeros by group."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from cl_runner.patterns import match, module_types
from cl_runner.sparse.groups import layer_groups
from cl_runner.sparse.summary import zero_fraction

BERT = [
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.LayerNorm.bias",
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.0.output.dense.bias",
    "bert.encoder.layer.10.attention.self.query.weight",
    "bert.pooler.dense.weight",
    "classifier.weight",
]


def test_zero_fraction() -> None:
    scores = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.0, -0.0]), "c": torch.tensor([1e-30])}
    assert zero_fraction(scores, {"a": "one", "b": "one", "c": "two"}) == {"one": 0.75, "two": 0.0}


def test_layer_groups() -> None:
    assert list(layer_groups(BERT, "layer").values()) == [
        "bert.embeddings",
        "bert.embeddings",
        "bert.encoder.layer.0",
        "bert.encoder.layer.0",
        "bert.encoder.layer.10",
        "bert.pooler",
        "classifier",
    ]
    others = {
        "roberta.encoder.layer.3.output.dense.bias": "roberta.encoder.layer.3",
        "classifier.dense.weight": "classifier",
        "classifier.out_proj.bias": "classifier",
        "transformer.h.7.attn.c_attn.weight": "transformer.h.7",
        "transformer.wte.weight": "transformer.wte",
        "model.layers.31.mlp.up_proj.weight": "model.layers.31",
        "model.embed_tokens.weight": "model.embed_tokens",
        "lm_head.weight": "lm_head",
        "encoder.block.2.layer.0.SelfAttention.q.weight": "encoder.block.2",
        "scale": "scale",
    }
    assert layer_groups(list(others), "layer") == others
    # Patterns may leave the embeddings and the pooler only.
    assert set(layer_groups([BERT[0], BERT[5]], "layer").values()) == {"bert.embeddings", "bert.pooler"}
    assert layer_groups(BERT, "tensor") == {name: name for name in BERT}
    assert set(layer_groups(BERT, "global").values()) == {"all"}


def test_match() -> None:
    assert match(BERT, [], []) == BERT
    assert match(BERT, ["*.query.weight", "classifier.*"], ["*.10.*"]) == [BERT[2], BERT[6]]
    assert match(BERT, [], ["*embeddings*"]) == BERT[2:]


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["*.qeury.*"], [], r"'\*\.qeury\.\*' matches no parameter\. Nearest: .*query.*type '\*query\*'"),
        ([], ["embeddings"], r"cover the whole name, such as 'bert\.embeddings\.word.*type '\*embeddings\*'"),
        (["Xyz*"], [], r"'Xyz\*' matches no parameter\. Nearest: "),
        (["classifier.*"], ["class*"], "no parameter is left"),
    ],
)
def test_patterns_that_match_nothing(include: list[str], exclude: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match(BERT, include, exclude)


def test_exclude_modules() -> None:
    class Half(nn.Linear):
        """A linear layer of somebody's own."""

    model = nn.ModuleDict(
        {"emb": nn.Embedding(5, 2), "norm": nn.LayerNorm(2), "up": Half(2, 3), "out": nn.Linear(2, 5)}
    )
    model["out"].weight = model["emb"].weight  # tied: named after the first owner, of both types
    types = module_types(model)
    assert types == {
        "emb.weight": {"Embedding", "Linear", "Module"},
        "norm.weight": {"LayerNorm", "Module"},
        "norm.bias": {"LayerNorm", "Module"},
        "up.weight": {"Half", "Linear", "Module"},
        "up.bias": {"Half", "Linear", "Module"},
        "out.bias": {"Linear", "Module"},
    }
    names = list(types)
    assert match(names, [], [], ["Embedding"], types) == names[1:]
    assert match(names, [], [], ["Half", "Embedding"], types) == ["norm.weight", "norm.bias", "out.bias"]
    assert match(names, [], ["*.bias"], ["Linear"], types) == ["norm.weight"]
    assert match(names, ["up.*", "emb.*"], [], ["Embedding"], types) == ["up.weight", "up.bias"]
    assert match(names[1:], [], [], ["Embedding"], types) == names[1:], "embeddings that the backbone keeps frozen"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Embeding", "no module of type 'Embeding' owns a parameter. Nearest: 'Embedding'; type Embedding"),
        ("layernorm", "no module of type 'layernorm' owns a parameter. Nearest: 'LayerNorm'; type LayerNorm"),
        ("Xyz", "no module of type 'Xyz' owns a parameter. There are: Embedding, LayerNorm, Module"),
        ("Module", r"no parameter is left: exclude=\[\] and exclude_modules=\['Module'\] covers include=\[\]"),
    ],
)
def test_module_types_that_do_not_fit(given: str, message: str) -> None:
    types = module_types(nn.Sequential(nn.Embedding(5, 2), nn.LayerNorm(2)))
    with pytest.raises(ValueError, match=message):
        match(list(types), [], [], [given], types)


def causal(config: transformers.PreTrainedConfig) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_config(config)


SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
MODELS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "bert": (
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
        {"bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler", "classifier"},
    ),
    "roberta": (
        lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SMALL)),
        {"roberta.embeddings", "roberta.encoder.layer.0", "roberta.encoder.layer.1", "classifier"},
    ),
    "gpt2": (
        lambda: causal(transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2)),
        {"transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1", "transformer.ln_f"},
    ),
    "llama": (
        lambda: causal(transformers.LlamaConfig(**SMALL)),
        {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"},
    ),
    "t5": (
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
        ),
        {"shared"}
        | {f"encoder.{part}" for part in ("block.0", "block.1", "final_layer_norm")}
        | {f"decoder.{part}" for part in ("block.0", "block.1", "final_layer_norm")},
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_layers_and_owners_of_real_models(family: str) -> None:
    build, expected = MODELS[family]
    with torch.device("meta"):
        model = build()
    names = [name for name, _ in model.named_parameters()]
    groups = layer_groups(names, "layer")
    assert set(groups.values()) == expected
    # Every block has as many tensors as the others of its stack (T5's first holds the position bias as well).
    counts = Counter(group for group in groups.values() if group.endswith((".0", ".1")))
    for group in counts:
        if group.endswith(".0"):
            assert counts[group] - counts[group[:-1] + "1"] == (1 if family == "t5" else 0)
    types = module_types(model)
    assert list(types) == names
    left = match(names, [], [], ["Embedding"], types)
    assert not any(re.search(r"embeddings\.weight|embed_tokens|wte|wpe|shared|attention_bias", name) for name in left)
    assert {group for group in groups.values() if ".0" in group} <= {groups[name] for name in left}
    if family == "gpt2":
        assert types["transformer.wte.weight"] >= {"Embedding", "Linear"}  # the tied head
        assert types["transformer.h.0.attn.c_attn.weight"] == {"Conv1D", "Module"}
