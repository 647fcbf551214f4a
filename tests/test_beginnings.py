"""Tasks that runs train alike are trained once, and each run ends with the bits that it would have alone."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import EVERY_FAMILY, Death, Losses, run_command, tiny, tiny_config, tiny_learner, without_report

from cl_runner.beginnings import Beginnings, Kept, _digest
from cl_runner.compose import compose
from cl_runner.config import Config
from cl_runner.data.task import Task
from cl_runner.groups import options
from cl_runner.journal import Journal
from cl_runner.learn import learn_task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.sparse.bits import weights_hash
from cl_runner.train import Progress

ONE = "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}, {name: software}]"
OTHER = "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}, {name: headphones}]"
SMALL = (
    "backbone.max_length=32",
    "task_order.base.train=16",
    "task_order.incremental.train=16",
    "training.base.epochs=1",
)
FEW = ("pe", "ewc_online", "si", "replay_online")


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
    # Prompts of prog_prompt_trace are longer than a tiny BERT reads, which a run is refused for.
    known = [name for name in options("method") if not name.startswith("slm") and name != "prog_prompt_trace"]
    few = [(backbone, name) for backbone in ("tiny_t5", "tiny_llama") for name in FEW]
    return [*(("tiny_bert", name) for name in known), *few]


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


class Names(Beginnings):
    """Keeps nothing, and notes under which names it would."""

    def named(self, learner: Learner, method: Method, task: Task) -> str:
        found.append(super().named(learner, method, task))
        return ""


found: list[str] = []


def names(root: Path, *overrides: str) -> list[str]:
    """Of all tasks of an order, each trained by one step."""
    config = tiny_config(root, "reuse=prefix", "training.max_steps=1", *SMALL, *overrides)
    learner, method, tasks = tiny_learner(config)
    found.clear()
    for task in tasks:
        learn_task(learner, method, task, config.training, Watch(), shared=Names(root, "RUN", config))
    return list(found)


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        (("method=pe", "evaluation.tasks=seen"), 3),
        (("method=pe", OTHER), 2),
        (("method=pe", "method.pe.learning_rate=1e-3"), 1),
        (("method=seq_ft",), 1),
        (("method=pe", "seed=1"), 0),
        (("method=pe", "training.warmup=0"), 0),
    ],
)
def test_the_name_of_a_task_has_all_that_reaches_it(other: tuple[str, ...], alike: int, tmp_path: Path) -> None:
    one = named_by_pe(tmp_path.parent)
    equal = [mine == others for mine, others in zip(one, names(tmp_path, *other), strict=True)]
    assert equal == [place < alike for place in range(3)]


@functools.cache
def named_by_pe(root: Path) -> list[str]:
    return names(root, "method=pe")


# Whole runs -------------------------------------------------------------------------------------------------


def finished(root: Path, *overrides: str) -> Path:
    line = tiny(root, *overrides, *SMALL)
    with without_report():
        assert run_command(line) == 0
    return compose(line).folder


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line | {"tokens_per_second": 0} for line in lines]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run that died in its second task, and went on, has trained an order."""
    root = tmp_path_factory.mktemp("shared")
    line = tiny(root, "method=pe", "reuse=prefix", "checkpoint.every_seconds=0", ONE, *SMALL)
    log = Journal.on_step

    def die(journal: Journal, task: Task, progress: Progress, numbers: dict[str, float]) -> None:
        log(journal, task, progress, numbers)
        if task.index == 1 and progress.step == 2:
            raise Death

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Journal, "on_step", die)
        with pytest.raises(Death):
            run_command(line)
    finished(root, "method=pe", "reuse=prefix", "checkpoint.every_seconds=0", ONE)
    return root


def test_a_run_that_takes_tasks_is_the_run_that_trains_them(root: Path, tmp_path: Path) -> None:
    alone, sharing = finished(tmp_path, "method=pe", OTHER), finished(root, "method=pe", "reuse=prefix", OTHER)
    assert sharing.name == alone.name, "who trained its tasks is no part of a run"
    own, other = summary(alone), summary(sharing)
    assert own["weights_sha256"] == other["weights_sha256"] and own["metrics"] == other["metrics"]
    assert steps(alone) == steps(sharing)
    for mine, taken in zip(own["tasks_detail"][:2], other["tasks_detail"][:2], strict=True):
        assert "/pe/" in taken["trained_by"]
        assert all(taken[name] == mine[name] for name in ("steps", "changed", "trainable", "loss_last", "answers"))
    assert "trained_by" not in other["tasks_detail"][2]
    first, second = sorted((sharing / "snapshots").iterdir())[:2]
    assert first.read_bytes() == (alone / "snapshots" / first.name).read_bytes()
    assert second.read_bytes() == (alone / "snapshots" / second.name).read_bytes()


def test_nothing_is_shared_where_nothing_is_kept(tmp_path: Path) -> None:
    for options_, said in (
        (["importance.cache_gb=0"], "importance.cache_gb=10"),
        (["training.budget.seconds=5"], "depends on the machine's load"),
    ):
        with pytest.raises(ValueError, match=said):
            compose(tiny(tmp_path, "reuse=prefix", *options_))
