"""How far a mean of n runs may be from that of very many, and how many runs it takes to come near."""

from __future__ import annotations

import math

#: Points of the score that a mean should be known to.
WITHIN = 1.0


def half_width(spread: float, runs: int) -> float:
    """Half of Student's 95 % interval of the mean of `runs` runs, in the unit of `spread`.

    Args:
        spread: sample standard deviation over runs.
        runs: at least 2.
    """
    from scipy.stats import t

    return float(t.ppf(0.975, runs - 1)) * spread / math.sqrt(runs)


def runs_needed(spread: float, within: float = WITHIN) -> int:
    """The smallest number of runs, 2 at least, of which `half_width` is at most `within` if the spread stays."""
    low, high = 1, 2
    while half_width(spread, high) > within:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if half_width(spread, middle) <= within else (middle, high)
    return high


def range_holds(runs: int) -> float:
    """How probable it is that the median lies between the smallest and the largest of `runs` runs: 1 - 2^(1 - n).

    No percentile interval of a bootstrap is wider than this range.
    """
    return 1 - 2.0 ** (1 - runs)
