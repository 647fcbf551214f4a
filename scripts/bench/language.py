"""What the benchmarks of language models share: a LLaMA, random, of a folder or of conf/backbone; prompts and answers.

The random one has a vocabulary as large as LLaMA-2's, so that logits weigh as much beside everything else as there. It
reads and writes bytes: those of its outputs that stand for no printable character never win.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from typing import Any

import torch

from cl_runner.build import build_family, build_method
from cl_runner.compose import compose
from cl_runner.config import Config
from cl_runner.data.example import Example
from cl_runner.data.reviews import DOMAINS, generate
from cl_runner.data.task import Task
from cl_runner.families.base import Family
from cl_runner.learner import Learner
from cl_runner.methods.base import Chain
from cl_runner.sparse.measured import Measured

#: Options of every script that uses this file.
OPTIONS: dict[str, Any] = {
    "backbone": "",  # of conf/backbone, such as smollm2_135m
    "checkpoint": "",
    "device": "cpu",
    "vocabulary": 32000,
    "width": 256,
    "layers": 4,
    "shortest_prompt": 50,
    "longest_prompt": 400,
    "shortest_answer": 2,
    "longest_answer": 60,
    "memory": True,
    "variant": "",
}


@dataclass
class Setting:
    """The configuration and the family of models that it names."""

    config: Config
    family: Family
    device: torch.device
    drawn: bool  # its weights are random

    def learner(self, task: Task) -> tuple[Learner, Chain]:
        """A model of its own, with the configuration's method."""
        model, tokenizer = self.family.build(self.config.seed)
        if self.drawn:
            printable = tokenizer([chr(code) for code in range(33, 127)], add_special_tokens=False)["input_ids"]
            kept = torch.tensor([*(i for ids in printable for i in ids), tokenizer.eos_token_id])
            head = model.get_output_embeddings().weight.data
            others = torch.ones(len(head), dtype=torch.bool)
            others[kept] = False
            head[others] = 0
        method, measured = build_method(self.config.method), Measured(self.config.importance)
        return Learner(model, self.family, [task], self.config.seed, self.device, method, measured=measured), method


def setting(given: Any, *overrides: str) -> Setting:
    """The real configuration with the model that the options ask for."""
    drawn = not given.backbone and not given.checkpoint
    backbone = f"backbone={given.backbone or ('tiny_llama' if drawn else 'causal_folder')}"
    with tempfile.TemporaryDirectory() as folder:
        config = compose([backbone, f"root={folder}", "wandb=disabled", "importance.cache_gb=0", *overrides]).config
    changes: dict[str, Any] = {
        "max_length": given.longest_prompt,
        "truncation": "keep_start",  # as tokenizers do
        "max_answer_length": given.longest_answer,
        "chat_template": False,
    }
    if given.checkpoint:
        changes["checkpoint"] = given.checkpoint
    if drawn:
        heads = max(1, given.width // 64)
        changes["architecture"] = {
            "model_type": "llama",
            "vocab_size": given.vocabulary,
            "hidden_size": given.width,
            "intermediate_size": 11 * given.width // 4,
            "num_hidden_layers": given.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": given.longest_prompt + given.longest_answer,
            "tie_word_embeddings": False,
        }
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update=changes)})
    return Setting(config, build_family(config.backbone, ()), torch.device(given.device), drawn)


def examples(given: Any, family: Family, count: int) -> tuple[Example, ...]:
    """Reviews joined and cut, so that prompts and answers have lengths spread evenly between the options' ends."""
    draw = random.Random(0)
    reviews = generate(DOMAINS[0], "train", 20 * count, True, 0.0, 0)
    text = " ".join(review.prompt for review in reviews)
    probe = text[:10000]
    characters = len(probe) / len(family.tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"])
    found = []
    for number in range(count):
        start = number * len(text) // count
        tokens = draw.randint(given.shortest_prompt, given.longest_prompt)
        end = start + round(characters * tokens)
        answer = round(characters * draw.randint(given.shortest_answer, given.longest_answer - 1))
        found.append(Example(text[start:end].strip(), text[end : end + answer].strip() or "no"))
    return tuple(found)


def task_of(
    train: tuple[Example, ...], test: tuple[Example, ...], max_new_tokens: int, labels: tuple[str, ...] = ()
) -> Task:
    """One task made of these examples."""
    metrics = {"standard": ("exact_match",)}
    return Task(0, "bench", train, (), test, labels, metrics, max_new_tokens)
