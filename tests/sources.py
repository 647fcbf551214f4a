"""Definitions and task orders for tests of data, and the tasks that they make."""

from __future__ import annotations

from typing import Any

from cl_runner.compose import Request, compose
from cl_runner.config import TaskDefinition, TaskOrder
from cl_runner.data.task import Task, build_tasks


def definition(**changes: Any) -> TaskDefinition:
    values: dict[str, Any] = {
        "source": "files",
        "labels": {"0": "bad", "1": "good"},
        "balance": False,
        "path": None,
        "dataset": None,
        "configuration": None,
        "revision": None,
        "splits": {"train": "train", "validation": "train", "test": "test"},
        "text": ["text"],
        "label": "label",
        "max_rows": None,
        "label_noise": 0.0,
        "template": None,
        "metrics": ["accuracy"],
        "released_metrics": {},
        "max_new_tokens": 16,
        "convert": None,
        "download": None,
        "picture": None,
        "delimiter": None,
        "quoting": None,
        "header": True,
        "encoding": None,
        "missing_fields": "refuse",
    }
    return TaskDefinition.model_validate(values | changes)


def counts(train: int | None = None, validation: int | None = 0, test: int | None = None) -> dict[str, Any]:
    return {"train": train, "validation": validation, "test": test}


def order(tasks: list[dict[str, Any]], base: dict[str, Any], **changes: Any) -> TaskOrder:
    values: dict[str, Any] = {
        "task": "own",
        "tasks": tasks,
        "base": base,
        "incremental": base,
        "joint": False,
        "restart": False,
        "data_seed": 0,
        "variant": None,
        "answers_until": "end",
        "balanced": None,
        "fixed": 0,
    }
    return TaskOrder.model_validate(values | changes)


def tasks_of(request: Request) -> list[Task]:
    return build_tasks(request.config.task_order, request.config.task)


def tasks_by_name(*overrides: str) -> dict[str, Task]:
    return {task.name: task for task in tasks_of(compose(list(overrides)))}
