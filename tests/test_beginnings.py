"""Tasks that runs train alike are trained once, and each run ends with the bits that it would have alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import EVERY_FAMILY, Death, Losses, run_command, tiny, tiny_config, tiny_encoder, tiny_learner, without_report

from cl_runner import learn
from cl_runner.beginnings import Beginnings, Kept, _digest
from cl_runner.compose import compose
from cl_runner.config import Config
from cl_runner.data.task import Task
from cl_runner.groups import options
from cl_runner.journal import Journal
from cl_runner.learn import learn_task
from cl_runner.sparse.bits import weights_hash
from cl_runner.train import Progress

ONE = "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}, {name: software}]"
OTHER = "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}, {name: headphones}]"
SMALL = ("backbone.max_length=32", "task_order.base.train=16", "task_order.incremental.train=16", "training.base.epochs=1")
FEW = ("pe", "seq_ft", "replay", "replay_online", "ewc_online", "si", "piece_s", "mbpa")


class Watch(Losses):
    """What a run would write of its steps, and which tasks were taken."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []

    def on_reused(self, task: Task, kept: Kept) -> None:
        self.taken.append(task.name)
        self.numbers += kept.lines

    def steps_of(self, task: Task) -> list[dict[str, Any]]:
        return self.numbers


def end(config: Config, folder: Path | None) -> tuple[str, str, list[list[float]], list[str]]:
    """Hashes of the weights and of what the method knows, all losses, and the tasks that were taken."""
    learner, method, tasks = tiny_learner(config)
    losses, taken = [], []
    for task in tasks:
        watch = Watch()
        shared = None if folder is None else Beginnings(folder, "RUN", config)
        learn_task(learner, method, task, config.training, watch, shared=shared)
        losses.append([one["loss"] for one in watch.numbers])
        taken += watch.taken
    return weights_hash(learner.parameters()), _digest(method.state_dict()), losses, taken


def choices() -> list[tuple[str, str]]:
    if not EVERY_FAMILY:
        return [("tiny_bert", choice) for choice in FEW]
    known = [name for name in options("method") if not name.startswith("slm")]
    return [(backbone, name) for backbone in ("tiny_bert", "tiny_t5", "tiny_llama") for name in known]


@pytest.mark.parametrize(("backbone", "choice"), choices())
def test_two_orders_share_the_tasks_that_they_begin_with(backbone: str, choice: str, tmp_path: Path) -> None:
    given = (f"backbone={backbone}", f"method={choice}", "reuse=prefix", *SMALL)
    try:
        one, other = (tiny_config(tmp_path, *given, order) for order in (ONE, OTHER))
    except ValueError as error:
        pytest.skip(str(error))
    alone = end(other, None)
    assert not end(one, tmp_path)[3], "it is the first one"
    *sharing, taken = end(other, tmp_path)
    assert tuple(sharing) == alone[:3]
    if choice in FEW:
        assert taken == ["base", "kettles"]
