"""Runs as far as an export reads them: what a method learned on a tiny backbone, and what it answered."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from conformance import Row, configured
from omegaconf import OmegaConf
from tiny import Losses

from cl_runner.build import build_family, build_method
from cl_runner.change import Changes
from cl_runner.config import Config
from cl_runner.data.task import Task, build_tasks, fingerprint, label_union
from cl_runner.evaluate import evaluate, scores
from cl_runner.learn import learn_task
from cl_runner.learner import Learner
from cl_runner.matrix import START, MatrixTexts
from cl_runner.parent import keep_state
from cl_runner.record import write_matrices, write_predictions
from cl_runner.train import Best


class Kept(Losses):
    """Writes the snapshot of a task."""

    def __init__(self, changes: Changes):
        super().__init__()
        self._changes = changes

    def on_begin(self, task: Task) -> None:
        self._changes.begins()

    def on_trained(self, task: Task, entries: int, best: Best | None) -> None:
        self._changes.keep(task, entries)


def small_run(row: Row, family: str, root: Path) -> tuple[Path, Learner]:
    """The folder of a run of a method that learned two small tasks, and the model in the end."""
    config = configured(row, family, root)
    evaluation = config.evaluation.model_copy(update={"batch_size": 4})
    return run_of(config.model_copy(update={"evaluation": evaluation}), root / f"{row.choice}-{family}")


def run_of(config: Config, folder: Path) -> tuple[Path, Learner]:
    """A run's folder without its report, plan and steps; the model in the end."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    tasks = build_tasks(config.task_order, config.task)
    family = build_family(config.backbone, label_union(tasks))
    method = build_method(config.method)
    learner = Learner(
        family.build(config.seed)[0],
        family,
        tasks,
        config.seed,
        torch.device("cpu"),
        method,
        precision=config.hardware.precision,
        order=config.task_order,
        evaluation=config.evaluation,
    )
    whole = config.model_dump(mode="json")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(whole)))
    known = {"labels": list(label_union(tasks)), "fingerprints": {task.name: fingerprint(task) for task in tasks}}
    known["tasks"] = {task.name: task.account.content() for task in tasks if task.account is not None}
    (folder / "data.json").write_text(json.dumps(known))
    changes, rows = Changes(learner, folder, "all", config.method), []
    tests = {task.name: task.test for task in tasks}
    for number, after in enumerate([START, *(task.name for task in tasks)]):
        if number:
            task = tasks[number - 1]
            learn_task(learner, method, task, config.training, Kept(changes))
            keep_state(folder, task, method)
        found = evaluate(learner, method, tasks, config.evaluation, after)
        scored = {n: next(iter(each.values())) for n, each in scores(tasks, found, config.evaluation).items()}
        write_predictions(folder, number, after, tests, found, scored)
        rows.append([sum(scored[name]) / len(scored[name]) for name in tests])
    write_matrices(folder, MatrixTexts(list(tests)), rows)
    return folder, learner
