"""The first task, trained once for all runs that train it alike: `reuse=first_task`.

Before a method has old tasks to go by, many learn the first one as plain fine-tuning does (`Method.plain_at_first`).
Runs below one root that begin such a task with the same weights, examples, options, seed, program and machine end it
with the same bits: the first of them keeps what came of it, and the others take it. Everything else, evaluations and
what a method finds out about the task, each of them does itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from cl_runner import distributed
from cl_runner.config import Stage, Training
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.sparse.bits import weights_hash
from cl_runner.sparse.importance_cache import evict
from cl_runner.tensor_files import read_cached, write_tensors
from cl_runner.tracking.environment import code_digest

#: Changes when a file holds something else.
FORMAT = 1


@dataclass(frozen=True)
class Kept:
    """What came of a first task.

    Attributes:
        values: of all that trained, by name.
        lines: numbers of every step, as metrics.jsonl has them.
        run: the folder of the run that trained it.
    """

    values: Mapping[str, Tensor]
    lines: Sequence[dict[str, Any]]
    run: str


@dataclass(frozen=True)
class FirstTasks:
    """A folder of them.

    Attributes:
        limit_bytes: of all files; the least recently used ones go.
        run: the folder of this run.
    """

    folder: Path
    limit_bytes: int
    run: str
    stage: Stage
    training: Training

    def taken(self, learner: Learner, name: str) -> Kept | None:
        """What another run made of this task, which is about to train; None if none did.

        Args:
            name: of `named`.
        """
        kept = read_cached(self.folder / name, learner.warn)
        if distributed.any_of(kept is None) or kept is None:
            return None
        values, said = kept
        names = set(learner.params())
        assert values.keys() == names, f"the same run trains {sorted(values.keys() ^ names)} as well, or not"
        return Kept(values, json.loads(said["lines"]), said["run"])

    @torch.no_grad()
    def put(self, learner: Learner, kept: Kept) -> int:
        """The model as it is after the task; the number of entries that trained."""
        for name, parameter in learner.params().items():
            parameter.copy_(kept.values[name])
        return sum(parameter.numel() for parameter in learner.params().values())

    def keep(self, learner: Learner, name: str, lines: Sequence[dict[str, Any]]) -> None:
        """What came of the task, for other runs.

        Args:
            name: of `named`, before it trained.
        """
        if not distributed.first():
            return
        path = self.folder / name
        try:
            values = {name: parameter.detach() for name, parameter in learner.params().items()}
            write_tensors(path, values, {"lines": json.dumps(list(lines)), "run": self.run})
            evict(self.folder, self.limit_bytes, path)
        except (OSError, SafetensorError) as error:
            learner.warn(f"the first task is not kept, the next run trains it again: {self.folder}: {error}")

    def named(self, learner: Learner, task: Task) -> str:
        """The name of a file by everything that the task's end depends on: weights, data, options, program, machine."""
        options = self.training.model_dump(mode="json", exclude={"base", "incremental"})
        kind = torch.cuda.get_device_name() if learner.device.type == "cuda" else "cpu"
        content = {
            "format": FORMAT,
            "torch": torch.__version__,
            "code": code_digest(),
            "weights": weights_hash(learner.parameters()),
            "trained": sorted(learner.params()),
            "examples": hashlib.sha256(json.dumps([e.content() for e in task.train]).encode()).hexdigest(),
            "family": learner.family.identity(),
            "stage": self.stage.model_dump(mode="json"),
            "training": options,
            "seed": learner.seed,
            "precision": learner.precision,
            "machine": [kind, torch.get_num_threads(), distributed.size()],
        }
        text = json.dumps(content, sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
