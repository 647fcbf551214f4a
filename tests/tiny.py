"""Small runs for tests: the real configuration, shrunk in one place."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from transformers import BertConfig, BertModel

from cl_runner.build import build_family, build_method
from cl_runner.compose import compose
from cl_runner.config import Config
from cl_runner.data.task import Task, build_tasks, label_union
from cl_runner.families.loading import words_tokenizer
from cl_runner.learn import Watch, learn_task
from cl_runner.learner import Learner
from cl_runner.methods.base import Chain
from cl_runner.train import Progress

Row = TypeVar("Row")
#: As .ci/run has it: all families that a method claims, every preset, every chain that dies; by default some.
EVERY_FAMILY = os.environ.get("CL_RUNNER_EVERY_FAMILY") == "1"
#: The whole pipeline in about two seconds: three tasks of generated reviews on a random two-layer BERT.
TINY = (
    "backbone=tiny_bert",
    "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}, {name: software}]",
    "task_order.base.train=48",
    "task_order.base.test=20",
    "task_order.incremental.train=24",
    "task_order.incremental.test=10",
    "training.base.epochs=2",
    "training.incremental.epochs=2",
    "training.base.batch_size=8",
    "training.incremental.batch_size=8",
    "hardware.threads=1",
    "wandb=disabled",
    "snapshots.save=all",
)


#: A test that takes ten seconds or more, and whose kind has others.
RARELY = pytest.mark.skipif(not EVERY_FAMILY, reason="takes long: CL_RUNNER_EVERY_FAMILY=1")


def some(rows: Sequence[Row], step: int) -> list[Row]:
    """Every `step`-th of a test's rows; all with CL_RUNNER_EVERY_FAMILY=1."""
    return list(rows) if EVERY_FAMILY else list(rows[::step])


class Death(BaseException):
    """Stands for kill -9: no handler of the program sees it."""


@contextmanager
def without_report() -> Iterator[None]:
    """Runs inside leave the report out: it takes most of a tiny run's time and is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cl_runner.report.page.write_run_report", lambda folder: folder / "report.html")
        yield


def seeded(number: int = 0) -> torch.Generator:
    """Random numbers on the CPU."""
    return torch.Generator().manual_seed(number)


def tiny_config(root: Path, *overrides: str) -> Config:
    """The real configuration at a tiny size."""
    return compose(tiny(root, *overrides)).config


def tiny(root: Path, *overrides: str) -> list[str]:
    """TINY with other choices and values; a group chosen again replaces TINY's choice."""
    return tiny_words(f"root={root}", *overrides)


def tiny_words(*overrides: str) -> list[str]:
    """What stands in TINY's place is left out of it, since nothing may be said twice; the last of two counts."""
    said = {override.partition("=")[0]: override for override in (*TINY, *overrides)}
    return list(said.values())


@functools.cache
def tiny_encoder() -> tuple[str, ...]:
    """Overrides for a random sentence encoder of one layer and 48 numbers, which takes milliseconds."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    folder = Path(tempfile.mkdtemp(prefix="encoder"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    tokenizer = words_tokenizer(64)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    reader = modules.Transformer(str(folder / "bert"), max_seq_length=64)
    pooling = modules.Pooling(48, pooling_mode="mean")
    SentenceTransformer(modules=[reader, pooling], device="cpu").save(str(folder / "whole"))
    place = f"method.slm.encoder.checkpoint={folder / 'whole'}"
    others = (f"method.slm.encoder.{key}=null" for key in ("revision", "package", "weights_sha256"))
    return (place, *others, "method.slm.key_steps=0")  # a thousand steps for each task are too many here


def tiny_learner(config: Config) -> tuple[Learner, Chain, list[Task]]:
    """A fresh learner with its methods and tasks."""
    torch.set_num_threads(1)
    tasks = build_tasks(config.task_order, config.task)
    family = build_family(config.backbone, label_union(tasks))
    model, _ = family.build(config.seed)
    method = build_method(config.method)
    return Learner(model, family, tasks, config.seed, torch.device("cpu"), method), method, tasks


class Losses(Watch):
    """The losses of a task's batches, and what else was said of them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.numbers: list[dict[str, float]] = []

    def on_step(self, task: Task, progress: Progress, numbers: dict[str, float]) -> None:
        self.losses.append(numbers["loss"])
        self.numbers.append(numbers)


def learn(learner: Learner, method: Chain, task: Task, config: Config, fresh: bool = True) -> list[float]:
    """One task as the run does it, without files; the losses of its batches.

    Args:
        fresh: False = the method's state holds already what it finds out before the task.
    """
    watch = Losses()
    learn_task(learner, method, task, config.training, watch, fresh=fresh)
    return watch.losses


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return learner.weights()


def run_command(arguments: Sequence[str]) -> int:
    """The command line inside this process."""
    from cl_runner.__main__ import main

    return main(list(arguments))
