"""Tasks that are trained once for all runs that train them alike: `reuse=first_task` and `reuse=prefix`.

What training makes of a task follows from the state that it begins in, the examples, the options, the seed, the program
and the machine. A file is named by a hash of all these. The run that trains a task keeps what came of it there, as the
state behind its last step; a run that is about to train the same goes on from there, as it would after an interruption
behind that step, and ends with the bits that it would have ended with alone. Everything around training (importance,
what a method finds out before and after the task, evaluations, probes) each run does itself.

Before a method has old tasks to go by, many learn the first one as plain fine-tuning does (`Method.plain_at_first`):
of such a task the hash leaves methods out, so that runs of different methods share it. `reuse=prefix` shares the tasks
after it as well, and first tasks of other methods, by a hash that has the methods' options and state.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from cl_runner import distributed
from cl_runner.checkpoint import pack, unpack
from cl_runner.config import Config
from cl_runner.data.examples import content_hash
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Chain, Method
from cl_runner.sparse.bits import weights_hash
from cl_runner.sparse.importance_cache import evict
from cl_runner.tensor_files import read_cached, write_tensors
from cl_runner.tracking.environment import code_digest
from cl_runner.train import stage_of
from cl_runner.trained import Trained

#: Changes when a file holds something else.
FORMAT = 2
#: What names begin with where methods take no part.
PLAIN = "plain"


@dataclass(frozen=True)
class Kept:
    """What came of training a task.

    Attributes:
        training: the state behind the last step, as `Progress.state_dict`.
        method: the methods' state then; None where the task was learned plainly, which changes none.
        lines: numbers of every step, as metrics.jsonl has them.
        run: the folder of the run that trained it.
        began: the hash of all that the training follows from.
        weights: the hash of all weights behind the last step.
        by: what was typed for it.
    """

    training: dict[str, Any]
    method: dict[str, Any] | None
    lines: Sequence[dict[str, Any]]
    run: str
    began: str
    weights: str
    by: str

    def told(self) -> dict[str, Any]:
        """What a task's entry in summary.json says of it."""
        return {"trained_by": self.run, "trained_from": self.began, "trained_weights": self.weights}

    def check(self, learner: Learner) -> None:
        """The weights are those of the run that trained them.

        Raises:
            RuntimeError: they are not.
        """
        found = weights_hash(learner.parameters())
        if found != self.weights:
            raise RuntimeError(
                f"the weights taken from {self.run} are {found[:12]} and should be {self.weights[:12]}: a method keeps "
                "something of training outside of its state. Type: reuse=none"
            )


@dataclass(frozen=True)
class Beginnings:
    """A folder of what came of tasks.

    Attributes:
        run: the folder of this run.
        flops_per_token: of the task under way, where `training.budget` counts them.
    """

    folder: Path
    run: str
    config: Config
    flops_per_token: float | None = None

    def named(self, learner: Learner, method: Method, task: Task) -> str:
        """The name of what comes of a task that is about to train, by everything that this follows from.

        Returns:
            Empty where this run does not share the task.
        """
        assert isinstance(method, Chain), "a run's method is a chain"
        methods = list(method.methods.values())
        # What is not of this package may change, and the program's digest would stay.
        if not all(type(part).__module__.startswith("cl_runner.") for part in (*methods, learner.family)):
            return ""
        plain = not task.index and learner.what == Trained() and all(each.plain_at_first() for each in methods)
        if not plain and self.config.reuse != "prefix":
            return ""
        content = self._of_training(learner, task) | ({} if plain else self._of_methods(learner, method, task))
        found = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{PLAIN if plain else 'state'}-{found}"

    def _of_training(self, learner: Learner, task: Task) -> dict[str, Any]:
        """What plain fine-tuning follows from: weights, data, options, program, machine."""
        training, evaluation = self.config.training, self.config.evaluation
        best = training.select == "best_validation"
        return {
            "format": FORMAT,
            "torch": torch.__version__,
            "code": code_digest(),
            "weights": weights_hash(learner.parameters()),
            "trained": sorted(learner.params()),
            "examples": content_hash(task.train),
            "family": learner.family.identity(),
            "stage": stage_of(training, task).model_dump(mode="json"),
            "training": training.model_dump(mode="json", exclude={"base", "incremental"}),
            "flops": self.flops_per_token,
            "seed": learner.seed,
            "precision": learner.precision,
            "machine": _machine(learner.device),
            "validation": [_told(task), evaluation.model_dump(mode="json")] if best else None,
        }

    def _of_methods(self, learner: Learner, method: Chain, task: Task) -> dict[str, Any]:
        """What methods make of it beside: their options, what they know, the tasks that they may go back to."""
        order, what = self.config.task_order, learner.what
        builds = any(type(each).build is not Method.build for each in method.methods.values())
        trains = {
            "names": None if what.names is None else sorted(what.names),
            "selected": dict(what.selected),
            "merged": sorted(what.merged),
            "rates": [what.learning_rate, list(what.rates.items()), what.optimizer],
        }
        return {
            "methods": self.config.method,
            "state": _digest([method.state_dict(), trains]),
            "importance": self.config.importance.model_dump(mode="json", exclude={"cache_gb"}),
            "order": [task.index, order.restart, order.joint, order.answers_until],
            "answers": self.config.evaluation.model_dump(mode="json", exclude={"batch_size", "split", "tasks"}),
            "tasks": [_told(one) for one in learner.tasks[: task.index + 1]],
            "built for": [[one.name, one.labels] for one in learner.tasks] if builds else [],
        }

    def taken(self, learner: Learner, name: str) -> Kept | None:
        """What another run made of this task, which is about to train; None if none did.

        Args:
            name: of `named`.
        """
        found = read_cached(self._path(name), learner.warn)
        if distributed.any_of(found is None) or found is None:
            return None
        tensors, said = found
        state = tree_of(tensors, said, learner.device)
        with suppress(OSError):  # a folder that can only be read
            os.utime(self._path(name))  # used now: the last to be evicted
        lines = json.loads(said["lines"])
        return Kept(
            state["training"], state["method"], lines, said["run"], name, said["weights"], f"reuse={self.config.reuse}"
        )

    def keep(
        self,
        learner: Learner,
        name: str,
        training: dict[str, Any],
        method: Method,
        lines: Callable[[], Sequence[dict[str, Any]]],
    ) -> None:
        """What came of the task, for other runs.

        Args:
            name: of `named`, before it trained.
            training: the state behind its last step.
            lines: gives the numbers of every step.
        """
        if not distributed.first():
            return
        path, limit = self._path(name), int(self.config.importance.cache_gb * 1e9)
        known = None if name.startswith(PLAIN) else method.state_dict()
        said = {"lines": json.dumps(lines()), "run": self.run, "weights": weights_hash(learner.parameters())}
        try:
            write_tree(path, {"training": training, "method": known}, said)
            evict(self.folder, limit, path)
        except (OSError, SafetensorError) as error:
            learner.warn(f"what came of the task is not kept, the next run trains it again: {self.folder}: {error}")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def write_tree(path: Path, tree: Any, said: Mapping[str, str]) -> None:
    """A file of a tree of state, as `tree_of` gives it back, and of what else is said."""
    tensors: dict[str, Tensor] = {}
    packed = json.dumps(pack(tree, tensors))
    # safetensors writes no two tensors that share memory.
    write_tensors(path, {key: tensor.clone() for key, tensor in tensors.items()}, {"tree": packed, **said})


def tree_of(tensors: Mapping[str, Tensor], said: Mapping[str, str], device: torch.device) -> Any:
    """The tree in a file of `write_tree`, on a device; each tensor in memory of its own, as of `checkpoint.load`."""
    return unpack(json.loads(said["tree"]), {key: tensor.to(device, copy=True) for key, tensor in tensors.items()})


def _told(task: Task) -> list[Any]:
    """What of a task training may read, its own and later ones."""
    return [
        *(task.name, task.labels, task.metrics, task.max_new_tokens),
        *(content_hash(task.train), content_hash(task.validation)),
    ]


def _digest(tree: Any) -> str:
    """SHA-256 of a tree of tensors and numbers."""
    tensors: dict[str, Tensor] = {}
    packed = json.dumps(pack(tree, tensors))
    return hashlib.sha256(f"{packed}\0{weights_hash(tensors)}".encode()).hexdigest()


def _machine(device: torch.device) -> list[Any]:
    """What of the machine the last bits depend on."""
    cuda = device.type == "cuda"
    kind = torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability()
    return [kind, torch.get_num_threads(), distributed.size(), torch.are_deterministic_algorithms_enabled()]
