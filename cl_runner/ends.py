"""The end of a run: derived numbers, report, W&B's tables, the mark that it is done, and the last screen."""

from __future__ import annotations

import math

import numpy as np

from cl_runner import checkpoint
from cl_runner.compose import Request
from cl_runner.evaluate import evaluation_examples
from cl_runner.journal import Journal
from cl_runner.learner import Learner
from cl_runner.matrix import START, headline_column
from cl_runner.prepared import Prepared
from cl_runner.record import tables, write_summary
from cl_runner.tracking.console import Console, duration


def finish(request: Request, parts: Prepared, journal: Journal, learner: Learner, console: Console) -> None:
    """Write and show what a finished run is worth."""
    from cl_runner.report.page import write_run_report  # matplotlib: only when there is something to draw

    config, tasks = request.config, parts.own_tasks
    names = [task.name for task in tasks]
    sizes = {task.name: len(evaluation_examples(task, config.evaluation.split)) for task in tasks}
    summary = write_summary(
        request,
        sizes,
        {task.name: task.scored_by(config.evaluation.scoring) for task in tasks},
        journal.rows,
        journal.details,
        learner.clock,
        journal.changes.weights,
        journal.ability,
    )
    page = write_run_report(request.folder)
    if journal.wandb is not None:
        journal.wandb.summary({**summary["metrics"], "online_seconds": summary["online_seconds"]})
        images = {path.stem: path for path in sorted((request.folder / "plots").glob("*.png"))}
        journal.wandb.tables(["after", *names], *tables(names, journal.rows), images)
    shown = [
        (after, [None if math.isnan(cell) else cell for cell in row])
        for after, row in zip([START, *names], journal.rows, strict=True)
    ]
    weights = list(sizes.values()) if "union_accuracy" in summary["metrics"] else None
    console.matrix(names, shown, headline_column(np.array(journal.rows), weights))
    for name, value in summary["metrics"].items():
        console.line(f"{name} {value:.2f}")
    online = [detail["online_seconds"] for detail in summary["tasks_detail"][1:]]
    console.line(
        f"offline {duration(summary['offline_seconds'])}, online {duration(summary['online_seconds'])}"
        + (f" (each later task at most {duration(max(online))})" if online else "")
    )
    console.line(f"report: {page}")
    checkpoint.replace_file(request.folder / "COMPLETED", "")
    checkpoint.remove(request.folder / "state")
