"""The accuracy matrix and every number derived from it, each named by its formula.

`rows` is an array [t + 1, T] in percent: row 0 before the first task (`start`), row t after task t; column u holds the
test set of task u. A finished run has T + 1 rows, an unfinished one fewer. In the formulas A[t,u] counts tasks from 1,
so that A[t,u] is `rows[t, u - 1]`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
START = "start"

#: name -> formula and source. A derived number is never shown without one of these names.
FORMULAS: dict[str, str] = {
    "union_accuracy": "sum_u n_u A[T,u] / sum_u n_u, n_u = test items of task u: correct answers over all test items "
    "of the order after the last task (micro average; PE, NAACL 2022 industry)",
    "union_accuracy/after_first": "sum_u n_u A[1,u] / sum_u n_u: the same union after the first task",
    "average_accuracy": "mean_u A[T,u] (macro average; ACC of Lopez-Paz & Ranzato 2017)",
    "average_incremental_accuracy": "mean_t mean_{u<=t} A[t,u] (Rebuffi et al. 2017)",
    "forgetting/chaudhry18": "mean_{u<T} (max_{u<=l<T} A[l,u] - A[T,u]), the best since the task was trained, without "
    "the row `start` (Chaudhry et al. 2018, whose max also covers l < u)",
    "forgetting/first_minus_last": "mean_{u<T} (A[u,u] - A[T,u]): right after training minus at the end",
    "bwt/gem": "mean_{u<T} (A[T,u] - A[u,u]): backward transfer (Lopez-Paz & Ranzato 2017)",
    "forward_transfer/gem": "mean_{u>1} (A[u-1,u] - A[0,u]), A[0,u] = row `start` (Lopez-Paz & Ranzato 2017)",
    "plasticity/diagonal": "mean_t A[t,t]: each task right after training (learning accuracy, Riemer et al. 2019)",
    "first_task/after_first": "A[1,1]: the first task right after it was trained",
    "first_task/last": "A[T,1]: the first task after the last one",
}


def after(rows: Floats, task: int) -> Floats:
    """The square matrix of the first `task` tasks, [task + 1, task]: what a run that ended there would have."""
    assert 1 <= task < len(rows), f"task {task} of a matrix with {len(rows)} rows"
    return rows[: task + 1, :task]


def forgetting_matrix(rows: Floats) -> Floats:
    """F[t,u] = max_{u<=l<t} A[l,u] - A[t,u] for u < t, NaN elsewhere (Chaudhry et al. 2018).

    Args:
        rows: [t + 1, T], percent; row 0 (`start`) is left out of the maximum.

    Returns:
        [t, T], percentage points; a negative value is an improvement.
    """
    trained = rows[1:]
    result = np.full(trained.shape, np.nan)
    for t in range(1, len(trained)):
        for u in range(t):
            result[t, u] = trained[u:t, u].max() - trained[t, u]
    return result


def derived(rows: Floats, test_examples: Sequence[int] | None = None) -> dict[str, float]:
    """Every number of `FORMULAS` that the matrix determines.

    Args:
        rows: [T + 1, T], percent. Of an unfinished run take `after(rows, len(rows) - 1)`.
        test_examples: test items per task; without them the union accuracies are left out.

    Returns:
        formula's name -> percent or percentage points. What compares two tasks is left out when there is only one.
    """
    count = rows.shape[1]
    assert rows.shape == (count + 1, count) and count > 0, f"not a finished matrix: {rows.shape}"
    trained, last = rows[1:], rows[-1]
    diagonal = np.diagonal(trained)
    numbers: dict[str, float] = {}
    if test_examples is not None:
        numbers["union_accuracy"] = union_accuracy(last, test_examples)
        numbers["union_accuracy/after_first"] = union_accuracy(trained[0], test_examples)
    numbers["average_accuracy"] = float(last.mean())
    numbers["average_incremental_accuracy"] = float(np.mean([trained[t, : t + 1].mean() for t in range(count)]))
    if count > 1:
        numbers["forgetting/chaudhry18"] = float(forgetting_matrix(rows)[-1, :-1].mean())
        numbers["forgetting/first_minus_last"] = float((diagonal - last)[:-1].mean())
        numbers["bwt/gem"] = float((last - diagonal)[:-1].mean())
        numbers["forward_transfer/gem"] = float(np.mean([rows[u, u] - rows[0, u] for u in range(1, count)]))
    numbers["plasticity/diagonal"] = float(diagonal.mean())
    numbers["first_task/after_first"] = float(trained[0, 0])
    numbers["first_task/last"] = float(last[0])
    return numbers


def union_accuracy(row: Floats, test_examples: Sequence[int]) -> float:
    """Correct answers over all test items, percent: the accuracies [T] weighted by the sizes of their test sets."""
    assert len(row) == len(test_examples), f"{len(row)} accuracies, {len(test_examples)} test sets"
    return float(np.average(row, weights=np.asarray(test_examples)))


def bootstrap_interval(correct: NDArray[np.bool_], seed: int, samples: int = 1000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of an accuracy, percent.

    Drawing n of n answers with replacement makes the number of correct ones binomial, so that is what is drawn.

    Args:
        correct: [n], one answer each; n > 0.
    """
    assert correct.size > 0, "no answers"
    draws = np.random.default_rng(seed).binomial(correct.size, correct.mean(), samples) / correct.size
    low, high = np.percentile(100 * draws, [2.5, 97.5])
    return float(low), float(high)


def write_accuracy(path: Path, tasks: Sequence[str], rows: Floats) -> None:
    """accuracy.csv: `after`, then a column per task; row `start`, then a row per finished task. Exact (repr)."""
    _write(path, tasks, [START, *tasks], rows)


def write_forgetting(path: Path, tasks: Sequence[str], rows: Floats) -> None:
    """forgetting.csv of the accuracy matrix `rows`: as accuracy.csv without `start`; empty where u >= t."""
    _write(path, tasks, tasks, forgetting_matrix(rows))


def read_matrix(path: Path) -> tuple[list[str], Floats]:
    """Task names and values of an accuracy.csv or forgetting.csv; NaN for an empty cell.

    Raises:
        ValueError: the file is not such a table.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    if not lines or lines[0][:1] != ["after"] or any(len(line) != len(lines[0]) for line in lines):
        raise ValueError(f"{path} is not a matrix: it needs a header `after,<task>,...` and rows of the same length")
    try:
        values = [[float(cell) if cell else np.nan for cell in line[1:]] for line in lines[1:]]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return lines[0][1:], np.array(values, dtype=np.float64).reshape(len(values), len(lines[0]) - 1)


def _write(path: Path, tasks: Sequence[str], names: Sequence[str], values: Floats) -> None:
    assert values.ndim == 2 and values.shape[1] == len(tasks) and len(values) <= len(names), values.shape
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["after", *tasks])
    for name, row in zip(names, values, strict=False):
        writer.writerow([name, *("" if np.isnan(value) else repr(float(value)) for value in row)])
    # A reader, or a run that is killed here, never sees half a file.
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    os.replace(temporary, path)
