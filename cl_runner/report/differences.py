"""Tables of several runs' intervals, and of which differences between settings are none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cl_runner.intervals import DRAWS
from cl_runner.report.ability import CHANGE, signed
from cl_runner.report.comparison import Comparison, Summary, compare
from cl_runner.report.costs import COSTS, cost_text
from cl_runner.report.design import Block, Design, Numbers, Setting, designs_of
from cl_runner.report.folder import Run
from cl_runner.report.grouping import Group
from cl_runner.report.text_table import Table
from cl_runner.statistics.paired import LEVEL, flips_of, smallest_p
from cl_runner.statistics.spread import WITHIN, range_holds

#: What is compared beside the headline: what was forgotten, and what was learned.
BESIDE = ("forgetting/chaudhry18", "plasticity/diagonal")
#: Pairs that a table lists; of more those of neighbours alone.
LISTED = 45
#: Columns of tables whose rows are settings.
INTERVAL, LETTERS = "95 % interval", "alike"


def number_text(metric: str, value: float) -> str:
    """A number as tables over several runs show it, without its unit."""
    if metric in COSTS:
        return cost_text(metric, value, unit=False)
    return signed(value) if metric.startswith(CHANGE) else f"{value:.2f}"


def bounds_text(metric: str, bounds: tuple[float, float] | None) -> str:
    """`80.10 to 83.25`, or `-` where there is no interval."""
    return "-" if bounds is None else " to ".join(number_text(metric, bound) for bound in bounds)


def letters_text(found: Comparison, summary: Summary) -> str:
    """A setting's letters; `-` where no pair of the comparison was tested."""
    return summary.letters if found.pairs else "-"


def interval_note(runs: Sequence[int], examples: bool = True) -> str:
    """What the intervals of settings with so many runs each are, and how far they are to be believed.

    Args:
        examples: whether test examples are drawn as well.
    """
    several = sorted({count for count in runs if count > 1})
    if not several:
        return "one run each: no interval over runs, and no test. Another seed is another run: seed=0,1,2"
    held = ", ".join(f"{100 * range_holds(count):.3g} % of {count}" for count in several if count < 8)
    drawn = "orders, seeds and test examples" if examples else "orders and seeds, not over test examples"
    said = f"{INTERVAL}: bootstrap over {drawn}, {DRAWS:,} draws; - of a single run"
    if held:
        said += f". Of few runs it is too narrow: their range holds the true median with {held} runs"
    return said


def letters_note(found: Comparison) -> str:
    """How settings were told apart, and whether so few runs could have told any."""
    if not found.pairs:
        return "no two settings share two runs: differences are not tested"
    counts = sorted({pair.runs for pair in found.pairs})
    shared = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    tests = len(found.pairs)
    flips = flips_of(tests)
    pairs = f"{tests} pair{'s' * (tests > 1)}"
    said = (
        f"{LETTERS}: settings that share a letter are not told apart by paired permutation tests over n = {shared} "
        f"runs with the same order and seed (up to {flips:,} flips), Holm over {pairs}, "
        f"{100 * LEVEL:g} % in all"
    )
    least = smallest_p(counts[-1], flips)
    if least * tests > LEVEL:
        enough = 1 + math.ceil(math.log2(tests / LEVEL))
        said += (
            f". With n = {counts[-1]} the smallest p is {least:.3g}: no such difference can be told, however large; "
            f"{pairs} would take n = {enough}. Fewer settings are fewer pairs: --where method=NAME,NAME"
        )
    return said


def settings_table(found: Comparison, title: str, notes: Sequence[str], brief: bool = False) -> Table:
    """A row per setting, the best first: mean, interval, what it is made of, letters, rank, runs it would take.

    Args:
        brief: another table beside it says what the columns are.
    """
    ranked = found.ranking
    ranks = {} if ranked is None else dict(zip(ranked.labels, ranked.ranks.mean(axis=0), strict=True))
    header = ["method", "n", "mean", INTERVAL, "± runs", "± examples", LETTERS]
    header += ["rank"] if ranked is not None else []
    header.append(f"runs for ± {WITHIN:g}")

    def width(value: float | None) -> str:
        return "-" if value is None else number_text(found.metric, value).lstrip("+")

    rows = []
    for one in found.settings:
        row = [one.label, str(one.runs), number_text(found.metric, one.mean), bounds_text(found.metric, one.bounds)]
        row += [width(one.by_runs), width(one.by_examples), letters_text(found, one)]
        row += [f"{ranks[one.label]:.2f}" if one.label in ranks else "-"] if ranked is not None else []
        rows.append([*row, "-" if one.needed is None else str(one.needed)])
    columns = [
        "mean over orders of the mean over seeds, n = runs",
        interval_note([one.runs for one in found.settings], found.examples),
        "± runs: half of Student's 95 % interval over runs; ± examples: half of that over test examples alone, which "
        "more runs do not narrow",
    ]
    said = [letters_note(found)]
    if found.friedman is not None:
        statistic, p_value, runs = found.friedman
        said.append(
            f"Friedman's test over the {runs} runs that all have: chi-square {statistic:.2f}, p = {p_value:.3g} "
            "(approximate)"
        )
    return Table(header, rows, title, 1, [*([] if brief else columns), *said, *notes])


def pairs_table(found: Comparison, title: str) -> Table | None:
    """A row per pair of settings that share two runs; of many pairs those of neighbours; None where there is none."""
    if not found.pairs:
        return None
    labels = [one.label for one in found.settings]
    near = {frozenset(pair) for pair in itertools.pairwise(labels)}
    many = len(found.pairs) > LISTED
    shown = [pair for pair in found.pairs if not many or {pair.first, pair.second} in near]
    if not shown:
        return None
    rows = [
        [
            pair.first,
            pair.second,
            str(pair.runs),
            _difference(found.metric, pair.difference),
            " to ".join(_difference(found.metric, bound) for bound in pair.bounds or ()),
            f"{pair.p_value:.3g}",
            f"{pair.adjusted:.3g}",
            "yes" if pair.apart else "no",
            str(pair.needed),
        ]
        for pair in shown
    ]
    header = ["first", "second", "n", "difference", INTERVAL, "p", "p, Holm", "apart", f"runs for ± {WITHIN:g}"]
    notes = [
        "first minus second over the n runs that both have, of the same order and seed; the interval is of one pair, "
        "p, Holm of all pairs together"
    ]
    if many:
        notes.append(f"of {len(found.pairs)} pairs those of neighbours; letters tell of all")
    return Table(header, rows, title, 2, notes)


def _difference(metric: str, value: float) -> str:
    text = number_text(metric, value)
    return text if text.startswith(("+", "-")) else f"+{text}"


def ranks_table(found: Comparison, title: str) -> Table | None:
    """A row per setting, its rank over each order; None where fewer than two settings have all orders."""
    ranked = found.ranking
    if ranked is None:
        return None
    rows = [
        [label, *(f"{rank:g}" for rank in ranks), f"{ranks.mean():.2f}", str(int((ranks == 1).sum()))]
        for label, ranks in zip(ranked.labels, ranked.ranks.T, strict=True)
    ]
    notes = ["1 = the best mean over seeds; equal ones share the mean of their ranks"]
    if len(ranked.labels) < len(found.settings):
        others = [one.label for one in found.settings if one.label not in ranked.labels]
        notes.append(f"not over all of these orders, and not ranked: {', '.join(others)}")
    if ranked.agreement is not None:
        notes.append(f"agreement of the orders, Kendall's W: {ranked.agreement:.2f} (1: all rank alike; 0: by chance)")
    return Table(["method", *ranked.orders, "mean", "times first"], rows, title, 1, notes)


def difference_tables(groups: Sequence[Group], metric: str, numbers: Numbers, alone: bool = False) -> list[Table]:
    """For each design with several runs of a setting: settings, pairs and ranks by `metric`, then what stands beside.

    Args:
        alone: leave out what stands beside.
    """
    tables = []
    for design in designs_of(groups):
        found = compare(design, metric, numbers) if design.several else None
        if found is None:
            continue
        where = f"over {', '.join(design.orders)}"
        made = [
            settings_table(found, f"{metric} {where}: intervals and differences", design.notes()),
            pairs_table(found, f"{metric} {where}: differences of pairs"),
            ranks_table(found, f"{metric} {where}: ranks over orders"),
        ]
        for name in BESIDE:
            beside = compare(design, name, numbers) if name != metric and not alone else None
            if beside is not None:
                made.append(settings_table(beside, f"{name} {where}: intervals and differences", (), brief=True))
        tables += [table for table in made if table is not None]
    if tables:
        tables[0].notes.extend(numbers.missing)
    return tables


@dataclass(frozen=True)
class Judged:
    """What stands beside a number of each group of runs: interval and letters within its order."""

    texts: list[tuple[str, str]]
    notes: list[str]


def judged(groups: Sequence[Group], metric: str, numbers: Numbers) -> Judged:
    """Interval and letters of each group; no texts where every group has one run."""
    if all(len(group.runs) < 2 for group in groups):
        return Judged([], [interval_note([1])])
    found: dict[str, tuple[str, str]] = {}
    examples = False
    notes: dict[str, None] = {}
    for design in (whole.over(order) for whole in designs_of(groups) for order in whole.orders):
        comparison = compare(design, metric, numbers)
        if comparison is None:
            continue
        examples |= comparison.examples
        notes[letters_note(comparison)] = None
        texts = {
            one.label: (bounds_text(metric, one.bounds), letters_text(comparison, one)) for one in comparison.settings
        }
        for setting in design.settings:
            if setting.label in texts:
                found |= dict.fromkeys((str(run.folder) for run in setting.runs.values()), texts[setting.label])
    said = [interval_note([len(group.runs) for group in groups], examples), *notes]
    return Judged([found.get(str(group.runs[0].folder), ("-", "-")) for group in groups], said)


def judged_axis(
    groups: Sequence[Group],
    places: Sequence[tuple[str, str]],
    rows_key: str,
    column_key: str,
    metric: str,
    numbers: Numbers,
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Interval and letters of a pivot's rows or columns over task orders, by head and name, and what is said of them.

    Args:
        places: row and column of each group.
    """
    if (rows_key == "task_order") == (column_key == "task_order"):
        return {}, ["intervals, and which differences are none: the same report without --rows and --columns"]
    if len({group.axes["protocol"] for group in groups}) > 1:
        return {}, ["runs of different protocols are not compared: no intervals over orders"]
    if all(len(group.runs) < 2 for group in groups):
        return {}, [interval_note([1])]
    order = int(column_key == "task_order")
    columns: dict[str, dict[Block, Run]] = {}
    for place, group in zip(places, groups, strict=True):
        columns.setdefault(place[1 - order], {}).update({(place[order], run.seed): run for run in group.runs})
    found = compare(Design([Setting(name, runs) for name, runs in columns.items()]), metric, numbers)
    if found is None:
        return {}, []
    told = {
        INTERVAL: {one.label: bounds_text(metric, one.bounds) for one in found.settings},
        LETTERS: {one.label: letters_text(found, one) for one in found.settings},
    }
    said = interval_note([one.runs for one in found.settings], found.examples)
    return told, [f"over all orders, {said}", letters_note(found), *numbers.missing]
