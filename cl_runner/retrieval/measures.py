"""What is said of retrieval: how often it is right, as served and by eq. 13; how long it takes (table 17); its keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean as mean
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from cl_runner.batch import Batch
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.digests import write
from cl_runner.matrix import OWN_WEIGHT, RETRIEVAL, SERVED
from cl_runner.retrieval.encoder import Queries
from cl_runner.retrieval.keys import hits, similarities

if TYPE_CHECKING:
    from cl_runner.families.base import Prediction
    from cl_runner.hooks import Predict
    from cl_runner.learner import Learner

#: Keys of all tasks learned, in the run's folder, and queries of some of their texts.
KEYS, QUERIES = "keys.safetensors", "queries.safetensors"
#: Texts of a task whose queries are kept.
SHOWN = 16
#: Texts of a task that are answered one at a time to see how long that takes.
TIMED = 8


def accuracies(
    queries: Callable[[Sequence[str]], Tensor],
    units: Tensor,
    texts: Mapping[str, Sequence[Example]],
    top_k: int,
    slots: int,
) -> dict[str, float]:
    """Percent of each task's texts of which more than half of what they retrieve is their own task's (eq. 13).

    Args:
        queries: of texts, [texts, g * c].
        units: unit keys [g, N, c], of which each task has `slots` in the order of `texts`.
        texts: of each task, those that it is scored on.
    """
    found = {}
    for number, (task, examples) in enumerate(texts.items()):
        asked = [example.prompt for example in examples]
        right = 0
        for begin in range(0, len(asked), 1024):
            cosines = similarities(queries(asked[begin : begin + 1024]), units)
            right += int(hits(cosines, top_k, number * slots, (number + 1) * slots).sum())
        found[task] = 100 * right / len(asked)
    return found


def retrieval_said(served: Mapping[str, Mapping[str, float]], accuracy: Mapping[str, float]) -> dict[str, Any]:
    """By task and as means what was served, and eq. 13's accuracy; the former comes first."""
    found: dict[str, Any] = {"served": dict(served), "retrieval_accuracy": dict(accuracy), "metrics": {}}
    if served:
        for key, name in (("served_percent", SERVED), ("own_weight_percent", OWN_WEIGHT)):
            found["metrics"][name] = mean(each[key] for each in served.values())
    if accuracy:
        found["metrics"][RETRIEVAL] = mean(accuracy.values())
    return found


def write_keys(folder: Path, keys: Mapping[str, Tensor]) -> None:
    """keys.safetensors: [g, n, c] by task, for the report's pictures."""
    write(folder / KEYS, save({task: key.detach().cpu().contiguous() for task, key in keys.items()}))


def write_queries(folder: Path, queries: Mapping[str, Tensor], groups: int) -> None:
    """queries.safetensors: [texts, g, c] by task, of queries [texts, g * c], as keys are compared with them."""
    write(
        folder / QUERIES, save({task: each.cpu().view(len(each), groups, -1).clone() for task, each in queries.items()})
    )


class Served:
    """What the texts of evaluations were given, as it was when they were answered: how much of it was their own task's.

    A text is served rightly if its own task's slots hold more than half of the weight.
    """

    def __init__(self) -> None:
        self._found: list[tuple[Tensor, Tensor]] = []

    def add(self, tasks: Tensor, weights: Tensor) -> None:
        """The true tasks [B] of some texts, and the weight [B] of their own task's slots."""
        self._found.append((tasks, weights))

    def forget(self) -> None:
        """What is added from now on is of another evaluation."""
        self._found = []

    def by_task(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Percent of the texts of each of the first tasks that were served rightly, and the mean weight in percent."""
        if not self._found:
            return {}
        tasks, weights = (torch.cat(parts).cpu() for parts in zip(*self._found, strict=True))
        found = {}
        for index, name in enumerate(names):
            own = weights[tasks == index].double()
            if own.numel():
                right = 100 * float((own > 0.5).double().mean())
                found[name] = {"served_percent": right, "own_weight_percent": 100 * float(own.mean())}
        return found


@torch.no_grad()
def measure_time(learner: Learner, queries: Queries, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """Median milliseconds of a text's retrieval and of its answer, one text at a time, and retrieval's share.

    Retrieval is the query's encoding, the search, and fetching the values. Answers are those of an evaluation, without
    the search that is a part of them.
    """
    learner.model.eval()
    method, found = learner.method, {}
    clocked = _Clocked(learner)
    for task in tasks:
        examples, how = learner.scored_on(task)[: TIMED + 1], learner.answering(task)
        spent: list[tuple[float, float, float]] = []
        for example in examples:
            batch = learner.collate([example], answers=False)
            start = _now(learner)
            queries.encode_again(example.prompt)
            encoded = _now(learner)
            learner.method, clocked.seconds = clocked, 0.0
            try:
                learner.answer(batch, how)
            finally:
                learner.method = method
            answered = _now(learner)
            spent.append((encoded - start, clocked.seconds, answered - encoded - clocked.seconds))
        spent = spent[1:] or spent  # the first one warms up
        encoding, search, answer = (1000 * median(times) for times in zip(*spent, strict=True))
        whole = encoding + search + answer
        found[task.name] = {
            "encoder_ms": encoding,
            "retrieval_ms": encoding + search,
            "answer_ms": answer,
            "encoder_share_percent": 100 * encoding / whole,
            "retrieval_share_percent": 100 * (encoding + search) / whole,
        }
    return found


class _Clocked:
    """The learner's method, whose search before a pass is timed."""

    def __init__(self, learner: Learner):
        self._learner, self._method = learner, learner.method
        self.seconds = 0.0

    @property
    def answering(self) -> Sequence[str]:
        return self._method.answering

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        return self._method.build(model, tasks, seed, restart)

    def grow(self, model: nn.Module, index: int, seed: int) -> None:
        self._method.grow(model, index, seed)

    def predict(self, learner: Learner, batch: Batch, inner: Predict) -> list[Prediction]:
        return self._method.predict(learner, batch, inner)

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        start = _now(self._learner)
        batch = self._method.before_forward(learner, batch)
        self.seconds += _now(self._learner) - start
        return batch


def _now(learner: Learner) -> float:
    if learner.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
