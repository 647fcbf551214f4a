"""The hierarchical bootstrap of a mean over orders, seeds and test examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cl_runner.intervals import DRAWS, SEED
from cl_runner.matrix import Floats


def mean_of(blocks: Sequence[Floats]) -> float:
    """The mean over orders of the mean over their seeds.

    Args:
        blocks: of each order the number of each seed's run, [seeds].
    """
    return float(np.mean([values.mean() for values in blocks]))


def hierarchical(blocks: Sequence[Floats], draws: int = DRAWS) -> Floats:
    """Bootstrapped means over orders of the mean over their seeds.

    A draw takes as many orders as there are, with replacement, and of each order taken as many of its seeds, anew each
    time it is taken. Test examples are not nested: all runs are asked the same ones, so that a draw of examples is one
    for all runs, which `blocks` brings along.

    Args:
        blocks: of each order the number of each seed's run, [seeds, draws] under each draw of examples, or [seeds, 1]
            where nothing is known of the examples.

    Returns:
        [draws].
    """
    random = np.random.default_rng([SEED, len(blocks)])
    orders = random.integers(len(blocks), size=(draws, len(blocks)))
    total = np.zeros(draws)
    for place in range(len(blocks)):
        for order, values in enumerate(blocks):
            where = np.flatnonzero(orders[:, place] == order)
            seeds = random.integers(len(values), size=(len(where), len(values)))
            columns = where[:, None] if values.shape[1] > 1 else np.zeros((1, 1), dtype=int)
            total[where] += values[seeds, columns].mean(axis=1)
    return total / len(blocks)


def over_examples(blocks: Sequence[Floats]) -> Floats:
    """The same means of the runs as they are, under each draw of examples alone: [draws], or [1] without examples."""
    means = np.broadcast_arrays(*(values.mean(axis=0) for values in blocks))
    found: Floats = np.mean(means, axis=0)
    return found
