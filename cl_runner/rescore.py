"""The command `rescore`: a run's kept predictions by another metric; nothing is run again, nothing of it is changed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from cl_runner.arguments import Parser, unwritable
from cl_runner.config import Bertscore, Config
from cl_runner.damage import read_config
from cl_runner.data.example import Example
from cl_runner.data.task import build_tasks, fingerprint
from cl_runner.digests import read_json, replace_file
from cl_runner.intervals import by_task, derived_intervals, read_answers
from cl_runner.matrix import START, Floats, after, derived
from cl_runner.metrics.base import score
from cl_runner.overrides import COMMAND, nearest
from cl_runner.plain import plain, plain_lines
from cl_runner.registry import find
from cl_runner.report.folder import Run, read_run
from cl_runner.report.numbers import definition_of, value_text
from cl_runner.report.text_table import Table, show

#: Built-in metrics that read more of an example than its answer; of the user's own nobody knows.
READ_PROMPTS = ("sari", "trace_sari")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} rescore",
        description="Kept predictions of a run by another metric: the matrix, every number derived from it, intervals. "
        "The run stays what it is.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument(
        "--metric",
        action="append",
        required=True,
        metavar="NAME | TASK=NAME",
        help="of all tasks, or of one; again for more. Built in, installed, or PACKAGE.MODULE.FUNCTION",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0, or 2 after one message for a wrong request or a file that cannot be used."""
    try:
        asked = _parser().parse_args(list(arguments))
        _run(asked)
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    return 0


def _run(asked: argparse.Namespace) -> None:
    run = read_run(asked.run)
    metrics = metrics_of(run, asked.metric)
    found = scores_of(run, metrics)
    if not any(values.any() for row in found.values() for values in row.values()) and np.nansum(run.rows):
        print("Note: by this metric every prediction scores 0; is it one for these answers?", file=sys.stderr)
    content = _content(run, metrics, found)
    text = json.dumps(content, indent=1)
    if asked.output:
        try:
            replace_file(asked.output, text + "\n")
        except OSError as error:
            raise unwritable(asked.output, error) from None
    if asked.json:
        print(text)
    else:
        _show(run, metrics, content)
        if asked.output:
            print(asked.output)


def metrics_of(run: Run, asked: Sequence[str]) -> dict[str, str]:
    """The metric of each task: what is asked for it, or for all, or its own.

    Raises:
        ValueError: there is no such task or metric, or one is asked for twice.
    """
    named: dict[str, str] = {}
    for text in asked:
        task, equal, name = text.rpartition("=")
        if equal and task not in run.tasks:
            close = nearest(task, run.tasks)
            raise ValueError(
                f"--metric {text}: the run has no task {task!r}, but {', '.join(run.tasks)}."
                + (f" Type: --metric {close}={name}" if close else "")
            )
        if task in named:
            raise ValueError(
                f"--metric {text}: {task or 'all tasks'} {'has' if equal else 'have'} {named[task]} before"
            )
        find("metrics", name)
        named[task] = name
    return {task: named.get(task) or named.get("") or run.scored_by[task] for task in run.tasks}


def scores_of(run: Run, metrics: Mapping[str, str]) -> dict[int, dict[str, Floats]]:
    """Kept predictions by other metrics: row of the matrix -> task -> percent of each, [n].

    Raises:
        ValueError: no predictions are kept, or the metric needs data that are not there or others now.
    """
    kept = {row: read_answers(run.folder, row) for row in range(len(run.rows))}
    if not any(kept.values()):
        raise ValueError(f"{run.folder} keeps no predictions: there is nothing to score")
    reading = [task for task, name in metrics.items() if name in READ_PROMPTS or not find("metrics", name).built_in]
    examples = _examples(run, reading) if reading else {}
    options = run.config.get("evaluation", {}).get("bertscore")
    encoder = Bertscore.model_validate(options) if options else None
    found: dict[int, dict[str, Floats]] = {}
    for row, tasks in kept.items():
        found[row] = {}
        for task, answers in tasks.items():
            own = examples.get(task) or [Example("", answer) for answer, _ in answers]
            if len(own) != len(answers):
                raise ValueError(
                    f"{run.folder} keeps {len(answers)} predictions of {task}, which has {len(own)} examples"
                )
            texts = [prediction for _, prediction in answers]
            found[row][task] = np.array(score(metrics[task], texts, own, encoder))
    return found


def _examples(run: Run, tasks: Sequence[str]) -> dict[str, Sequence[Example]]:
    """The examples with their prompts, drawn again from the run's data, which have not changed."""
    path = run.folder / "config.yaml"
    try:
        config = Config.model_validate(read_config(path))
    except ValidationError:
        raise ValueError(
            f"{path} is of another version: the prompts that this metric reads cannot be drawn again"
        ) from None
    known = read_json(run.folder / "data.json").get("fingerprints", {})
    built = {task.name: task for task in build_tasks(config.task_order, config.task)}
    changed = [name for name in tasks if known.get(name) != fingerprint(built[name])]
    if changed:
        raise ValueError(
            f"the data of {', '.join(changed)} changed since the run, and this metric reads prompts: put the old back"
        )
    validation = config.evaluation.split == "validation"
    return {name: built[name].validation if validation else built[name].test for name in tasks}


def _content(run: Run, metrics: Mapping[str, str], scores: Mapping[int, Mapping[str, Floats]]) -> dict[str, Any]:
    """What was asked and found."""
    rows = np.array([[row[task].mean() if task in row else np.nan for task in run.tasks] for row in scores.values()])
    done = len(rows) - 1
    sizes = run.test_examples
    alike = len({metrics[task] for task in run.tasks[:done]}) == 1
    union = sizes[:done] if sizes and alike else None
    numbers, bounds = {}, {}
    if done:
        numbers = derived(after(rows, done), union)
        bounds = derived_intervals(by_task(scores, run.tasks[:done], done + 1), union)
    return {
        "run": str(run.folder),
        "scored_by": dict(metrics),
        "before": run.scored_by,
        "tasks": run.tasks,
        "rows": [START, *run.tasks][: len(rows)],
        "accuracy": [[None if np.isnan(cell) else float(cell) for cell in row] for row in rows],
        "metrics": numbers,
        "intervals": bounds,
        "metrics_before": run.metrics,
    }


def _show(run: Run, metrics: Mapping[str, str], content: Mapping[str, Any]) -> None:
    heads = [f"{task} {metrics[task]}" for task in run.tasks]
    rows = [
        [after, *("" if cell is None else f"{cell:.2f}" for cell in row)]
        for after, row in zip(content["rows"], content["accuracy"], strict=True)
    ]
    changed = [task for task in run.tasks if metrics[task] != run.scored_by[task]]
    title = f"{run.method} on {run.task_order}, seed {run.seed}: kept predictions, scored again, in %"
    show(
        Table(["", *heads], rows, title, notes=[f"scored otherwise than by the run: {', '.join(changed) or 'nothing'}"])
    )
    lines = []
    for name, value in content["metrics"].items():
        bounds = content["intervals"].get(name)
        spread = f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else ""
        old = content["metrics_before"].get(name)
        lines.append([name, value_text(name, value), spread, "" if old is None else value_text(name, old)])
    if lines:
        notes = [
            f"{name} = {definition_of(name)}"
            for name in ("union_accuracy", "average_accuracy")
            if name in content["metrics"]
        ]
        show(Table(["number", "now", "95 % interval", "of the run"], lines, "", notes=[plain(note) for note in notes]))
