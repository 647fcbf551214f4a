"""Learners with one probe, or with retrieved values, for tests of probes."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from tiny import learn, tiny_config, tiny_encoder, tiny_learner

from cl_runner.batch import Batch
from cl_runner.build import build_family, build_probes
from cl_runner.data.example import Example
from cl_runner.learner import Learner
from cl_runner.methods.base import Method

PROBLEMS = [
    {
        "task_id": "ours/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
        "entry_point": "double",
    },
    {
        "task_id": "ours/1",
        "prompt": 'from typing import List\n\ndef longest(words: List[str]) -> int:\n    """The longest length."""\n',
        "test": "def check(candidate):\n    assert candidate(['a', 'bcd']) == 3\n",
        "entry_point": "longest",
    },
]


def write_problems(tmp_path: Path) -> Path:
    path = tmp_path / "HumanEval.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({**problem, "canonical_solution": ""}) + "\n" for problem in PROBLEMS)
    return path


def probed(tmp_path: Path, *overrides: str) -> tuple[Learner, Any, Path]:
    """A learner on a tiny language model, the only probe, and its folder."""
    backbone = [] if any(o.startswith("backbone=") for o in overrides) else ["backbone=tiny_llama"]
    config = tiny_config(tmp_path, "method=seq_ft", *backbone, *overrides)
    family = build_family(config.backbone, [])
    learner = Learner(family.build(config.seed)[0], family, [], config.seed, torch.device("cpu"), Method())
    (probe,) = build_probes(config.probe).values()
    folder = tmp_path / "probe"
    folder.mkdir(exist_ok=True)
    return learner, probe, folder


def state(learner: Learner) -> list[Any]:
    """Everything of a model that a measurement must leave alone."""
    model = learner.model
    return [
        {
            name: (id(p), p.requires_grad, p.grad, p.detach().clone().numpy().tobytes())
            for name, p in model.named_parameters()
        },
        [module.training for module in model.modules()],
        model.generation_config.to_dict(),
        model.config.to_dict(),
        learner.family.tokenizer.padding_side,
        torch.is_grad_enabled(),
    ]


@torch.no_grad()
def likelihood(learner: Learner, context: str, continuation: str, about: str | None = None) -> float:
    """log p(continuation | context), without an end token; the method is told that the text is `about`."""
    tokenizer = learner.family.tokenizer
    target = torch.tensor([tokenizer(continuation, add_special_tokens=False)["input_ids"]])
    given = tokenizer(context, return_tensors="pt")["input_ids"]
    tensors = {"input_ids": given, "attention_mask": torch.ones_like(given)}
    batch = Batch(tensors, [Example(context if about is None else about, "")])
    given = learner.method.before_forward(learner, batch)["input_ids"]
    if learner.family.backbone.family == "seq2seq":
        logits = learner.model(input_ids=given, labels=target).logits[0].log_softmax(-1)
        return float(logits.gather(1, target[0][:, None]).sum())
    logits = learner.model(torch.cat([given, target], 1)).logits[0, given.shape[1] - 1 : -1].log_softmax(-1)
    return float(logits.gather(1, target[0][:, None]).sum())


def retrieving(tmp_path: Path, *overrides: str) -> Learner:
    """A learner after two tasks of slm; what a text retrieves is drawn by its content, and large enough to be seen."""
    config = tiny_config(tmp_path, "method=slm", "training.max_steps=1", *tiny_encoder(), *overrides)
    learner, method, tasks = tiny_learner(config)
    for task in tasks[:2]:
        learn(learner, method, task, config)
    for name, parameter in learner.parameters().items():
        if name.startswith("slm."):
            parameter.data.copy_(drawn(name, *parameter.shape))
    method.methods["slm"].units = None  # of the keys before  # type: ignore[attr-defined]
    method.methods["slm"].queries = lambda texts: torch.stack([drawn(text, 48) for text in texts])  # type: ignore[attr-defined]
    return learner


def drawn(name: str, *shape: int) -> torch.Tensor:
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
