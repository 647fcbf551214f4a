"""chosen.json beside the test runs: what was tried, by which rule one try was chosen, and whether it is what ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.choosing.choice import Choice, Criterion
from cl_runner.digests import Damaged, replace_file, sealed, unsealed
from cl_runner.report.folder import Run
from cl_runner.report.grouping import axis_text, flat, names_of
from cl_runner.report.text_table import Table

CHOSEN = "chosen.json"


def content(choices: Sequence[Choice], criterion: Criterion) -> dict[str, Any]:
    """What chosen.json holds."""
    runs = [run for choice in choices for one in choice.tries for run in one.runs]
    return {
        "rule": criterion.text,
        "by": criterion.by,
        "first": criterion.first,
        "orders": list(dict.fromkeys(names_of(run)["task_order"] for run in runs)),
        "seeds": sorted({run.seed for run in runs}),
        "methods": [
            {
                "backbone": choice.backbone,
                "method": choice.method,
                "protocol": choice.protocol,
                "chosen": choice.best.values,
                "tries": [{"values": one.values, "value": one.value, "runs": len(one.runs)} for one in choice.tries],
            }
            for choice in choices
        ],
    }


def write_record(root: Path, choices: Sequence[Choice], criterion: Criterion) -> list[str]:
    """Write `root`/chosen.json.

    Returns:
        A line for each method of which an earlier record there said something else.
    """
    path, new = root / CHOSEN, content(choices, criterion)
    said = []
    if path.is_file():
        old = read_record(path)
        before = {(each["backbone"], each["method"]): each["chosen"] for each in old["methods"]}
        for each in new["methods"]:
            chosen = before.get((each["backbone"], each["method"]), each["chosen"])
            if chosen != each["chosen"]:
                said.append(
                    f"{path} said of {each['method']} on {each['backbone']}: {values_text(chosen)}; now: "
                    f"{values_text(each['chosen'])}. Test runs with the old values are not of this choice"
                )
    root.mkdir(parents=True, exist_ok=True)
    replace_file(path, sealed(new))
    return said


def read_record(path: Path) -> dict[str, Any]:
    """What a chosen.json says.

    Raises:
        Damaged: it is not what `choose` wrote.
    """
    found = unsealed(path)
    if not isinstance(found.get("methods"), list) or not isinstance(found.get("rule"), str):
        raise Damaged(path, "is not what the command choose writes")
    return found


def values_text(values: Mapping[str, Any]) -> str:
    """`method.pe.learning_rate=0.003`; of a method with a single try what it is."""
    return ", ".join(f"{key}={axis_text(value)}" for key, value in values.items()) or "as it is"


def records_of(runs: Sequence[Run]) -> dict[Path, dict[str, Any]]:
    """The records in the roots below which runs lie.

    Raises:
        Damaged: one of them is.
    """
    roots = dict.fromkeys(parents[3] for run in runs if len(parents := run.folder.resolve().parents) > 3)
    return {root: read_record(root / CHOSEN) for root in roots if (root / CHOSEN).is_file()}


def chosen_tables(runs: Sequence[Run]) -> list[Table]:
    """For each record what was tried and chosen, and how many of the runs are of that choice; test runs alone."""
    tables = []
    for root, record in records_of(runs).items():
        below = [run for run in runs if root in run.folder.resolve().parents]
        tables.append(_table(record, below))
    return tables


def _table(record: Mapping[str, Any], runs: Sequence[Run]) -> Table:
    rows, named = [], set()
    for each in record["methods"]:
        names = (each["backbone"], each["method"])
        named.add(names)
        own = [run for run in runs if (run.backbone, names_of(run)["method"]) == names]
        alike = [run for run in own if _has(run, each["chosen"])]
        used = f"{len(alike)} of {len(own)} runs" if own else "no runs"
        best = next((one for one in each["tries"] if one["values"] == each["chosen"]), {"value": float("nan")})
        others = "; ".join(
            f"{values_text(one['values'])}: {one['value']:.2f}" for one in each["tries"] if one is not best
        )
        rows.append(
            [each["method"], str(len(each["tries"])), values_text(each["chosen"]), f"{best['value']:.2f}", others, used]
        )
    counts = {len(each["tries"]) for each in record["methods"]}
    notes = [
        f"chosen on validation examples by {record['rule']}, mean over orders {', '.join(record['orders'])} and seeds "
        f"{', '.join(map(str, record['seeds']))}"
    ]
    notes.append(
        "as many tries of every method"
        if len(counts) == 1
        else f"UNEQUAL numbers of tries, {min(counts)} to {max(counts)}: the more tries, the better the best one looks"
    )
    unnamed = sorted({names_of(run)["method"] for run in runs if (run.backbone, names_of(run)["method"]) not in named})
    if unnamed:
        notes.append(f"nothing was chosen for {', '.join(unnamed)}")
    header = ["method", "tries", "chosen", "validation", "others", "used by"]
    return Table(header, rows, "Settings chosen on validation examples", 1, notes, long=4)


def _has(run: Run, values: Mapping[str, Any]) -> bool:
    """Whether a run has the chosen values, and is scored on test examples."""
    if run.config.get("evaluation", {}).get("split", "test") != "test":
        return False
    found = dict(flat(run.config))
    return all(found.get(key) == value for key, value in values.items())
