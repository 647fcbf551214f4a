"""A line for each run found, the unfinished and the failed ones among them: the table that a page sorts and filters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cl_runner.report.costs import COSTS, cost_text
from cl_runner.report.folder import Run
from cl_runner.report.grouping import names_of
from cl_runner.report.numbers import values_of
from cl_runner.report.text_table import Table
from cl_runner.report.words import failure

#: Numbers of a line.
NUMBERS = (
    "union_accuracy",
    "average_accuracy",
    "plasticity/diagonal",
    "forgetting/first_minus_last",
    "retained_share",
    "trainable_share/later_tasks",
    "stored_bytes/later_tasks",
    "online_seconds/later_tasks",
)


def runs_table(runs: Sequence[Run], others: Sequence[Run], place: Path) -> Table:
    """Name, state, reason and numbers of each run; numbers of an unfinished one are of the tasks it has done.

    Args:
        others: runs that are unfinished or have failed.
        place: where the page lies, from which folders are named.
    """
    every = [(run, values_of(run)) for run in (*others, *runs)]
    shown = [name for name in NUMBERS if any(name in values for _, values in every)]
    options = [_options(run) for run, _ in every]
    shared = [word for word in options[0] if all(word in own for own in options)]
    entries = []
    for (run, values), own in zip(every, options, strict=True):
        names = names_of(run)
        entries.append(
            {
                **{key: names[key] for key in ("method", "task_order", "backbone")},
                "options": " ".join(word for word in own if word not in shared),
                "seed": str(run.seed),
                "state": run.status,
                "reason": _reason(run),
                "tasks": f"{run.done} of {len(run.tasks)}",
                **{name: _text(name, values.get(name)) for name in shown},
                "folder": os.path.relpath(run.folder, place),
            }
        )
    named = [key for key in ("task_order", "backbone", "options", "reason") if len({e[key] for e in entries}) == 1]
    same = [f"{key} {entries[0][key]}" for key in named if entries[0][key]]
    same += [f"options {' '.join(shared)}"] * bool(shared)
    header = [key for key in entries[0] if key not in named]
    failed, unfinished = ([run.status for run in others].count(status) for status in ("failed", "unfinished"))
    notes = [
        "Every run found: a click on a column's head sorts by it, words choose rows",
        *(f"all have {each}" for each in same),
        *["numbers of a run that is not completed are of the tasks it has done"] * bool(others),
    ]
    beside = "".join(f", {count} {word}" for count, word in ((failed, "failed"), (unfinished, "unfinished")) if count)
    rows = [[entry[key] for key in header] for entry in entries]
    long = header.index("reason") if "reason" in header else None
    return Table(header, rows, f"Runs: {len(runs)} completed{beside}", header.index("state") + 1, notes, long)


def _text(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return cost_text(name, value) if name in COSTS else f"{value:.2f}"


def _options(run: Run) -> list[str]:
    """What was typed beside the choices of method, order, backbone and seed, and the place."""
    known = ("method=", "task_order=", "backbone=", "seed=", "root=", "data_root=", "wandb", "hardware")
    return [text for text in run.overrides if not text.startswith(known)]


def _reason(run: Run) -> str:
    """The last line of what went wrong, or how to go on."""
    if run.status == "failed":
        return "".join(failure(run, 1))[:200] or "not said"
    return "" if run.status == "completed" else "its command goes on with it"
