"""report.html of one run: a single file without scripts or network, made from what lies in the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from cl_runner.digests import Damaged, read_json, read_text
from cl_runner.loss_course import RULE
from cl_runner.matrix import START, forgetting_matrix, formula_of, learned_so_far
from cl_runner.report import plots
from cl_runner.report.ability import APART, DRAWN, changes, describe, own, signed
from cl_runner.report.account import data_tables
from cl_runner.report.atlas import atlas_values
from cl_runner.report.beside import beside_table
from cl_runner.report.costs import (
    answers_table,
    bytes_text,
    certificate_table,
    costs,
    learning_table,
    notes_of,
    planned_tables,
    storage_table,
    time_table,
    turns_table,
    zero_fisher_table,
)
from cl_runner.report.drawing import short
from cl_runner.report.epochs import epoch_values
from cl_runner.report.folder import Run, read_run
from cl_runner.report.forgotten import forgotten
from cl_runner.report.generated import generated_tables
from cl_runner.report.html import render, write
from cl_runner.report.marks import COLUMNS, mark_of
from cl_runner.report.numbers import AFTER_K, RETRIEVALS, definition_of, interval_text, value_text
from cl_runner.report.representations import representations
from cl_runner.report.retrieval import NO_RETRIEVAL, retrieval_values
from cl_runner.report.sections import UNUSABLE, Incomplete, Sections, not_of_a_run
from cl_runner.report.text_table import Table
from cl_runner.report.words import failure, in_words

HEADLINE = (
    "union_accuracy",
    "average_accuracy",
    "forgetting/chaudhry18",
    "bwt/gem",
    "retained_share",
    "first_task/last",
    "plasticity/diagonal",
    *RETRIEVALS,
)


def write_run_report(folder: Path) -> Path:
    """Draw plots/*.png and write report.html of a run that is finished, failed or under way.

    Args:
        folder: the run folder; only its own files are read.

    Returns:
        The path of report.html.

    Raises:
        Incomplete: some files cannot be used; the page is written, and says what it does not show.
        Damaged: a file without which there is no page, such as config.yaml.
    """
    run, sections = read_run(folder), Sections(folder)
    make, none = sections.make, list[Any]()
    beside = make("published runs", "config.yaml", lambda: beside_table(run), None)
    values: dict[str, Any] = {
        "run": run,
        "marks": {column: mark_of(run.access, column) or "no" for column in COLUMNS},
        "failure": make("why it failed", "FAILED", lambda: _failure(run), ""),
        "tiles": make("the headline", "summary.json", lambda: _tiles(run), none),
        "beside": beside,
        "words": make("what happened", "summary.json", lambda: in_words(run, beside), none),
        "scores": make("the matrix", "accuracy.csv", lambda: _scores(run, sections), _NO_SCORES),
        "forgotten": make("what is forgotten", "predictions", lambda: forgotten(run), None),
        "all_metrics": make("all metrics", "metrics.jsonl", lambda: _all_metrics(run), None),
        "data": make("data", "data.json", lambda: data_tables(run), none),
        "ability": make("general ability", "ability.csv", lambda: _ability(run), None),
        "representations": make("texts inside the model", "probes", lambda: representations(run), None),
        "epochs": make("every epoch", "metrics.jsonl", lambda: epoch_values(run), None),
        "fisher": make("importance", "fisher.json", lambda: _fisher(run), None),
        "atlas": make("selections", "masks.json", lambda: atlas_values(run.masks, folder / "plots"), None),
        "retrieval": make("retrieval", "keys.safetensors", lambda: retrieval_values(run), NO_RETRIEVAL),
        "generated": make("examples that the model wrote", "generated", lambda: generated_tables(run), none),
        "costs": make("storage and time", "summary.json", lambda: _costs(run), None),
        "planned": make("plan and measurement", "plan.json", lambda: planned_tables(run), none),
        "losses": make("loss", "metrics.jsonl", lambda: _losses(run), None),
        "notes": make("notes on losses", "summary.json", lambda: notes_of(run.details), none),
        "numbers": make("all numbers", "summary.json", lambda: _numbers(run), None),
        "configuration": read_text(folder / "config.yaml"),
        "environment": json.dumps(run.environment, indent=2, ensure_ascii=False),
    }
    try:
        page = render("run.html.j2", left_out=sections.left_out, **values)
    except (*UNUSABLE, TemplateError) as error:
        raise not_of_a_run(folder, error) from None
    path = write(folder / "report.html", page)
    if sections.left_out:
        raise Incomplete(path, sections.left_out)
    return path


def _failure(run: Run) -> str:
    """The last lines of what went wrong; empty for a run that did not fail."""
    return "\n".join(failure(run, 12)) if run.status == "failed" else ""


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """The numbers that matter most: name, value and its interval."""
    found = {name: run.metrics[name] for name in HEADLINE if name in run.metrics}
    found |= dict(list((changes(run) | own(run)).items())[:4]) | costs(run)
    items = sum((run.test_examples or [])[: run.done])
    tiles = []
    for name, value in found.items():
        bounds = interval_text(run, name)
        note = f"95 % interval {bounds} ({items:,} test items, bootstrap)" if bounds else ""
        tiles.append((name, value_text(name, value), note))
    return tiles


def matrix_table(run: Run) -> Table:
    """The scores in percent on every test set (columns) at the start and after each task; empty if not measured."""
    names = ["start", *(f"after {task}" for task in run.tasks)]
    cells = [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in run.rows]
    rows = [[name, *row] for name, row in zip(names, cells, strict=False)]
    return Table(["", *_columns(run, ", ")], rows)


def _columns(run: Run, between: str) -> list[str]:
    """Names of the test sets; where their metrics differ, each with its own."""
    if run.measure != "score":
        return run.tasks
    return [f"{task}{between}{run.scored_by[task]}" for task in run.tasks]


#: Of a matrix that cannot be shown.
_NO_SCORES: dict[str, Any] = {"matrix": Table([""], []), "holes": False, "banded": False, "drawn": {}}


def _scores(run: Run, sections: Sections) -> dict[str, Any]:
    """The matrix and what follows from it, as far as there are rows."""
    drawn: dict[str, Path] = {}
    values = {"matrix": matrix_table(run), "holes": bool(np.isnan(run.rows).any()), "banded": False, "drawn": drawn}
    folder, tasks = run.folder / "plots", run.tasks
    if run.rows.size:
        drawn["accuracy"] = folder / "accuracy.png"
        plots.accuracy_heat_map(tasks, run.rows, drawn["accuracy"], run.measure, _columns(run, "\n"))
    if run.done:
        bounds = sections.make("the band of the first task", "predictions", lambda: run.first_task_interval, None)
        values["banded"] = bounds is not None
        drawn["first_task"] = folder / "first_task.png"
        curve, label = run.rows[None, 1:, 0], f"{run.scored_by[tasks[0]]} on {short(tasks[0])}"
        plots.lines_over_tasks(tasks, {run.method: curve}, drawn["first_task"], label, bounds)
    if run.done > 1:
        drawn["forgetting"] = folder / "forgetting.png"
        plots.forgetting_heat_map(tasks, forgetting_matrix(run.rows), drawn["forgetting"])
        drawn["learned_so_far"] = folder / "learned_so_far.png"
        seen = {run.method: learned_so_far(run.rows)[None]}
        plots.lines_over_tasks(tasks, seen, drawn["learned_so_far"], f"{run.measure} on tasks so far")
    return values


def _all_metrics(run: Run) -> Table | None:
    """Every metric of every task after the last one, where there is more to see than the matrix shows."""
    scores = {task: run.all_scores[task] for task in run.tasks if task in run.all_scores}
    metrics = list(dict.fromkeys(metric for found in scores.values() for metric in found))
    if not run.done or len(metrics) < 2:
        return None
    rows = [
        [task, run.scored_by[task], *(f"{found[m]:.2f}" if m in found else "" for m in metrics)]
        for task, found in scores.items()
    ]
    return Table(["task", "in the matrix", *metrics], rows, left=2)


def _ability(run: Run) -> dict[str, Any] | None:
    """The retention curve of a run with the values behind it; None without probes."""
    names, rows = run.ability
    places = [place for place, name in enumerate(names) if not name.startswith(APART)]
    names, rows = [names[place] for place in places], rows[:, places]
    if not rows.size:
        return None
    steps, path = [START, *run.tasks], run.folder / "plots" / "ability.png"
    if len(rows) > 1:
        drawn = {describe(name): {run.method: rows[None, :, k]} for k, name in enumerate(names[:DRAWN])}
        plots.ability_lines(steps, drawn, path)
    cells = [
        [after, *(f"{value:.4g} ({signed(value - rows[0, k])})" for k, value in enumerate(row))]
        for after, row in zip(steps, rows, strict=False)
    ]
    table = Table(["after", *map(describe, names)], cells)
    return {"table": table, "numbers": len(names), "drawn": DRAWN, "picture": path if len(rows) > 1 else None}


def _fisher(run: Run) -> dict[str, Any] | None:
    """Where the importance lies; None for a method without it."""
    path = run.folder / "fisher.json"
    if not path.exists():
        return None
    fisher, picture = read_json(path), run.folder / "plots" / "fisher.png"
    count = sum(cell["parameters"] for cell in fisher["layers"])
    if not count:
        raise Damaged(path, "cannot be read (no parameters are in it)")
    plots.fisher_map(fisher["after"], fisher["layers"], picture)
    zero = sum(cell["parameters"] * cell["zero_fraction"] for cell in fisher["layers"])
    return {"parameters": count, "zero_percent": 100 * zero / count, "picture": picture}


def _costs(run: Run) -> dict[str, Any] | None:
    """Storage and time of every task; None while the run is unfinished."""
    if not run.details:
        return None
    drawn = {name: run.folder / "plots" / f"{name}.png" for name in ("storage", "phases")}
    plots.storage_bars(run.details, drawn["storage"])
    plots.phase_bars(run.details, drawn["phases"])
    peak = run.summary.get("peak_memory_mib") or {}
    return {
        "model_bytes": bytes_text(run.details[0]["model_bytes"]),
        "model_parameters": run.details[0]["model_parameters"],
        "storage": storage_table(run.details),
        "answers": answers_table(run.details),
        "certificates": certificate_table(run.details),
        "zeros": zero_fisher_table(run.details),
        "time": time_table(run.details),
        "memory": Table(["phase", "peak memory, MiB"], [[phase, f"{mib:,.0f}"] for phase, mib in peak.items()]),
        "drawn": drawn,
    }


def _losses(run: Run) -> dict[str, Any] | None:
    """The training loss, as a picture, steps x rate by task, loss by turn; None before the first step."""
    lines, path = [line for line in run.log if line["kind"] == "train"], run.folder / "plots" / "loss.png"
    if not lines:
        return None
    plots.loss_curve(lines, path)
    return {"picture": path, "table": learning_table(lines), "turns": turns_table(lines), "rule": RULE}


def _numbers(run: Run) -> dict[str, Table] | None:
    """Every derived number with its interval and formula; None before the first task is done."""
    if not run.metrics:
        return None
    found = run.metrics | changes(run) | own(run) | costs(run)
    rows = {name: [name, value_text(name, value), interval_text(run, name)] for name, value in found.items()}
    header = ["name", "value", "95 % interval"]
    numbered = [row for name, row in rows.items() if name.startswith(AFTER_K)]
    others = [[*row, definition_of(name)] for name, row in rows.items() if not name.startswith(AFTER_K)]
    return {
        "all": Table([*header, "formula"], others, left=4, long=3),
        "after_k": Table(header, numbered, f"{AFTER_K}k = {formula_of(AFTER_K + 'k')}", left=3),
    }
