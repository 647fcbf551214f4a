"""Runs joined into tables: mean and spread over seeds, grouped by everything else that differs between them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cl_runner.config import NOT_IDENTITY
from cl_runner.matrix import FORMULAS, formula_of, headline
from cl_runner.report.ability import CHANGE, OWN, change_formula, changes, own, signed
from cl_runner.report.costs import COSTS, cost_text, costs
from cl_runner.report.folder import Run

NAMES = ("task_order", "backbone", "method", "protocol")
STANDARD = "standard"
RETRIEVAL = "retrieval_accuracy/slm"
#: What the long table shows, in this order.
METRICS = (
    "union_accuracy",
    "average_accuracy",
    "forgetting/chaudhry18",
    "bwt/gem",
    "first_task/after_first",
    "first_task/last",
    "plasticity/diagonal",
    RETRIEVAL,
    *COSTS,
)
AFTER_K = "forgetting/slm_after_"
#: Keys that the protocol's name tells.
_PROTOCOL = ("evaluation.sampling", "evaluation.scoring", "evaluation.answer_slice", "evaluation.labels")
#: Which choice explains a key's value: a key below it is no column of its own while the choice's name says it all.
_EXPLAINS = {"task_order": "task_order", "task": "task_order", "backbone": "backbone", "method": "method"}


def known_metrics(groups: Sequence[Group]) -> list[str]:
    """Every name that `--metric` takes: every formula's, the costs', and what only some runs have."""
    found = dict.fromkeys(name for group in groups for run in group.runs for name in values_of(run))
    numbered = [name for name in found if name.startswith((AFTER_K, CHANGE, OWN))]
    return [*(name for name in FORMULAS if not name.startswith(AFTER_K)), *numbered, *COSTS]


def headline_of(groups: Sequence[Group]) -> str:
    """The number that all runs can be compared by."""
    return headline(set.intersection(*(set(run.metrics) for group in groups for run in group.runs)))


def definition_of(metric: str) -> str:
    """What a metric's number is."""
    if metric.startswith((CHANGE, OWN)):
        return change_formula(metric)
    return COSTS.get(metric) or formula_of(metric)


def names_of(run: Run) -> dict[str, str]:
    """Task order, backbone, method and evaluation protocol as a table's reader sees them.

    A bound is an order in the configuration, `fdu_mtl+joint`, but a column of the paper's tables: it is named as a
    method here, over the same order.
    """
    order, method = run.task_order, run.method
    bounds = [bound for key, bound in (("joint", "joint"), ("restart", "single_task")) if run.config["task_order"][key]]
    for bound in bounds:
        order = "+".join(part for part in order.split("+") if part != bound)
        method = bound if method == "seq_ft" else f"{method}, {bound}"
    protocol = ", ".join(run.marks) or STANDARD
    return {"task_order": order, "backbone": run.backbone, "method": method, "protocol": protocol}


def values_of(run: Run) -> dict[str, float]:
    """All numbers of a run: derived from its matrix, the change of general ability, and its costs."""
    return run.metrics | changes(run) | own(run) | costs(run)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _identity(run: Run) -> dict[str, Any]:
    """Everything a configuration says about what is computed, but seed and protocol, by dotted key."""
    ignored = {*NOT_IDENTITY, "seed"}
    keys = {key: value for key, value in _flat(run.config) if key.split(".")[0] not in ignored}
    root = str(run.config["data_root"])
    return {
        key: value.replace(f"{root}/", "${data_root}/") if isinstance(value, str) and value.startswith(root) else value
        for key, value in keys.items()
        if not key.startswith(("hardware.slurm", *_PROTOCOL))
    }


def varying_keys(runs: Sequence[Run]) -> list[str]:
    """Dotted configuration keys that differ between runs beyond what order, backbone and method names say."""
    identities = [_identity(run) for run in runs]
    names = [names_of(run) for run in runs]
    found = []
    for key in dict.fromkeys(key for identity in identities for key in identity):
        values = [repr(identity.get(key)) for identity in identities]
        if len(set(values)) == 1 or key in ("task_order.joint", "task_order.restart"):
            continue
        choice = _EXPLAINS.get(key.split(".")[0])
        explained = choice and len({(name[choice], value) for name, value in zip(names, values, strict=True)}) == len(
            {name[choice] for name in names}
        )
        if not explained:
            found.append(key)
    return found


def axis_text(value: Any) -> str:
    """A configuration value in a table's margin."""
    text = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    axes: dict[str, Any]  # task_order, backbone, method and the varying keys
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        """In ascending order."""
        return sorted(run.seed for run in self.runs)

    def values(self, metric: str) -> list[float]:
        """The metric of every run that has it."""
        return [value for run in self.runs if (value := values_of(run).get(metric)) is not None]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by everything but the seed: names in order of first appearance, numbers that vary in ascending order.

    Raises:
        ValueError: one run is there twice (a copied folder), so that its seed would count double.
    """
    keys = varying_keys(runs)
    groups: dict[str, Group] = {}
    for run in runs:
        identity = _identity(run)
        axes = {**names_of(run), **{key: identity.get(key) for key in keys}}
        group = groups.setdefault(repr(axes), Group(axes, []))
        twin = next((other for other in group.runs if other.seed == run.seed), None)
        if twin:
            raise ValueError(f"{twin.folder} and {run.folder} are the same run; name only one of them")
        group.runs.append(run)
    names = list(dict.fromkeys(tuple(group.axes[key] for key in NAMES) for group in groups.values()))

    def place(group: Group) -> tuple[int, list[tuple[bool, float, str]]]:
        values = [group.axes[key] for key in keys]
        numbers = [
            (not isinstance(v, int | float), float(v) if isinstance(v, int | float) else 0.0, str(v)) for v in values
        ]
        return names.index(tuple(group.axes[key] for key in NAMES)), numbers

    return sorted(groups.values(), key=place)


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation over n runs; the spread of a single run is None."""

    mean: float
    spread: float | None
    count: int


def cell_of(values: Sequence[float]) -> Cell | None:
    """None without values."""
    if not values:
        return None
    return Cell(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def cell_text(metric: str, cell: Cell | None) -> str:
    """`81.62 ± 0.31`; costs in their own units, whose spread says little, as the mean."""
    if cell is None:
        return "-"
    if metric in COSTS:
        return cost_text(metric, cell.mean, unit=False)
    if metric.startswith(CHANGE):
        return signed(cell.mean) + (f" ± {cell.spread:.3g}" if cell.spread is not None else "")
    return f"{cell.mean:.2f}" + (f" ± {cell.spread:.2f}" if cell.spread is not None else "")


#: Column heads of costs that carry a unit.
UNIT_HEADS = {
    "trainable_share/later_tasks": "trainable_share/later_tasks, %",
    "online_seconds/later_tasks": "online_seconds/later_tasks, s",
    "offline_seconds/later_tasks": "offline_seconds/later_tasks, s",
}


@dataclass(frozen=True)
class Table:
    """A table with a title, ready to print; cells are text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    left: int  # columns that name things and are aligned left
    notes: list[str]


def _shown_axes(groups: Sequence[Group]) -> list[str]:
    """What tells the rows of a table apart; the protocol is told by a sign at the method."""
    keys = [key for key in groups[0].axes if key not in ("method", "protocol")]
    differ = [key for key in keys if len({repr(group.axes[key]) for group in groups}) > 1]
    return [key for key in groups[0].axes if key == "method" or key in differ]


def _axis_cells(group: Group, axes: Sequence[str], signs: Mapping[str, str]) -> list[str]:
    sign = signs.get(group.axes["protocol"], "")
    return [axis_text(group.axes[key]) + (sign if key == "method" else "") for key in axes]


def long_table(groups: Sequence[Group]) -> Table:
    """One row per group: what differs, the number of seeds, every metric of `METRICS` that some run has."""
    axes, signs = _shown_axes(groups), protocol_signs(groups)
    ability = [name for name in known_metrics(groups) if name.startswith((CHANGE, OWN))]
    # Of a probe with a number per task the mean is enough here.
    means = tuple(CHANGE + name.removeprefix(OWN) + "/" for name in ability if name.startswith(OWN))
    known = [*METRICS, *(name for name in ability if not name.startswith(means))]
    metrics = [metric for metric in known if any(group.values(metric) for group in groups)]
    rows = [
        [
            *_axis_cells(group, axes, signs),
            str(len(group.runs)),
            *(cell_text(metric, cell_of(group.values(metric))) for metric in metrics),
        ]
        for group in groups
    ]
    told = (*axes, "protocol")
    fixed = ", ".join(f"{key} {groups[0].axes[key]}" for key in NAMES if key not in told)
    notes = ["mean ± sample standard deviation over n seeds; scores in %, forgetting and transfer in points"]
    if any(metric.startswith(CHANGE) for metric in metrics):
        notes.append(f"{CHANGE}: general ability after the last task minus before the first, in the probe's unit")
    if any(metric.startswith(OWN) for metric in metrics):
        notes.append(f"{OWN}: mean over tasks of a probe's number for each task right after it was learned")
    notes += protocol_notes(groups, signs)
    title = "All runs" + (f": {fixed}" if fixed else "")
    return Table(title, [*axes, "n", *(UNIT_HEADS.get(m, m) for m in metrics)], rows, len(axes), notes)


def table_shape(groups: Sequence[Group], rows_key: str, column_key: str, metric: str) -> Table:
    """A pivot: `rows_key` down, `column_key` across, mean and spread of one metric, and the mean of each full column.

    Args:
        groups: of `group_runs`.
        rows_key, column_key: task_order, backbone, method, or a dotted configuration key.

    Raises:
        ValueError: a key or metric is unknown, or a cell would mix runs that differ in something else.
    """
    check_axis(groups, rows_key)
    check_axis(groups, column_key)
    check_metric(groups, metric)
    cells: dict[tuple[str, str], Group] = {}
    for group in groups:
        place = axis_text(_axis(group, rows_key)), axis_text(_axis(group, column_key))
        if place in cells:
            other = cells[place].axes
            differs = [key for key, value in group.axes.items() if value != other[key]]
            raise ValueError(
                f"the cell {rows_key} {place[0]}, {column_key} {place[1]} would mix runs that differ in "
                f"{', '.join(differs)}. Type --columns {differs[0]}, or name fewer folders."
            )
        cells[place] = group
    down, across = list(dict.fromkeys(p[0] for p in cells)), list(dict.fromkeys(p[1] for p in cells))
    if all(isinstance(_axis(group, column_key), int | float) for group in groups):
        across.sort(key=float)
    numbers = {place: cell_of(group.values(metric)) for place, group in cells.items()}
    apart = {} if "protocol" in (rows_key, column_key) else protocol_signs(groups)
    signs = {place: apart.get(group.axes["protocol"], "") for place, group in cells.items()}
    rows = [
        [row, *(cell_text(metric, numbers.get((row, column))) + signs.get((row, column), "") for column in across)]
        for row in down
    ]
    if len(down) > 1:
        means = []
        for column in across:
            full = [cell.mean for row in down if (cell := numbers.get((row, column)))]
            alike = len({signs.get((row, column)) for row in down}) == 1  # protocols are not averaged
            whole = alike and len(full) == len(down)
            means.append(cell_text(metric, cell_of([float(np.mean(full))] if whole else [])))
        rows.append(["mean", *means])
    counts = sorted({cell.count for cell in numbers.values() if cell})
    seeds = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1])))) if counts else "0"
    notes = [f"mean ± sample standard deviation, n = {seeds}; {metric} = {definition_of(metric)}"]
    notes += protocol_notes(groups, apart)
    for key in groups[0].axes:
        values = {repr(group.axes[key]) for group in groups}
        if key not in (rows_key, column_key, "protocol") and len(values) > 1:
            notes.append(_also_differs(groups, key, column_key))
    return Table(f"{UNIT_HEADS.get(metric, metric)}: {rows_key} by {column_key}", [rows_key, *across], rows, 1, notes)


def _also_differs(groups: Sequence[Group], key: str, column_key: str) -> str:
    by_value: dict[str, list[str]] = {}
    for group in groups:
        by_value.setdefault(axis_text(group.axes[key]), []).append(axis_text(_axis(group, column_key)))
    parts = [f"{value} for {', '.join(dict.fromkeys(columns))}" for value, columns in by_value.items()]
    return f"also differs: {key} is {'; '.join(parts)}"


def _axis(group: Group, key: str) -> Any:
    return group.axes[key] if key in group.axes else _identity(group.runs[0]).get(key)


def check_axis(groups: Sequence[Group], key: str) -> None:
    """A row or column key exists in some run, or a ValueError names the nearest one."""
    known = list(dict.fromkeys([*NAMES, *(k for group in groups for k in _identity(group.runs[0]))]))
    if key not in known:
        raise ValueError(f"no run has the key {key!r}.{_nearest(key, known)}")


def check_metric(groups: Sequence[Group], metric: str) -> None:
    """A metric's name is one of `known_metrics`, or a ValueError lists them."""
    known = known_metrics(groups)
    if metric not in known:
        raise ValueError(f"there is no metric {metric!r}; known: {', '.join(known)}.{_nearest(metric, known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    from cl_runner.overrides import nearest

    close = nearest(name, known)
    return f" Nearest: {close}. Type: {close}" if close else ""


def protocol_signs(groups: Sequence[Group]) -> dict[str, str]:
    """Protocol -> the sign that its numbers carry, where runs differ in it; none for the standard one."""
    protocols = list(dict.fromkeys(str(group.axes["protocol"]) for group in groups))
    marked = [protocol for protocol in protocols if protocol != STANDARD]
    return {protocol: " " + "†" * count for count, protocol in enumerate(marked, 1)} if len(protocols) > 1 else {}


def protocol_notes(groups: Sequence[Group], signs: Mapping[str, str]) -> list[str]:
    """What the signs of `protocol_signs` mean, or the one protocol of all runs unless it is the standard one."""
    if signs:
        return [f"{sign.strip()} not the standard protocol: {protocol}" for protocol, sign in signs.items()]
    protocols = {str(group.axes["protocol"]) for group in groups}
    return (
        [f"not the standard protocol: {protocols.pop()}"] if len(protocols) == 1 and STANDARD not in protocols else []
    )


def forgetting_table(groups: Sequence[Group]) -> Table | None:
    """Forgetting after k tasks (SLM's table), a row per group; None where no run has three tasks."""
    names = list(
        dict.fromkeys(n for group in groups for run in group.runs for n in run.metrics if n.startswith(AFTER_K))
    )
    if len(names) < 2:
        return None
    names.sort(key=lambda name: int(name.removeprefix(AFTER_K)))
    axes, signs = _shown_axes(groups), protocol_signs(groups)
    rows = [
        [*_axis_cells(group, axes, signs), *(cell_text(n, cell_of(group.values(n))) for n in names)] for group in groups
    ]
    notes = [f"{AFTER_K}k = {formula_of(names[0])}", *protocol_notes(groups, signs)]
    header = [*axes, *(f"after {name.removeprefix(AFTER_K)}" for name in names)]
    return Table("Forgetting after k tasks, points", header, rows, len(axes), notes)


def retrieval_table(groups: Sequence[Group]) -> Table | None:
    """Retrieval accuracy by task after the last one (SLM, table 12), a row per group; None where no run has it."""
    chosen = [group for group in groups if any(run.retrieval_accuracy for run in group.runs)]
    if not chosen:
        return None
    found = [[run.retrieval_accuracy for run in group.runs] for group in chosen]
    tasks = list(dict.fromkeys(task for runs in found for percent in runs for task in percent))
    axes, signs = _shown_axes(groups), protocol_signs(groups)
    rows = []
    for group, runs in zip(chosen, found, strict=True):
        by_task = [[percent[task] for percent in runs if task in percent] for task in tasks]
        cells = [cell_text(RETRIEVAL, cell_of(values)) for values in [*by_task, group.values(RETRIEVAL)]]
        rows.append([*_axis_cells(group, axes, signs), *cells])
    notes = [f"mean: {RETRIEVAL} = {formula_of(RETRIEVAL)}", *protocol_notes(groups, signs)]
    return Table("Retrieval accuracy by task, %", [*axes, *tasks, "mean"], rows, len(axes), notes)


def paper_tables(groups: Sequence[Group], metric: str) -> list[Table]:
    """PE's Table 1 (order by method) and Table 2 (order by fraction), where the runs vary in those axes.

    A shape whose cells would mix runs is left out: the long table has them apart.
    """
    tables = []
    for title, column_key in (("PE table 1", "method"), ("PE table 2", "method.pe.fraction")):
        chosen = [group for group in groups if _axis(group, column_key) is not None]
        columns = {repr(_axis(group, column_key)) for group in chosen}
        orders = {group.axes["task_order"] for group in chosen}
        if len(columns) < 2 or (column_key == "method" and len(orders) < 2):
            continue
        try:
            table = table_shape(chosen, "task_order", column_key, metric)
        except ValueError:
            continue
        tables.append(Table(f"{title}, {table.title}", table.header, table.rows, table.left, table.notes))
    return tables


def all_tables(groups: Sequence[Group], metric: str | None = None) -> list[Table]:
    """Every table that the runs can fill; `metric` is that of the papers' shapes."""
    shapes = paper_tables(groups, metric or headline_of(groups))
    others = [table for table in (forgetting_table(groups), retrieval_table(groups)) if table]
    return [long_table(groups), *shapes, *others]


def label_of(group: Group, groups: Sequence[Group]) -> str:
    """What tells a group apart from the others, for a legend: the method, and more only where that is not enough."""
    sign = protocol_signs(groups).get(group.axes["protocol"], "")
    if len({group.axes["method"] for group in groups}) == len(groups):
        return f"{group.axes['method']}{sign}"
    told = ("method", "protocol")
    apart = [key for key in group.axes if key not in told and len({repr(g.axes[key]) for g in groups}) > 1]
    parts = [f"{key.rpartition('.')[2]} {axis_text(group.axes[key])}" for key in apart if group.axes[key] is not None]
    return ", ".join([str(group.axes["method"]), *parts]) + sign


def as_csv(groups: Sequence[Group]) -> str:
    """One line per group with exact numbers: axes, n, seeds, and mean and spread of every metric."""
    axes = list(groups[0].axes)
    metrics = [metric for metric in known_metrics(groups) if any(group.values(metric) for group in groups)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*axes, "n", "seeds", *(f"{m} {what}" for m in metrics for what in ("mean", "std"))])
    for group in groups:
        numbers: list[str] = []
        for metric in metrics:
            cell = cell_of(group.values(metric))
            numbers += ["", ""] if cell is None else [repr(cell.mean), "" if cell.spread is None else repr(cell.spread)]
        seeds = " ".join(map(str, group.seeds))
        texts = [v if key == "protocol" else axis_text(v) for key, v in group.axes.items()]
        writer.writerow([*texts, len(group.runs), seeds, *numbers])
    return text.getvalue()


def table_csv(table: Table) -> str:
    """A table's cells as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.rows])
    return text.getvalue()


def as_markdown(table: Table) -> str:
    """A table with its title and notes in Markdown."""
    lines = [f"### {table.title}", "", "| " + " | ".join(table.header) + " |"]
    lines.append("|" + "|".join("---" if place < table.left else "--:" for place in range(len(table.header))) + "|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join([*lines, "", *table.notes, ""])
