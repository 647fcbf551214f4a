"""Settings of a design compared by one number: intervals, paired tests, letters, ranks, how many runs it would take."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cl_runner.intervals import interval
from cl_runner.matrix import Floats
from cl_runner.parts import probe_spec
from cl_runner.registry import known
from cl_runner.report.ability import CHANGE, OWN
from cl_runner.report.costs import COSTS
from cl_runner.report.design import Block, Design, Numbers, Setting
from cl_runner.report.folder import Run
from cl_runner.statistics.bootstrap import hierarchical, mean_of, over_examples
from cl_runner.statistics.paired import LEVEL, agreement, flip_p_values, flips_of, friedman, holm, letters, ranks
from cl_runner.statistics.spread import half_width, runs_needed


@dataclass(frozen=True)
class Summary:
    """One setting: of a single run there is no interval.

    Attributes:
        label: of the setting.
        runs, orders: how many.
        mean: over orders of the mean over seeds.
        bounds: the 95 % interval of the hierarchical bootstrap.
        by_runs: half of Student's 95 % interval over runs.
        by_examples: half of the interval that draws of test examples alone leave; None where they are not known.
        needed: runs of which `by_runs` would be one point, at this spread.
        letters: settings that share one are not told apart.
    """

    label: str
    runs: int
    orders: int
    mean: float
    bounds: tuple[float, float] | None
    by_runs: float | None
    by_examples: float | None
    needed: int | None
    letters: str = ""


@dataclass(frozen=True)
class Pair:
    """Two settings over the runs that both have: the first minus the second."""

    first: str
    second: str
    runs: int
    difference: float
    bounds: tuple[float, float] | None
    p_value: float
    adjusted: float  # Holm's, over all pairs of the comparison
    needed: int | None

    @property
    def apart(self) -> bool:
        """Whether the two differ, at 5 % for all pairs together."""
        return self.adjusted <= LEVEL


@dataclass(frozen=True)
class Ranking:
    """Ranks over orders [orders, settings], 1 = the best, of the settings that have runs over all of them."""

    orders: list[str]
    labels: list[str]
    ranks: Floats
    agreement: float | None  # Kendall's W


@dataclass(frozen=True)
class Comparison:
    """All settings of a design that have a number, the best first.

    Attributes:
        friedman: statistic and p-value over the runs that all settings share, and how many those are.
    """

    metric: str
    settings: list[Summary]
    pairs: list[Pair]
    ranking: Ranking | None
    friedman: tuple[float, float, int] | None

    @property
    def examples(self) -> bool:
        """Whether intervals are over test examples as well."""
        return any(one.by_examples is not None for one in self.settings)


def lower_is_better(metric: str) -> bool:
    """Whether less of a number is better."""
    if metric.startswith((CHANGE, OWN)):
        name = metric.removeprefix(CHANGE).removeprefix(OWN)
        probe = name.partition("/")[0]
        return name.endswith("perplexity") or (probe in known("probes") and not probe_spec(probe).higher_is_better)
    return metric.startswith("forgetting/") or metric in COSTS


def compare(design: Design, metric: str, numbers: Numbers) -> Comparison | None:
    """The settings of a design by one number; None where no setting has it."""
    having = [
        Setting(setting.label, {b: run for b, run in setting.runs.items() if numbers.value(run, metric) is not None})
        for setting in design.settings
    ]
    having = [setting for setting in having if setting.runs]
    if not having:
        return None
    lower = lower_is_better(metric)
    blocks = [_values(setting, metric, numbers) for setting in having]
    means = [mean_of(list(_by_order(found).values())) for found in blocks]
    order = sorted(range(len(having)), key=lambda place: means[place] if lower else -means[place])
    having, blocks = [having[place] for place in order], [blocks[place] for place in order]
    means = [means[place] for place in order]
    pairs = _pairs(having, blocks, metric, numbers)
    labels = [setting.label for setting in having]
    apart = {(labels.index(pair.first), labels.index(pair.second)) for pair in pairs if pair.apart}
    settings = [
        _summary(setting, found, mean, letter, metric, numbers)
        for setting, found, mean, letter in zip(having, blocks, means, letters(len(having), apart), strict=True)
    ]
    shared = _shared(blocks)
    over_all = friedman([np.array([found[block] for block in shared]) for found in blocks])
    return Comparison(
        metric,
        settings,
        pairs,
        _ranking(labels, blocks, lower),
        None if over_all is None else (*over_all, len(shared)),
    )


Values = dict[Block, float]


def _values(setting: Setting, metric: str, numbers: Numbers) -> Values:
    found = {block: numbers.value(run, metric) for block, run in setting.runs.items()}
    return {block: value for block, value in found.items() if value is not None}


def _by_order(values: Values) -> dict[str, Floats]:
    """[seeds] of each order."""
    orders = dict.fromkeys(order for order, _ in values)
    return {order: np.array([value for (own, _), value in values.items() if own == order]) for order in orders}


def _shared(blocks: Sequence[Values]) -> list[Block]:
    """The orders and seeds that all have."""
    return [block for block in blocks[0] if all(block in found for found in blocks)]


def _drawn(runs: Sequence[Block], columns: Sequence[Floats]) -> list[Floats]:
    """[seeds, draws] of each order, from [draws] or [1] of each run."""
    orders = dict.fromkeys(order for order, _ in runs)
    wide = np.broadcast_arrays(*columns)
    return [np.stack([each for (own, _), each in zip(runs, wide, strict=True) if own == order]) for order in orders]


def _bounds(drawn: Sequence[Floats]) -> tuple[float, float]:
    low, high = interval(hierarchical(drawn))
    return float(low), float(high)


def bounds_of(runs: Mapping[Block, Run], metric: str, numbers: Numbers) -> tuple[float, float] | None:
    """The 95 % interval of the mean of a number over runs; None of fewer than two that have it."""
    having = {block: run for block, run in runs.items() if numbers.value(run, metric) is not None}
    if len(having) < 2:
        return None
    return _bounds(_drawn(list(having), [numbers.drawn(run, metric) for run in having.values()]))


def _summary(setting: Setting, values: Values, mean: float, letter: str, metric: str, numbers: Numbers) -> Summary:
    count, orders = len(values), len({order for order, _ in values})
    if count < 2:
        return Summary(setting.label, count, orders, mean, None, None, None, None, letter)
    drawn = _drawn(list(values), [numbers.drawn(setting.runs[block], metric) for block in values])
    examples = over_examples(drawn)
    low, high = interval(examples)
    spread = float(np.std(list(values.values()), ddof=1))
    return Summary(
        setting.label,
        count,
        orders,
        mean,
        _bounds(drawn),
        half_width(spread, count),
        float(high - low) / 2 if len(examples) > 1 else None,
        runs_needed(spread),
        letter,
    )


def _pairs(settings: Sequence[Setting], blocks: Sequence[Values], metric: str, numbers: Numbers) -> list[Pair]:
    """Every two settings that share two runs or more."""
    by_runs: dict[tuple[Block, ...], list[tuple[int, int]]] = {}
    for one, other in itertools.combinations(range(len(settings)), 2):
        shared = _shared([blocks[one], blocks[other]])
        if len(shared) > 1:
            by_runs.setdefault(tuple(shared), []).append((one, other))
    found: dict[tuple[int, int], tuple[list[Block], Floats, float]] = {}
    tests = sum(map(len, by_runs.values()))
    for runs, places in by_runs.items():
        shared = list(runs)
        differences = np.array(
            [[blocks[one][block] - blocks[other][block] for one, other in places] for block in shared]
        )
        orders = [order for order, _ in shared]
        weights = np.array([1 / (len(set(orders)) * orders.count(order)) for order in orders])
        p_values = flip_p_values(differences, weights, flips_of(tests))
        for column, place in enumerate(places):
            found[place] = (shared, differences[:, column], float(p_values[column]))
    tested = sorted(found)
    adjusted = holm(np.array([found[place][2] for place in tested]))
    pairs = []
    for place, corrected in zip(tested, adjusted, strict=True):
        shared, differences, p_value = found[place]
        first, second = (settings[each] for each in place)
        columns = [numbers.drawn(first.runs[b], metric) - numbers.drawn(second.runs[b], metric) for b in shared]
        values = dict(zip(shared, differences, strict=True))
        pairs.append(
            Pair(
                first.label,
                second.label,
                len(shared),
                mean_of(list(_by_order(values).values())),
                _bounds(_drawn(shared, columns)),
                p_value,
                float(corrected),
                runs_needed(float(np.std(differences, ddof=1))),
            )
        )
    return pairs


def _ranking(labels: Sequence[str], blocks: Sequence[Values], lower: bool) -> Ranking | None:
    """Ranks of the settings over all orders, of those that have them all; None of fewer than two settings or orders."""
    means = [{order: float(values.mean()) for order, values in _by_order(found).items()} for found in blocks]
    orders = list(dict.fromkeys(order for found in means for order in found))
    whole = [place for place, found in enumerate(means) if len(found) == len(orders)]
    if len(whole) < 2 or len(orders) < 2:
        return None
    ranked = ranks(np.array([[means[place][order] for place in whole] for order in orders]), lower)
    return Ranking(orders, [labels[place] for place in whole], ranked, agreement(ranked))
