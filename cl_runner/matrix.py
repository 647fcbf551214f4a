"""The accuracy matrix and every number derived from it, each named by its formula.

`rows` is an array [t + 1, T] in percent: row 0 before the first task (`start`), row t after task t; column u holds the
test set of task u, scored by the task's first metric. A finished run has T + 1 rows, an unfinished one fewer. NaN is a
cell that was not measured. In the formulas A[t,u] counts tasks from 1, so that A[t,u] is `rows[t, u - 1]`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cl_runner.digests import read_text, readable, replace_file

Floats = NDArray[np.float64]
Value = TypeVar("Value")
START = "start"
#: What puts the text in its place, such as `digests.write`.
Writes = Callable[[Path, str], None]
#: What retrieval is told by: as texts were served, and by the paper's votes.
SERVED, OWN_WEIGHT, RETRIEVAL = "served_retrieval/majority", "served_retrieval/own_weight", "retrieval_accuracy/slm"

#: name -> formula and source. A derived number is never shown without one of these names; k stands for a number.
FORMULAS: dict[str, str] = {
    "union_accuracy": "sum_u n_u A[T,u] / sum_u n_u, n_u = test items of task u: mean score over all test items of the "
    "order after the last task, of accuracies the share of right answers (micro average; PE, NAACL 2022 industry), "
    "where all tasks are scored by the same metric",
    "union_accuracy/after_first": "sum_u n_u A[1,u] / sum_u n_u: the same union after the first task",
    "average_accuracy": "mean_u A[T,u] (macro average; ACC of Lopez-Paz & Ranzato 2017; OP, the overall performance of "
    "TRACE 2023 and PIECE)",
    "average_incremental_accuracy": "mean_t mean_{u<=t} A[t,u] (Rebuffi et al. 2017)",
    "forgetting/chaudhry18": "mean_{u<T} (max_{u<=l<T} A[l,u] - A[T,u]), the best since the task was trained, without "
    "the row `start` (Chaudhry et al. 2018, whose max also covers l < u)",
    "forgetting/first_minus_last": "mean_{u<T} (A[u,u] - A[T,u]): right after training minus at the end",
    "retained_share": "100 sum_{u<T} A[T,u] / sum_{u<T} A[u,u]: what the tasks before the last score at the end, as a "
    "share of what they scored right after training",
    "forgetting/slm_after_k": "mean_{u<k} (max_{1<=l<k} A[l,u] - A[k,u]), of the cells measured: forgetting after k "
    "tasks, whose max also covers l < u (SLM, ICLR 2024, eq. 8)",
    "bwt/gem": "1/(T-1) sum_{u<T} (A[T,u] - A[u,u]): backward transfer (Lopez-Paz & Ranzato 2017)",
    "bwt/trace": "1/(T-1) sum_{u<T} (A[T,u] - A[u,u]): as TRACE's published numbers are, equal to bwt/gem",
    "bwt/all_tasks": "1/T sum_{u<=T} (A[T,u] - A[u,u]): the last task counts as one that lost nothing",
    "bwt/piece_release": "1/(T-1) sum_{u<T} (A[T-1,u] - A[u,u]): bwt/all_tasks one task before the end, without the "
    "last task (the code released with PIECE, arXiv:2511.15375)",
    "forward_transfer/gem": "mean_{u>1} (A[u-1,u] - A[0,u]), A[0,u] = row `start` (Lopez-Paz & Ranzato 2017)",
    "plasticity/diagonal": "mean_t A[t,t]: each task right after training (learning accuracy, Riemer et al. 2019; AP, "
    "the average plasticity of SVC)",
    "first_task/after_first": "A[1,1]: the first task right after it was trained",
    "first_task/last": "A[T,1]: the first task after the last one",
    "average_macro_f1": "mean_u of macro_f1 of task u after the last task, where every task has given labels and is "
    "scored by accuracy: mean_c 2 TP_c / (2 TP_c + FP_c + FN_c) over the classes of its test set",
    "average_balanced_accuracy": "the same of balanced_accuracy: mean_c TP_c / (TP_c + FN_c)",
    "average_matthews_correlation": "the same of 100 times the Matthews correlation coefficient (MCC)",
    SERVED: "mean over tasks of the share of the texts it is scored on that were served rightly after the last task: "
    "their own task's slots held more than half of the weight when they were answered",
    OWN_WEIGHT: "mean over tasks of the mean weight that a text's own task's slots held when it was answered, after "
    "the last task",
    RETRIEVAL: "mean over tasks of the share of the texts it is scored on of which more than half of "
    "the keys that the groups retrieve are the true task's, after the last task: votes, whatever the texts are given "
    "(SLM, ICLR 2024, eq. 13)",
}


def formula_of(name: str) -> str:
    """The formula of a derived number, also of a numbered one such as forgetting/slm_after_3."""
    return FORMULAS.get(name) or FORMULAS[re.sub(r"\d+$", "k", name)]


def headline(names: Collection[str]) -> str:
    """The number that stands for a run: the union where it exists, else the average over tasks."""
    return "union_accuracy" if "union_accuracy" in names else "average_accuracy"


def after(rows: Floats, task: int) -> Floats:
    """The square matrix of the first `task` tasks, [task + 1, task]: what a run that ended there would have."""
    assert 1 <= task < len(rows), f"task {task} of a matrix with {len(rows)} rows"
    return rows[: task + 1, :task]


def forgetting_matrix(rows: Floats) -> Floats:
    """F[t,u] = max_{u<=l<t} A[l,u] - A[t,u] for u < t, NaN elsewhere (Chaudhry et al. 2018).

    Args:
        rows: [..., t + 1, T], percent; row 0 (`start`) is left out of the maximum.

    Returns:
        [..., t, T], percentage points; a negative value is an improvement.
    """
    trained = rows[..., 1:, :]
    t, u = np.arange(trained.shape[-2])[:, None], np.arange(trained.shape[-1])
    best = np.maximum.accumulate(np.where(t >= u, trained, -np.inf), axis=-2)
    result = np.full(trained.shape, np.nan)
    result[..., 1:, :] = np.where((t > u)[1:], best[..., :-1, :] - trained[..., 1:, :], np.nan)
    return result


def _forgotten(trained: Floats) -> Floats:
    """The last row of `forgetting_matrix` [..., T - 1], without a matrix in between; of rows without `start`."""
    best = np.full_like(trained[..., -1, :-1], -np.inf)
    for row in range(trained.shape[-2] - 1):
        best[..., : row + 1] = np.maximum(best[..., : row + 1], trained[..., row, : row + 1])
    return best - trained[..., -1, :-1]


def learned_so_far(rows: Floats) -> Floats:
    """mean_{u<=t} A[t,u] after each task t, [..., t]; NaN where a cell was not measured.

    Args:
        rows: [..., t + 1, T], percent.
    """
    trained = rows[..., 1:, :]
    return np.stack([trained[..., t, : t + 1].mean(axis=-1) for t in range(trained.shape[-2])], axis=-1)


def derived(rows: Floats, test_examples: Sequence[int] | None = None) -> dict[str, float]:
    """Every number of `FORMULAS` that the matrix determines.

    Args:
        rows: [T + 1, T], percent. Of an unfinished run take `after(rows, len(rows) - 1)`.
        test_examples: test items per task; without them the union accuracies are left out.

    Returns:
        formula's name -> percent or percentage points. What compares two tasks is left out when there is only one, and
        what needs a cell that was not measured.
    """
    return {name: float(value) for name, value in derived_arrays(rows, test_examples).items() if not np.isnan(value)}


def derived_arrays(rows: Floats, test_examples: Sequence[int] | None = None) -> dict[str, Floats]:
    """The numbers of `derived` for many matrices at once.

    Args:
        rows: [..., T + 1, T], percent.

    Returns:
        formula's name -> [...], NaN where a cell was not measured.
    """
    count = rows.shape[-1]
    assert rows.shape[-2:] == (count + 1, count) and count > 0, f"not a finished matrix: {rows.shape}"
    trained, last = rows[..., 1:, :], rows[..., -1, :]
    diagonal = np.diagonal(trained, axis1=-2, axis2=-1)
    numbers: dict[str, Floats] = {}
    if test_examples is not None:
        weights = np.asarray(test_examples) / sum(test_examples)
        assert len(weights) == count, f"{count} tasks, {len(weights)} test sets"
        numbers["union_accuracy"] = last @ weights
        numbers["union_accuracy/after_first"] = trained[..., 0, :] @ weights
    numbers["average_accuracy"] = last.mean(axis=-1)
    numbers["average_incremental_accuracy"] = learned_so_far(rows).mean(axis=-1)
    if count > 1:
        gained = last - diagonal
        numbers["forgetting/chaudhry18"] = _forgotten(trained).mean(axis=-1)
        numbers["forgetting/first_minus_last"] = (diagonal - last)[..., :-1].mean(axis=-1)
        learned = diagonal[..., :-1].sum(axis=-1)
        share = np.full(learned.shape, np.nan)
        np.divide(100 * last[..., :-1].sum(axis=-1), learned, out=share, where=learned > 0)
        numbers["retained_share"] = share
        best = trained[..., 0, :]
        for k in range(2, count + 1):
            best = np.fmax(best, trained[..., k - 2, :])
            fallen = best[..., : k - 1] - trained[..., k - 1, : k - 1]
            numbers[f"forgetting/slm_after_{k}"] = fallen.mean(axis=-1)
        numbers["bwt/gem"] = numbers["bwt/trace"] = gained[..., :-1].mean(axis=-1)
        numbers["bwt/all_tasks"] = gained.mean(axis=-1)
        numbers["bwt/piece_release"] = (trained[..., -2, :-1] - diagonal[..., :-1]).mean(axis=-1)
        gains = np.stack([rows[..., u, u] - rows[..., 0, u] for u in range(1, count)])
        numbers["forward_transfer/gem"] = gains.mean(axis=0)
    numbers["plasticity/diagonal"] = diagonal.mean(axis=-1)
    numbers["first_task/after_first"] = trained[..., 0, 0]
    numbers["first_task/last"] = last[..., 0]
    return numbers


def renamed(numbers: Mapping[str, Value]) -> dict[str, Value]:
    """What a summary holds, by today's names: in one without `bwt/all_tasks`, `bwt/trace` is the form with 1/T."""
    if "bwt/trace" not in numbers or "bwt/all_tasks" in numbers:
        return dict(numbers)
    return {**numbers, "bwt/trace": numbers["bwt/gem"], "bwt/all_tasks": numbers["bwt/trace"]}


def headline_column(rows: Floats, test_examples: Sequence[int] | None) -> dict[str, list[float | None]]:
    """The union, or without test sizes the average, of every row: {name: [t + 1]}, None where a cell is missing."""
    weights = np.ones(rows.shape[1]) if test_examples is None else np.asarray(test_examples)
    values = (rows @ (weights / weights.sum())).tolist()
    name = "average" if test_examples is None else "union"
    return {name: [None if np.isnan(value) else value for value in values]}


class MatrixTexts:
    """accuracy.csv and forgetting.csv of a matrix that grows, each row of which is put into words once.

    Args:
        tasks: their names.
    """

    def __init__(self, tasks: Sequence[str]):
        self._tasks = list(tasks)
        self._accuracy, self._forgetting = [_line(["after", *tasks])], [_line(["after", *tasks])]
        self._best = np.full(len(self._tasks), -np.inf)  # of each task since it was trained, in the rows so far

    def texts(self, rows: Sequence[Sequence[float]]) -> dict[str, str]:
        """Name of the file -> its content.

        Args:
            rows: [t + 1][T], percent, those that were given before and more.
        """
        for row in range(len(self._accuracy) - 1, len(rows)):
            values = np.array(rows[row], dtype=np.float64)
            self._accuracy.append(_row([START, *self._tasks][row], values))
            if row:
                earlier = np.arange(len(values)) < row - 1
                self._forgetting.append(_row(self._tasks[row - 1], np.where(earlier, self._best - values, np.nan)))
                self._best[:row] = np.maximum(self._best, values)[:row]
        return {"accuracy.csv": "".join(self._accuracy), "forgetting.csv": "".join(self._forgetting)}


def read_matrix(path: Path) -> tuple[list[str], Floats]:
    """Task names and values of an accuracy.csv or forgetting.csv; NaN for an empty cell.

    Raises:
        Damaged: the file is not what was written, or no such table.
    """
    text = read_text(path)
    with readable(path):
        try:
            lines = list(csv.reader(StringIO(text, newline=""), strict=True))
        except csv.Error as error:
            raise ValueError(str(error)) from None
        if not lines or lines[0][:1] != ["after"] or any(len(line) != len(lines[0]) for line in lines):
            raise ValueError("a matrix is expected: a header `after,<task>,...` and rows of the same length")
        values = [[float(cell) if cell else np.nan for cell in line[1:]] for line in lines[1:]]
    return lines[0][1:], np.array(values, dtype=np.float64).reshape(len(values), len(lines[0]) - 1)


def write_table(
    path: Path, columns: Sequence[str], names: Sequence[str], values: Floats, write: Writes = replace_file
) -> None:
    """A row per name, as far as there are values, and a column for each of `columns`; exact (repr), empty for NaN."""
    assert values.ndim == 2 and values.shape[1] == len(columns) and len(values) <= len(names), values.shape
    lines = [_line(["after", *columns]), *(_row(name, row) for name, row in zip(names, values, strict=False))]
    write(path, "".join(lines))


def _row(name: str, values: Floats) -> str:
    return _line([name, *("" if value != value else repr(value) for value in values.tolist())])


def _line(cells: Sequence[str]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
