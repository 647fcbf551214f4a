"""The work that a run announces, so that its time left can be told."""

from __future__ import annotations

from cl_runner.config import Config
from cl_runner.evaluate import evaluation_examples
from cl_runner.prepared import Prepared
from cl_runner.train import number_of_steps, stage_of


def units(config: Config, parts: Prepared) -> dict[str, float]:
    """`<task>/<phase>` -> expected cost, in training examples."""
    union = sum(len(evaluation_examples(task, config.evaluation.split)) for task in parts.tasks)
    found: dict[str, float] = {"evaluate": union / 3}  # a forward pass costs a third of a training step's
    for task in parts.tasks:
        stage = stage_of(config.training, task)
        steps = number_of_steps([len(task.train)] * stage.epochs, stage, config.training.max_steps)
        found[f"{task.name}/train"] = steps * min(stage.batch_size, len(task.train))
        found[f"{task.name}/evaluate"] = union / 3
    return found
