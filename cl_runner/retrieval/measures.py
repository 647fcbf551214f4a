"""What SLM's tables say of retrieval: how often it is right (eq. 13), how long it takes (table 17), where keys lie."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.digests import write
from cl_runner.retrieval.encoder import Queries
from cl_runner.retrieval.keys import hits, similarities

if TYPE_CHECKING:
    from cl_runner.learner import Learner

#: Keys of all tasks learned, in the run's folder.
KEYS = "keys.safetensors"
#: Texts of a task that are answered one at a time to see how long that takes.
TIMED = 8


def accuracies(
    queries: Queries, units: Tensor, texts: Mapping[str, Sequence[Example]], top_k: int, slots: int
) -> dict[str, float]:
    """Percent of each task's texts of which more than half of what they retrieve is their own task's (eq. 13).

    Args:
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


def write_keys(folder: Path, keys: Mapping[str, Tensor]) -> None:
    """keys.safetensors: [g, n, c] by task, for the report's pictures."""
    write(folder / KEYS, save({task: key.detach().cpu().contiguous() for task, key in keys.items()}))


@torch.no_grad()
def measure_time(learner: Learner, queries: Queries, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """Median milliseconds of a text's retrieval and of its answer, one text at a time, and retrieval's share.

    Retrieval is the query's encoding, the search, and fetching the values. Answers are those of an evaluation.
    """
    learner.model.eval()
    found = {}
    for task in tasks:
        examples, how = learner.scored_on(task)[: TIMED + 1], learner.answering(task)
        spent: list[tuple[float, float]] = []
        for example in examples:
            batch = learner.collate([example], answers=False)
            start = _now(learner)
            queries.encode_again(example.prompt)
            encoded = _now(learner)
            learner.method.before_forward(learner, batch)
            retrieved = _now(learner)
            learner.answer(batch, how)  # which searches once more
            answered = _now(learner)
            spent.append((retrieved - start, max(0.0, answered - retrieved - (retrieved - encoded))))
        spent = spent[1:] or spent  # the first one warms up
        retrieval, answer = (1000 * median(times) for times in zip(*spent, strict=True))
        share = 100 * retrieval / (retrieval + answer)
        found[task.name] = {"retrieval_ms": retrieval, "answer_ms": answer, "retrieval_share_percent": share}
    return found


def _now(learner: Learner) -> float:
    if learner.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
