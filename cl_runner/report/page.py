"""report.html of one run: a single file without scripts or network, made from what lies in the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.matrix import START, forgetting_matrix, formula_of, learned_so_far
from cl_runner.report import plots
from cl_runner.report.ability import DRAWN, change_formula, change_text, changes, describe, own, signed
from cl_runner.report.atlas import atlas_sections
from cl_runner.report.costs import COSTS, bytes_text, cost_text, costs
from cl_runner.report.drawing import short
from cl_runner.report.folder import Run, read_run
from cl_runner.report.html import document, folded, picture, section, table, write
from cl_runner.report.numbers import AFTER_K, RETRIEVAL, interval_text, value_text
from cl_runner.report.retrieval import retrieval_sections

HEADLINE = (
    "union_accuracy",
    "average_accuracy",
    "forgetting/chaudhry18",
    "bwt/gem",
    "first_task/last",
    "plasticity/diagonal",
    RETRIEVAL,
)
DIFFERENCES = ("forgetting/", "bwt/", "forward_transfer/")
#: What tasks_detail of summary.json may say of training -> column, and how a value reads.
THROUGHPUT: dict[str, tuple[str, Callable[[float], str]]] = {
    "tokens": ("training tokens", lambda value: f"{value:,.0f}"),
    "tokens_per_second": ("tokens / s", lambda value: f"{value:,.0f}"),
    "padding_share": ("padding, %", lambda value: f"{100 * value:.1f}"),
    "model_flops_share": ("model FLOPs, % of the device's", lambda value: f"{100 * value:.1f}"),
}


def write_run_report(folder: Path) -> Path:
    """Draw plots/*.png and write report.html of a run that is finished, failed or under way.

    Args:
        folder: the run folder; only its own files are read.

    Returns:
        The path of report.html.

    Raises:
        ValueError: `folder` holds no config.yaml.
    """
    run = read_run(folder)
    body = [_heading(run), _banner(run), _tiles(run), *_matrices(run), *_all_metrics(run), *_ability(run)]
    body += _importance(run)
    body += [*atlas_sections(run.masks, folder / "plots"), *retrieval_sections(run)]
    body += [*_costs(run), _planned(run), *_losses(run)]
    body += [_numbers(run), *_settings(run)]
    return write(folder / "report.html", document(f"{run.method} on {run.task_order}, seed {run.seed}", body))


def _heading(run: Run) -> str:
    names = f"{run.method} · {run.backbone} · {run.task_order}"
    facts = [f"seed {run.seed}", f"{run.done} of {len(run.tasks)} tasks", run.status]
    if run.hash:
        facts.insert(1, f"configuration {run.hash}")
    heading = f"<h1>{escape(names)}</h1><p>{escape(' · '.join(facts))}</p>"
    return heading + (f'<div class="banner">{escape(protocol_note(run))}</div>' if run.marks else "")


def protocol_note(run: Run) -> str:
    """How a run's evaluation differs from the standard protocol; empty where it does not."""
    return f"Not the standard protocol: {', '.join(run.marks)}." if run.marks else ""


def _banner(run: Run) -> str:
    if run.status == "completed":
        return ""
    if run.status == "unfinished":
        text = f"This run is not finished: {run.done} of {len(run.tasks)} tasks are done. "
        return f'<div class="banner">{text}Below is what is there so far. The command at the end goes on with it.</div>'
    reason = (run.folder / "FAILED").read_text(encoding="utf-8").strip().splitlines()[-12:]
    shown = f"<pre>{escape(chr(10).join(reason))}</pre>" if reason else ""
    text = f"This run failed after {run.done} of {len(run.tasks)} tasks; log.txt has the whole story."
    return f'<div class="banner failed">{text}{shown}</div>'


def _tiles(run: Run) -> str:
    tiles = []
    for name in HEADLINE:
        if name in run.metrics:
            bounds, items = interval_text(run, name), sum((run.test_examples or [])[: run.done])
            note = f"95 % interval {bounds} ({items:,} test items, bootstrap)" if bounds else ""
            tiles.append((value_text(name, run.metrics[name]), name, note))
    tiles += [(change_text(name, value), name, "") for name, value in (changes(run) | own(run)).items()][:4]
    tiles += [(cost_text(name, value), name, "") for name, value in costs(run).items()]
    shown = []
    for value, name, note in tiles:
        breakable = escape(name).replace("/", "/<wbr>")
        lines = f"<b>{escape(value)}</b><span>{breakable}</span><span>{escape(note)}</span>"
        shown.append(f'<div class="tile">{lines}</div>')
    return f'<div class="tiles">{"".join(shown)}</div>' if tiles else ""


def _columns(run: Run, between: str) -> list[str]:
    """Names of the test sets; where their metrics differ, each with its own."""
    if run.measure != "score":
        return run.tasks
    return [f"{task}{between}{run.scored_by[task]}" for task in run.tasks]


def cell_text(value: float) -> str:
    """A cell of a matrix, empty where nothing was measured."""
    return "" if np.isnan(value) else f"{value:.2f}"


def _matrices(run: Run) -> list[str]:
    if not run.rows.size:
        return []
    drawn = run.folder / "plots"
    plots.accuracy_heat_map(run.tasks, run.rows, drawn / "accuracy.png", run.measure, _columns(run, "\n"))
    names = ["start", *(f"after {task}" for task in run.tasks)]
    cells = [[name, *map(cell_text, row)] for name, row in zip(names, run.rows, strict=False)]
    what = {"accuracy": "Percent right", "score": "Each task's own metric, in percent,"}
    missing = " Empty cells were not measured." if np.isnan(run.rows).any() else ""
    sections = [
        section(
            "Accuracy" if run.measure == "accuracy" else "Scores",
            f"{what.get(run.measure, f'The metric {run.measure}, in percent,')} on every test set, before the first "
            "and after each task. The diagonal is the task just trained, left of it are older tasks, right of it tasks "
            f"still to come.{missing} {protocol_note(run)}".rstrip(),
            picture(drawn / "accuracy.png", f"heat map of the matrix of scores ({run.measure})"),
            folded("as a table", table(["", *_columns(run, ", ")], cells)),
        )
    ]
    if run.done > 1:
        plots.forgetting_heat_map(run.tasks, forgetting_matrix(run.rows), drawn / "forgetting.png")
        sections.append(
            section(
                "Forgetting",
                f"Best {run.measure} since a task was trained minus {run.measure} now: F[t,u] = max of A[l,u] over "
                "u <= l < t, minus A[t,u]. Red is lost, blue is gained.",
                picture(drawn / "forgetting.png", "heat map of the forgetting matrix"),
            )
        )
    if run.done:
        curve, bounds = run.rows[1:, 0], run.first_task_interval
        metric = run.scored_by[run.tasks[0]]
        label = f"{metric} on {short(run.tasks[0])}"
        plots.lines_over_tasks(run.tasks, {run.method: curve[None]}, drawn / "first_task.png", label, bounds)
        band = "" if bounds is None else " The band is the 95 % bootstrap interval over its test items."
        sections.append(
            section(
                "The first task over the sequence",
                f"{'Accuracy' if metric == 'accuracy' else f'The metric {metric}'} on the test set of {run.tasks[0]} "
                f"after each task (figure 3 of the PE paper).{band}",
                picture(drawn / "first_task.png", f"{metric} of the first task after each task"),
            )
        )
    if run.done > 1:
        seen = {run.method: learned_so_far(run.rows)[None]}
        plots.lines_over_tasks(run.tasks, seen, drawn / "learned_so_far.png", f"{run.measure} on tasks so far")
        sections.append(
            section(
                "All tasks learned so far",
                f"Mean {run.measure} over the tasks learned, after each task (figure 9 of the SLM paper).",
                picture(drawn / "learned_so_far.png", f"mean {run.measure} on the tasks learned so far"),
            )
        )
    return sections


def _all_metrics(run: Run) -> list[str]:
    """Every metric of every task after the last one, where there is more to see than the matrix shows."""
    scores = {task: run.all_scores[task] for task in run.tasks if task in run.all_scores}
    metrics = list(dict.fromkeys(metric for found in scores.values() for metric in found))
    if not run.done or len(metrics) < 2:
        return []
    rows = [[task, *(f"{found[m]:.2f}" if m in found else "" for m in metrics)] for task, found in scores.items()]
    return [
        section(
            "All metrics",
            f"Every metric of every task after {run.tasks[run.done - 1]}, in percent; a task's first metric fills the "
            f"matrix. {protocol_note(run)}".rstrip(),
            table(
                ["task", "in the matrix", *metrics], [[task, run.scored_by[task], *cells] for task, *cells in rows], 2
            ),
        )
    ]


def _ability(run: Run) -> list[str]:
    """The retention curve of a run with the values behind it; none without probes."""
    names, rows = run.ability
    if not len(rows):
        return []
    steps = [START, *run.tasks]
    parts = []
    if len(rows) > 1:
        path = run.folder / "plots" / "ability.png"
        drawn = {describe(name): {run.method: rows[None, :, k]} for k, name in enumerate(names[:DRAWN])}
        plots.ability_lines(steps, drawn, path)
        parts.append(picture(path, "change of general ability after each task"))
    cells = [
        [after, *(f"{value:.4g} ({signed(value - rows[0, k])})" for k, value in enumerate(row))]
        for after, row in zip(steps, rows, strict=False)
    ]
    parts.append(table(["after", *map(describe, names)], cells))
    more = f" The first {DRAWN} of {len(names)} numbers are drawn." if len(names) > DRAWN else ""
    note = (
        f"What the model could do before it learned the tasks: values, and in brackets the change since `start`.{more}"
    )
    return [section("General ability", note, *parts)]


def _importance(run: Run) -> list[str]:
    path = run.folder / "fisher.json"
    if not path.exists():
        return []
    fisher = json.loads(path.read_text(encoding="utf-8"))
    plots.fisher_map(fisher["after"], fisher["layers"], run.folder / "plots" / "fisher.png")
    count = sum(cell["parameters"] for cell in fisher["layers"])
    zero = sum(cell["parameters"] * cell["zero_fraction"] for cell in fisher["layers"])
    return [
        section(
            "Where the importance lies",
            "Mean Fisher information of the old tasks by layer and module, darker = more important (figure 4 of the "
            f"PE paper). {100 * zero / count:.1f} % of {count:,} parameters have a Fisher of exactly zero.",
            picture(run.folder / "plots" / "fisher.png", "heat map of the mean Fisher information"),
        )
    ]


def _costs(run: Run) -> list[str]:
    if not run.details:
        return []
    drawn = run.folder / "plots"
    plots.storage_bars(run.details, drawn / "storage.png")
    plots.phase_bars(run.details, drawn / "phases.png")
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "task": lambda task: str(task["name"]),
        "trainable": lambda task: f"{task['trainable']:,}",
        "trainable, % of the model": lambda task: f"{100 * task['trainable'] / task['model_parameters']:.3g}",
        "changed": lambda task: f"{task['changed']:,}",
        "stored values": lambda task: f"{task['stored']:,}",
        "stored": lambda task: bytes_text(task["stored_bytes"]),
        "stored, % of the model's bytes": lambda task: f"{task['stored_share_percent']:.3g}",
    }
    storage = [[cell(task) for cell in columns.values()] for task in run.details]
    seconds: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "task": lambda task: str(task["name"]),
        "training examples": lambda task: f"{task['train_examples']:,}",
        "steps": lambda task: f"{task['steps']:,}",
        "offline, s": lambda task: f"{task['offline_seconds']:.1f}",
        "online, s": lambda task: f"{task['online_seconds']:.1f}",
        "evaluation, s": lambda task: f"{task['phases'].get('evaluate', 0.0):.1f}",
    } | {
        head: partial(_if_known, name, form)
        for name, (head, form) in THROUGHPUT.items()
        if any(task.get(name) is not None for task in run.details)
    }
    model = run.details[0]
    peak = run.summary.get("peak_memory_mib") or {}
    memory = table(["phase", "peak memory, MiB"], [[phase, f"{mib:,.0f}"] for phase, mib in peak.items()])
    sections = [
        section(
            "Storage",
            f"What a task adds to disk, against {bytes_text(model['model_bytes'])} for all "
            f"{model['model_parameters']:,} parameters (table 3 of the PE paper).",
            picture(drawn / "storage.png", "bytes stored per task"),
            table(list(columns), storage),
        ),
        section(
            "Time",
            "Offline is importance and selection, done between tasks; online is what must happen once the new data "
            "are there: preparation and training.",
            picture(drawn / "phases.png", "seconds per task and phase"),
            table(list(seconds), [[cell(task) for cell in seconds.values()] for task in run.details]),
            folded("peak memory by phase", memory) if peak else "",
        ),
    ]
    proofs = [(str(task["name"]), task["certificate"]) for task in run.details if task.get("certificate")]
    if proofs:
        shown = [[name, certificate_text(proof)] for name, proof in proofs]
        sections[0] += "<p>Certificates: every weight outside a selection, hashed before and after training.</p>"
        sections[0] += table(["task", "what training changed"], shown, left=2, long=1)
    zeros = {str(task["name"]): task["zero_fisher_fraction"] for task in run.details if task["zero_fisher_fraction"]}
    if zeros:
        layers = list(next(iter(zeros.values())))
        rows = [[layer, *(f"{100 * share[layer]:.2f}" for share in zeros.values())] for layer in layers]
        sections[0] += folded("share of exact zeros in each layer's Fisher, %, by task", table(["", *zeros], rows))
    return sections


def _if_known(name: str, form: Callable[[float], str], task: Mapping[str, Any]) -> str:
    return "-" if task.get(name) is None else form(task[name])


def certificate_text(proof: Mapping[str, Any]) -> str:
    """What a task's certificate in summary.json says: all bits outside the selection were compared."""
    others = "others bitwise unchanged" if proof["holds"] else "others were to stay bitwise, but did NOT"
    return (
        f"{proof['changed']:,} of {proof['selected']:,} selected weights changed; "
        f"{proof['untouched']:,} {others}, SHA-256 {proof['untouched_sha256'][:16]}…"
    )


def _planned(run: Run) -> str:
    """What plan.json predicted beside what was measured; of an unfinished run only the prediction."""
    if not run.plan:
        return ""
    seconds, peak = run.summary.get("phases", {}), run.summary.get("peak_memory_mib") or {}
    phases = []
    for phase, predicted in run.plan["phases"].items():
        memory = predicted["bytes"] / 2**20, peak.get(phase)
        phases.append([phase, *_compared(*memory, "{:,.0f}"), *_compared(predicted["seconds"], seconds.get(phase))])
    head = ["phase", "peak memory predicted, MiB", "measured", "measured / predicted"]
    head += ["time predicted, s", "measured", "measured / predicted"]
    files = [path for part in ("snapshots", "predictions") for path in (run.folder / part).glob("*")]
    kept = sum(path.stat().st_size for path in files) if run.summary else None
    others = [["snapshots and predictions on disk", *_compared(run.plan["disk_bytes"], kept, "bytes")]]
    trainable = run.plan["trainable"]
    measured = [(str(task["name"]), task["trainable"]) for task in run.details]
    if isinstance(trainable, list):
        names = run.tasks or [name for name, _ in measured]
        for name, count in zip(names, trainable, strict=False):
            others.append([f"trained weights, {name}", *_compared(count, dict(measured).get(name), "{:,.0f}")])
    else:
        largest = max((count for _, count in measured), default=None)
        others.append(["trained weights, largest task", *_compared(trainable, largest, "{:,.0f}")])
    return section(
        "Predicted and measured",
        f"What was expected before any weight was loaded, beside what it came to. Basis: {run.plan['basis']}",
        table(head, phases),
        table(["", "predicted", "measured", "measured / predicted"], others),
    )


def _compared(predicted: float | None, measured: float | None, form: str = "{:,.1f}") -> list[str]:
    """Predicted, measured and their ratio as text; "-" for what is not known."""
    texts = [
        "-" if value is None else bytes_text(value) if form == "bytes" else form.format(value)
        for value in (predicted, measured)
    ]
    return [*texts, f"{measured / predicted:.2f}" if predicted and measured is not None else "-"]


def _losses(run: Run) -> list[str]:
    lines = [line for line in run.log if line["kind"] == "train"]
    if not lines:
        return []
    plots.loss_curve(lines, run.folder / "plots" / "loss.png")
    return [
        section(
            "Training loss",
            "The task's own loss as logged (pale) and its running mean; "
            "what methods add (ewc, lwf in metrics.jsonl) is not in it.",
            picture(run.folder / "plots" / "loss.png", "training loss over all steps"),
        )
    ]


def _numbers(run: Run) -> str:
    if not run.metrics:
        return ""
    shown = {name: value for name, value in run.metrics.items() if not name.startswith(AFTER_K)}
    rows = [[n, value_text(n, value), interval_text(run, n), formula_of(n)] for n, value in shown.items()]
    found = changes(run) | own(run)
    rows += [[name, change_text(name, value), "", change_formula(name)] for name, value in found.items()]
    rows += [[name, cost_text(name, value), "", COSTS[name]] for name, value in costs(run).items()]
    note = "" if run.done == len(run.tasks) else f" Here T = {run.done}, the tasks done so far."
    numbered = [name for name in run.metrics if name.startswith(AFTER_K)]
    cells = [[name, value_text(name, run.metrics[name]), interval_text(run, name)] for name in numbered]
    return section(
        "Derived numbers",
        f"A[t,u] is the {run.measure} on task u after task t, T the number of tasks.{note} Intervals: percentile "
        f"bootstrap over test examples, the same draw for all rows. {protocol_note(run)}".rstrip(),
        table(["name", "value", "95 % interval", "formula"], rows, left=4, long=3),
        folded(f"{AFTER_K}k = {formula_of(numbered[0])}", table(["name", "value", "95 % interval"], cells, left=3))
        if numbered
        else "",
    )


def _settings(run: Run) -> list[str]:
    command = run.environment.get("command")
    config = (run.folder / "config.yaml").read_text(encoding="utf-8")
    environment = json.dumps(run.environment, indent=2, ensure_ascii=False)
    return [
        section("Again", "The command that repeats, or goes on with, this run.", f"<pre>{escape(command)}</pre>")
        if command
        else "",
        section(
            "Settings",
            "",
            folded("configuration, resolved", f"<pre>{escape(config)}</pre>"),
            folded("environment: versions, code, hardware", f"<pre>{escape(environment)}</pre>"),
        ),
    ]
