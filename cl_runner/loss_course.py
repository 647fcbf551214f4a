"""Whether a task's training loss moved, and how far its steps could move a weight: numbers of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

#: Of fewer steps nothing is said.
FEWEST = 6
#: Losses that a trend is sought in: more are joined, neighbours by their median.
MOST = 200
#: Below it a task was known from the start, in nats.
KNOWN = 0.05
#: A fall by this share of the loss is one, whatever the noise of its batches.
CLEAR = 0.2
#: Of the standard normal distribution: one side of 5 %.
BOUND = 1.645
#: What the loss of each turn of a chat is called in metrics.jsonl; from the tenth on turns are one.
TURN, MOST_TURNS = "loss_turn_", 10
RULE = (
    "A loss moved if it fell: by a trend over the steps (Mann-Kendall, one-sided, 5 %), by a fifth from the median of "
    "the first third of the steps to that of the last, or from the first step's loss, if none of the last third is as "
    f"high. Of fewer than {FEWEST} steps, and below {KNOWN} nats, nothing is said."
)


class Course(NamedTuple):
    """Of a task's losses the medians over the first and the last third of its steps, and where they went.

    Attributes:
        went: down; up, by such a trend and a fifth; nowhere; None = nothing is said of so few steps or so small a loss.
    """

    first: float
    last: float
    went: Literal["down", "up", "nowhere"] | None


def course(losses: Sequence[float]) -> Course:
    """What `RULE` says of the losses of a task's steps, at least one, in their order."""
    values = np.asarray(losses, dtype=float)
    third = max(1, len(values) // 3)
    first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
    if len(values) < FEWEST or first < KNOWN:
        return Course(first, last, None)
    trend = _trend(values)
    at_once = values[0] > values[-third:].max() and last < (1 - CLEAR) * values[0]
    if trend < -BOUND or last < (1 - CLEAR) * first or at_once:
        return Course(first, last, "down")
    return Course(first, last, "up" if trend > BOUND and last > (1 + CLEAR) * first else "nowhere")


def _trend(values: np.ndarray) -> float:
    """Mann and Kendall's statistic, about standard normal where there is no trend: below 0 where values fall."""
    if len(values) > MOST:
        values = np.array([np.median(part) for part in np.array_split(values, MOST)])
    n = len(values)
    ascending = np.triu(np.sign(values[None, :] - values[:, None]), 1).sum()
    return float(ascending / math.sqrt(n * (n - 1) * (2 * n + 5) / 18))


def courses(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each task that metrics.jsonl has steps of: how it was trained, and where its loss went.

    Returns:
        By task `optimizer_steps`, the largest `learning_rate`, `steps_times_rate` (the sum of the rates of all steps,
        about how far AdamW moves a weight whose gradient keeps its sign), `loss_first`, `loss_last`, `loss_went`.
    """

    def made(line: Mapping[str, Any]) -> int:
        """Optimizer steps of a batch, which was one step before methods could make several of it."""
        return int(line.get("optimizer_steps", 1))

    of_task: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "train":
            of_task.setdefault(str(line["task"]), []).append(line)
    found = {}
    for task, steps in of_task.items():
        first, last, went = course([line["loss"] for line in steps])
        found[task] = {
            "optimizer_steps": sum(made(line) for line in steps),
            "learning_rate": max(line["learning_rate"] for line in steps),
            "steps_times_rate": sum(made(line) * line["learning_rate"] for line in steps),
            "loss_first": first,
            "loss_last": last,
            "loss_went": went,
        }
    return found
