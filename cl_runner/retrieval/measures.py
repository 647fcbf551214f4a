"""What SLM's tables say of retrieval: how often it is right (eq. 13), how long it takes (table 17), where keys lie."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from cl_runner.data.task import Task
from cl_runner.retrieval.encoder import Queries
from cl_runner.retrieval.keys import hits, similarities, unit_keys

if TYPE_CHECKING:
    from cl_runner.learner import Learner

#: Keys of all tasks learned, in the run's folder.
KEYS = "keys.safetensors"
#: Texts of a task that are answered one at a time to see how long that takes.
TIMED = 8


def accuracies(
    queries: Queries, keys: Tensor, tasks: Sequence[Task], top_k: int, slots: int, first: int
) -> dict[str, float]:
    """Percent of each task's test texts of which more than half of what they retrieve is their own task's (eq. 13).

    Args:
        keys: [g, N, c], of which task t has the slots from (t - first) * slots on.
    """
    found, units = {}, unit_keys(keys)
    for task in tasks:
        texts = [example.prompt for example in task.test or task.validation]
        start = (task.index - first) * slots
        right = 0
        for begin in range(0, len(texts), 1024):
            cosines = similarities(queries(texts[begin : begin + 1024]), units)
            right += int(hits(cosines, top_k, start, start + slots).sum())
        found[task.name] = 100 * right / len(texts)
    return found


def write_keys(folder: Path, keys: Mapping[str, Tensor]) -> None:
    """keys.safetensors: [g, n, c] by task, for the report's pictures."""
    path = folder / KEYS
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in keys.items()}, temporary)
    os.replace(temporary, path)


@torch.no_grad()
def measure_time(learner: Learner, queries: Queries, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """Median milliseconds of a text's retrieval and of its answer, one text at a time, and retrieval's share.

    Retrieval is the query's encoding, the search, and fetching the values. Answers are those of an evaluation.
    """
    learner.model.eval()
    found = {}
    for task in tasks:
        examples, how = (task.test or task.validation)[: TIMED + 1], learner.answering(task)
        spent: list[tuple[float, float]] = []
        for place, example in enumerate(examples):
            batch = learner.collate(examples, [place], answers=False)
            start = _now(learner)
            queries.encode_again(example.prompt)
            learner.method.before_forward(learner, batch)
            between = _now(learner)
            learner.answer(batch, how)
            end = _now(learner)
            again = _now(learner)
            learner.method.before_forward(learner, batch)
            search = _now(learner) - again  # which the answer did once more
            spent.append((between - start, max(0.0, end - between - search)))
        spent = spent[1:] or spent  # the first one warms up
        retrieval, answer = (1000 * median(times) for times in zip(*spent, strict=True))
        share = 100 * retrieval / (retrieval + answer)
        found[task.name] = {"retrieval_ms": retrieval, "answer_ms": answer, "retrieval_share_percent": share}
    return found


def _now(learner: Learner) -> float:
    if learner.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
