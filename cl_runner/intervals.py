"""95 % percentile bootstrap intervals over test examples, of the matrix and of every number derived from it.

A draw takes, of every task with n test examples, n with replacement; the same draw serves all rows, so that what
compares two rows (forgetting, transfer) is compared on the same examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cl_runner.digests import read_text, readable
from cl_runner.matrix import Floats, derived_arrays
from cl_runner.metrics.classes import CLASS_SCORES, class_scores, percents, tallies

Kept = TypeVar("Kept")
DRAWS = 1000
SEED = 0
_DRAWN = 1_000_000  # drawn examples held at once
_CELLS = 4_000_000  # cells of bootstrapped matrices held at once
_TOGETHER = 8  # draws that a product takes at least: a row's last bit depends on whether it is one of several


def read_scores(folder: Path) -> dict[int, dict[str, Floats]]:
    """The kept scores of a run: row of the matrix -> task -> percent of each test example, [n].

    Raises:
        Damaged: a file of predictions is.
    """
    return {
        int(path.name.partition("_")[0]): {task: np.array(scores) for task, scores in _kept(path, _score).items()}
        for path in sorted((folder / "predictions").glob("[0-9]*_*.jsonl"))
    }


def read_answers(folder: Path, row: int) -> dict[str, list[tuple[str, str]]]:
    """Answer and prediction of each test example by task, as a run kept them with a row of the matrix; or nothing.

    Raises:
        Damaged: the file of predictions is.
    """
    files = list((folder / "predictions").glob(f"{row:02d}_*.jsonl"))
    return _kept(files[0], _texts) if files else {}


def read_predictions(folder: Path, row: int) -> dict[str, list[tuple[str, float | None]]]:
    """Prediction of each test example and its confidence by task, as a run kept them with a row of the matrix.

    Raises:
        Damaged: the file of predictions is.
    """
    (path,) = (folder / "predictions").glob(f"{row:02d}_*.jsonl")
    return _kept(path, lambda answer: (str(answer["prediction"]), answer["confidence"]))


def read_texts(folder: Path, row: int, task: str) -> list[tuple[str, str]]:
    """Answer and prediction of each test example of one task, as a run kept them with a row of the matrix; or nothing.

    Raises:
        Damaged: the file of predictions is.
    """
    files = list((folder / "predictions").glob(f"{row:02d}_*.jsonl"))
    return _kept(files[0], _texts, task).get(task, []) if files else []


def _texts(answer: Mapping[str, Any]) -> tuple[str, str]:
    return str(answer["answer"]), str(answer["prediction"])


def _kept(path: Path, wanted: Callable[[Mapping[str, Any]], Kept], task: str | None = None) -> dict[str, list[Kept]]:
    """What is wanted of each line of a file of predictions, by task; of one task alone, if it is named."""
    found: dict[str, list[Kept]] = {}
    text = read_text(path)
    with readable(path):
        try:
            for line in text.splitlines():
                if task is not None and json.dumps(task) not in line:  # most lines are not even read
                    continue
                answer = json.loads(line)
                found.setdefault(str(answer["task"]), []).append(wanted(answer))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a prediction without {error}") from None
    return found


def _score(answer: Mapping[str, Any]) -> float:
    """Predictions of version 0.2 and before hold no score: they were right or wrong."""
    return float(answer["score"]) if "score" in answer else 100.0 * (answer["answer"] == answer["prediction"])


def by_task(scores: Mapping[int, Mapping[str, Floats]], tasks: Sequence[str], rows: int) -> list[Floats]:
    """The scores of each of `tasks` over the first `rows` rows: [rows, n] each, NaN where a task was not evaluated."""
    result = []
    for task in tasks:
        size = max((len(row[task]) for row in scores.values() if task in row), default=0)
        missing = np.full(size, np.nan)
        result.append(np.stack([scores.get(row, {}).get(task, missing) for row in range(rows)]))
    return result


def draw(scores: Sequence[Floats], draws: int = DRAWS, streams: Sequence[int] | None = None) -> Floats:
    """Bootstrapped matrices, all at once.

    Args:
        scores: per task [rows, n], n > 0, percent of each test example after each row.
        streams: of the draws of each task; None = the task's number. Tasks with as many examples and the same stream
            have the same draws, so that runs over other orders are compared on the same examples.

    Returns:
        [draws, rows, tasks], percent.
    """
    return np.concatenate(list(_blocks(scores, draws, streams)))


def _blocks(scores: Sequence[Floats], draws: int, streams: Sequence[int] | None) -> Iterator[Floats]:
    """The same in blocks of draws, [part of draws, rows, tasks]: matrices of many tasks are too large together."""
    numbers = range(len(scores)) if streams is None else streams
    randoms = [np.random.default_rng([SEED, number]) for number in numbers]
    rows = len(scores[0])
    for begin, end in _chunks(draws, max(1, _CELLS // (rows * len(scores) * _TOGETHER)) * _TOGETHER):
        block = np.empty((end - begin, rows, len(scores)))
        for column, (task, random) in enumerate(zip(scores, randoms, strict=True)):
            block[..., column] = _sums(task.T, end - begin, random) / task.shape[1]
        yield block


def _sums(values: Floats, draws: int, random: np.random.Generator) -> Floats:
    """The sums over the examples of the next draws, [draws, K], of values [n, K]."""
    size, columns = values.shape
    assert size > 0, "no test examples"
    result = np.empty((draws, columns))
    for begin, end in _chunks(draws, max(1, _DRAWN // size)):
        # How often each example was drawn: as many counts as examples, so that a product makes all columns' sums.
        cells = random.integers(size, size=(end - begin, size)) + np.arange(end - begin)[:, None] * size
        counts = np.bincount(cells.ravel(), minlength=(end - begin) * size).reshape(-1, size)
        result[begin:end] = counts.astype(np.float64) @ values
    return result


def label_scores(
    answers: Mapping[str, Sequence[tuple[str, str]]], labels: Mapping[str, Sequence[str]]
) -> tuple[dict[str, dict[str, float]], dict[str, float], dict[str, list[float]]]:
    """What stands beside the accuracy of tasks with given labels.

    Args:
        answers: answer and prediction of each test example by task.
        labels: of each task; none = its answers are other texts.

    Returns:
        By task and name; where every task has them the means over tasks, by `average_<name>`, and their intervals.
    """
    found, drawn = {}, []
    for number, (task, given) in enumerate(labels.items()):
        if given and answers.get(task):
            truth, predicted = zip(*answers[task], strict=True)
            counted = tallies(truth, predicted, given)
            found[task] = percents(counted)
            drawn.append(class_scores(_sums(counted, DRAWS, np.random.default_rng([SEED, number]))))
    if not found or len(found) < len(labels):
        return found, {}, {}
    means = {f"average_{name}": float(np.mean([each[name] for each in found.values()])) for name in CLASS_SCORES}
    spreads = {
        f"average_{name}": interval(np.mean([each[name] for each in drawn], axis=0)).tolist() for name in CLASS_SCORES
    }
    return found, means, spreads


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, size):
        yield begin, min(begin + size, count)


def interval(values: Floats) -> Floats:
    """The 2.5 and 97.5 percentiles over the draws of [draws, ...]: [2, ...]; NaN where a cell was not measured."""
    bounds: Floats = np.percentile(values, [2.5, 97.5], axis=0)
    return bounds


def derived_draws(
    scores: Sequence[Floats],
    test_examples: Sequence[int] | None,
    draws: int = DRAWS,
    streams: Sequence[int] | None = None,
) -> dict[str, Floats]:
    """Every number that `cl_runner.matrix.derived` gives, under each draw: [draws] by name, NaN if not measured.

    Holds blocks of matrices, some 100 MB at a time up to 1,000 tasks, beside `scores`.

    Args:
        scores: of each of T tasks [T + 1, n], as `draw` takes them, and `streams` as well.
    """
    found: dict[str, Floats] = {}
    begin = 0
    for block in _blocks(scores, draws, streams):
        end = begin + len(block)
        for name, values in derived_arrays(block, test_examples).items():
            found.setdefault(name, np.empty(draws))[begin:end] = values  # a copy: some of them are views of the block
        begin = end
    return found


def derived_intervals(scores: Sequence[Floats], test_examples: Sequence[int] | None) -> dict[str, list[float]]:
    """[low, high] of every number of `derived_draws` that was measured."""
    found = {name: interval(values) for name, values in derived_draws(scores, test_examples).items()}
    return {name: bounds.tolist() for name, bounds in found.items() if not np.isnan(bounds).any()}
