"""Small models and runs in numbers, for tests of plans."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tiny import tiny_words
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, PreTrainedModel

from cl_runner.compose import compose
from cl_runner.needs import Needs
from cl_runner.planning.numbers import counts_of, setting_of, skeleton
from cl_runner.planning.optimizers import OptimizerNumbers
from cl_runner.planning.setting import Setting, TaskNumbers

CONFIGURATIONS = {
    "bert": BertConfig(
        num_labels=3,
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
    ),
    "llama": LlamaConfig(
        num_labels=3,
        pad_token_id=0,
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
    ),
}


def model_of(kind: str) -> PreTrainedModel:
    """A small model with random weights."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(CONFIGURATIONS[kind])
    return model


def meta(kind: str) -> PreTrainedModel:
    """The same without weights."""
    with torch.device("meta"):
        return model_of(kind)


TASKS = (
    TaskNumbers("a", "base", 8, examples=64, passed=128, steps=16, trains="all"),
    TaskNumbers("b", "incremental", 8, examples=32, passed=64, steps=8, trains="selected", measured=64, later=True),
)


def setting(**changes: Any) -> Setting:
    """Two tasks on a CPU: the first trains all weights, the second selected ones."""
    plain = Setting(
        device="cpu",
        precision="fp32",
        dtype=torch.float32,
        gradient_checkpointing=False,
        max_length=32,
        mean_length=32,
        micro_batch={"base": 8, "incremental": 8},
        importance_batch=4,
        importance_micro_batch=1,
        accumulate="device",
        passes=1,
        evaluation_batch=8,
        evaluated=300,
        tasks=TASKS,
        needs=Needs("all", "selected", fraction=0.01, candidates={"classifier.weight": 1000}),
        optimizer=OptimizerNumbers(),
        selects_epoch=False,
        restart=False,
        snapshots="all",
        cache_bytes=0,
    )
    return dataclasses.replace(plain, **changes)


def numbers_of(*overrides: str) -> Setting:
    """The numbers of a tiny run."""
    config = compose(tiny_words(*overrides)).config
    return setting_of(config, counts_of(config, None), skeleton(config.backbone, 3), "cpu", None)
