"""Statistics of several runs against their definitions: everything that can be enumerated is, in fp64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cl_runner.matrix import Floats
from cl_runner.statistics.bootstrap import hierarchical, mean_of, over_examples
from cl_runner.statistics.orders import arrangement, balanced_count, balanced_order, unevenness
from cl_runner.statistics.paired import (
    FLIPS,
    agreement,
    flip_p_values,
    flips_of,
    friedman,
    holm,
    letters,
    ranks,
    smallest_p,
)
from cl_runner.statistics.spread import half_width, range_holds, runs_needed

RANDOM = np.random.default_rng(7)


def enumerated_p(differences: Floats, weights: Floats) -> float:
    """Twice the smaller share of all 2^n signs whose weighted mean is as far on that side."""
    means = [np.dot(weights, np.array(s) * differences) for s in itertools.product([1, -1], repeat=len(weights))]
    seen, slack = np.dot(weights, differences), 1e-12
    above, below = np.mean([m >= seen - slack for m in means]), np.mean([m <= seen + slack for m in means])
    return min(1.0, 2 * min(above, below))


@pytest.mark.parametrize("count", [2, 3, 6, 9])
def test_flips_are_all_flips(count: int) -> None:
    differences = RANDOM.normal(0.7, 1.0, (count, 3))
    differences[:, 1] = np.round(differences[:, 1])  # ties, and zeros
    differences[:, 2] = np.abs(differences[:, 2])
    weights = RANDOM.dirichlet(np.ones(count))
    found = flip_p_values(differences, weights)
    assert found == pytest.approx([enumerated_p(each, weights) for each in differences.T], abs=1e-12)
    assert found[2] == smallest_p(count) == 2.0 ** (1 - count)


def test_of_many_runs_flips_are_drawn() -> None:
    differences = RANDOM.normal(0.5, 1.0, (16, 1))
    weights = np.full(16, 1 / 16)
    signs = np.array(list(itertools.product([1, -1], repeat=16)), dtype=np.int8)
    means = (signs * differences[:, 0]) @ weights
    exact = 2 * np.mean(means >= (differences[:, 0] @ weights) - 1e-12)
    (found,) = flip_p_values(differences, weights)
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact / FLIPS))
    assert found == flip_p_values(differences, weights)[0]  # the same every time
    (least,) = flip_p_values(np.ones((40, 1)), np.full(40, 1 / 40), flips_of(780))
    assert least == smallest_p(40, flips_of(780)) <= 0.05 / 780


def test_equal_settings_have_p_1_and_opposite_ones_the_same_p() -> None:
    differences = np.array([[0.0, 1.0, -1.0], [0.0, 2.0, -2.0], [0.0, 1.5, -1.5]])
    assert flip_p_values(differences, np.full(3, 1 / 3)).tolist() == [1.0, 0.25, 0.25]


def test_holm_by_hand() -> None:
    # Holm 1979: 0.01 * 4, then max with 0.02 * 3, 0.04 * 2, 0.9 * 1.
    assert holm(np.array([0.9, 0.01, 0.04, 0.02])).tolist() == pytest.approx([0.9, 0.04, 0.08, 0.06])
    with_hole = holm(np.array([0.01, np.nan, 0.04]))
    assert with_hole[[0, 2]].tolist() == pytest.approx([0.02, 0.04]) and np.isnan(with_hole[1])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_two_settings_share_a_letter_exactly_if_they_are_not_apart(count: int) -> None:
    pairs = list(itertools.combinations(range(count), 2))
    for share in (0.0, 0.3, 0.7, 1.0):
        apart = {pair for pair in pairs if RANDOM.random() < share}
        found = letters(count, apart)
        assert all(found)
        for one, other in pairs:
            assert bool(set(found[one]) & set(found[other])) == ((one, other) not in apart)
    assert letters(3, {(0, 2)}) == ["a", "ab", "b"]


def test_ranks_and_their_agreement() -> None:
    values = np.array([[70.0, 60.0, 60.0, 10.0], [80.0, 60.0, 50.0, 40.0]])
    ranked = ranks(values)
    assert ranked.tolist() == [[1, 2.5, 2.5, 4], [1, 2, 3, 4]]
    assert ranks(values, lower_is_better=True)[1].tolist() == [4, 3, 2, 1]
    assert agreement(ranks(np.array([[3.0, 2.0, 1.0], [30.0, 20.0, 10.0]]))) == pytest.approx(1.0)
    assert agreement(ranks(np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]))) == pytest.approx(0.0)
    # W = chi-square / (n (k - 1)), ties included.
    rows = np.round(RANDOM.normal(size=(5, 4)), 0)
    statistic, p_value = friedman(list(rows.T)) or (0.0, 0.0)
    assert agreement(ranks(rows)) == pytest.approx(statistic / (5 * 3))
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 3))
    assert agreement(ranks(np.ones((3, 3)))) is None and agreement(ranks(rows[:1])) is None
    assert friedman([rows[:, 0]] * 3) is None and friedman(list(rows[:, :2].T)) is None


def enumerated_draws(blocks: list[Floats]) -> tuple[Floats, Floats]:
    """Every mean that a draw of orders, and of seeds within each order taken, can give, and how probable it is."""
    of_order = []
    for values in blocks:
        taken = itertools.product(values[:, 0], repeat=len(values))
        of_order.append([(float(np.mean(one)), len(values) ** -len(values)) for one in taken])
    means, chances = [], []
    for orders in itertools.product(range(len(blocks)), repeat=len(blocks)):
        for seeds in itertools.product(*(of_order[order] for order in orders)):
            means.append(np.mean([mean for mean, _ in seeds]))
            chances.append(math.prod(chance for _, chance in seeds) / len(blocks) ** len(blocks))
    return np.array(means), np.array(chances)


def test_the_hierarchical_bootstrap_draws_what_its_definition_says() -> None:
    blocks = [np.array([[1.0], [2.0], [6.0]]), np.array([[10.0], [14.0]])]
    assert mean_of([block[:, 0] for block in blocks]) == 7.5
    means, chances = enumerated_draws(blocks)
    assert chances.sum() == pytest.approx(1.0)
    drawn = hierarchical(blocks, draws=40_000)
    order = np.argsort(means)
    for share in (0.025, 0.2, 0.5, 0.8, 0.975):
        exact = means[order][np.searchsorted(np.cumsum(chances[order]), share)]
        assert abs(np.mean(drawn <= exact + 1e-9) - chances[means <= exact + 1e-9].sum()) < 0.01
    assert drawn.mean() == pytest.approx(chances @ means, abs=0.05)
    assert drawn.var() == pytest.approx(chances @ (means - chances @ means) ** 2, rel=0.03)


def test_one_order_without_examples_is_the_ordinary_bootstrap() -> None:
    values = RANDOM.normal(70, 3, 9)
    drawn = hierarchical([values[:, None]], draws=20_000)
    found = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert low == pytest.approx(found.confidence_interval.low, abs=0.15)
    assert high == pytest.approx(found.confidence_interval.high, abs=0.15)


def test_examples_are_drawn_once_for_all_runs() -> None:
    """Of runs that are equal but for the draw of examples nothing but that draw is left: it does not average out."""
    common = RANDOM.normal(60, 2, 1000)
    blocks = [np.tile(common, (3, 1)), np.tile(common, (2, 1))]
    assert hierarchical(blocks) == pytest.approx(common)
    assert over_examples(blocks) == pytest.approx(common)
    assert over_examples([np.array([[1.0], [3.0]]), np.array([[4.0]])]).tolist() == [3.0]


def test_runs_needed_is_the_smallest_number_that_does() -> None:
    for spread in (0.0, 0.3, 1.0, 2.83, 11.0):
        count = runs_needed(spread)
        assert half_width(spread, count) <= 1.0
        assert count == 2 or half_width(spread, count - 1) > 1.0
    # Student's interval of [70, 72, 74]: 4.303 * 2 / sqrt(3).
    values = [70.0, 72.0, 74.0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert 2 * half_width(2.0, 3) == pytest.approx(high - low)


def test_the_range_of_few_runs_holds_the_median_this_often() -> None:
    draws = RANDOM.normal(size=(20_000, 3))
    held = np.mean((draws.min(axis=1) <= 0) & (draws.max(axis=1) >= 0))
    assert held == pytest.approx(range_holds(3), abs=0.01) and range_holds(1) == 0.0


@pytest.mark.parametrize("tasks", range(2, 10))
def test_balanced_orders_are(tasks: int) -> None:
    orders = [balanced_order(tasks, number) for number in range(balanced_count(tasks))]
    assert orders[0] == list(range(tasks))  # the given one
    assert all(sorted(order) == list(range(tasks)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    assert unevenness(orders) == (0, 0)
    assert unevenness(orders[:tasks])[0] == 0  # a Latin square
    assert unevenness(orders[:-1]) != (0, 0)
    assert arrangement(tasks + 1, 1, fixed=1) == [0, *(1 + place for place in orders[1])]
    assert arrangement(tasks, None) == list(range(tasks))
