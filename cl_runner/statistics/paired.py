"""Which differences between settings are none: paired permutation tests, Holm's correction, letters, ranks."""

from __future__ import annotations

import math
import string
from collections.abc import Collection, Sequence

import numpy as np

from cl_runner.intervals import SEED
from cl_runner.matrix import Floats

#: Flips of signs of a single test: all there are for up to 13 pairs of runs, drawn by chance of more; and at most.
FLIPS, MOST_FLIPS = 9_999, 99_999
#: Level of a test, and of all pairs of a table together.
LEVEL = 0.05
_CELLS = 4_000_000  # flipped differences held at once


def flips_of(tests: int) -> int:
    """Flips that let each of so many tests become significant with all others, up to `MOST_FLIPS`."""
    return min(max(FLIPS, math.ceil(3 * tests / LEVEL)), MOST_FLIPS)


def flip_p_values(differences: Floats, weights: Floats, flips: int = FLIPS) -> Floats:
    """Two-sided p-values of paired permutation tests: had both methods done alike, every sign were as probable.

    Args:
        differences: [n, K], of the n runs that two settings share, for K pairs of settings.
        weights: [n], of each run in the mean that is tested.

    Returns:
        [K]: the share of all 2^n flips of signs, or of `flips` by chance and the data's own, whose mean is as far
        from 0 on one side, twice the smaller one; 1 at most.
    """
    from scipy.stats import permutation_test

    def mean(values: Floats, axis: int = -1) -> Floats:
        return np.moveaxis(values, axis, -1) @ weights

    count, pairs = differences.shape
    found = permutation_test(
        (differences,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=flips,
        batch=max(1, _CELLS // (count * pairs)),
        axis=0,
        rng=np.random.default_rng(SEED),
    )
    return np.minimum(np.asarray(found.pvalue, dtype=np.float64), 1.0)


def smallest_p(runs: int, flips: int | None = None) -> float:
    """The smallest p-value that so many shared runs can give: both signs of all of them.

    Args:
        flips: that are drawn where there are more; None = all are made.
    """
    drawn = 0.0 if flips is None or 2**runs <= flips else 2 / (flips + 1)
    return max(min(1.0, 2.0 ** (1 - runs)), drawn)


def holm(p_values: Floats) -> Floats:
    """Adjusted p-values [K] (Holm 1979): below a level, a pair is told apart at that level for all pairs together.

    NaN, for a pair that was not tested, stays and does not count.
    """
    result = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    result[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return result


def letters(count: int, apart: Collection[tuple[int, int]]) -> list[str]:
    """Letters of `count` settings: two share one exactly if they are not told apart (Piepho 2004: insert, absorb).

    Args:
        apart: pairs of settings that differ.
    """
    columns = [frozenset(range(count))]
    for one, other in apart:
        split: list[frozenset[int]] = []
        for column in columns:
            split += [column - {one}, column - {other}] if {one, other} <= column else [column]
        columns = [c for i, c in enumerate(split) if not any(c < d or (c == d and j < i) for j, d in enumerate(split))]
    columns.sort(key=sorted)
    return ["".join(_letter(number) for number, column in enumerate(columns) if i in column) for i in range(count)]


def _letter(number: int) -> str:
    """a to z, A to Z, then with a number."""
    turn, place = divmod(number, len(string.ascii_letters))
    return string.ascii_letters[place] + (f"{turn + 1}," if turn else "")


def ranks(values: Floats, lower_is_better: bool = False) -> Floats:
    """Ranks [n, K] of K settings in each of n rows, 1 = the best; equal ones share the mean of theirs."""
    from scipy.stats import rankdata

    found: Floats = rankdata(values if lower_is_better else -values, axis=1)
    return found


def agreement(ranked: Floats) -> float | None:
    """Kendall's W of ranks [n, K]: 1 if all rows rank alike, 0 if as by chance; corrected for ties.

    None where it says nothing: of fewer than two rows or settings, or where all ranks are equal.
    """
    rows, count = ranked.shape
    if rows < 2 or count < 2:
        return None
    ties = sum(float((sizes**3 - sizes).sum()) for sizes in (np.unique(row, return_counts=True)[1] for row in ranked))
    largest = rows**2 * (count**3 - count) - rows * ties
    spread = ((ranked.sum(axis=0) - rows * (count + 1) / 2) ** 2).sum()
    return float(12 * spread / largest) if largest else None


def friedman(values: Sequence[Floats]) -> tuple[float, float] | None:
    """Statistic and p-value (chi-square approximation) of Friedman's test of K >= 3 settings over n >= 2 shared runs.

    Args:
        values: of each setting [n]. None where the test says nothing.
    """
    from scipy.stats import friedmanchisquare

    if len(values) < 3 or len(values[0]) < 2 or all(np.array_equal(values[0], each) for each in values):
        return None
    found = friedmanchisquare(*values)
    return float(found.statistic), float(found.pvalue)
