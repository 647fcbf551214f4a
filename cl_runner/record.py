"""The files of a run's folder, but for those that have a module of their own: each function writes one of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from cl_runner import distributed
from cl_runner.access import access
from cl_runner.compose import Request
from cl_runner.data.example import Example
from cl_runner.data.task import Task, fingerprint, label_union, source_files
from cl_runner.digests import read_json, read_text, write, write_files
from cl_runner.families.base import Prediction
from cl_runner.intervals import by_task, derived_intervals, label_scores, read_answers, read_scores
from cl_runner.loss_course import courses
from cl_runner.matrix import START, MatrixTexts, derived, forgetting_matrix, write_table
from cl_runner.parts import family_kind
from cl_runner.pretrained.places import all_digests
from cl_runner.tracking.clock import OFFLINE, ONLINE, Clock
from cl_runner.tracking.environment import describe_environment, differences
from cl_runner.tracking.metrics import last_steps


def write_request(request: Request, tasks: Sequence[Task], device: str) -> None:
    """config.yaml, overrides.txt, environment.json and data.json, once: what was asked, where, on which data."""
    folder, config = request.folder, request.config

    def data() -> dict[str, Any]:
        return {
            "labels": list(label_union(tasks)),
            "fingerprints": {task.name: fingerprint(task) for task in tasks},
            "checkpoints": all_digests(config),
            "files": [str(path) for path in source_files(config.task_order, config.task)],
            "tasks": {task.name: task.account.content() for task in tasks if task.account is not None},
        }

    # data.json comes last: a folder that has it is a run's.
    texts: dict[str, Callable[[], str]] = {
        "config.yaml": lambda: OmegaConf.to_yaml(OmegaConf.create(request.resolved)),
        "overrides.txt": lambda: "\n".join([*request.overrides, ""]),
        "environment.json": lambda: json.dumps(_environment(request, device), indent=1),
        "data.json": lambda: json.dumps(data(), indent=1),
    }
    missing = {name: text() for name, text in texts.items() if not (folder / name).is_file()}
    if missing:
        write_files(folder, missing)


def _environment(request: Request, device: str) -> dict[str, Any]:
    return describe_environment(request.command, device, torch.get_num_threads(), distributed.size())


def check_environment(request: Request, device: str) -> str | None:
    """Whether a run that goes on computes with what it began with: versions, code, threads, device.

    Returns:
        None, or with `resume=warn` a line on what differs, which environment.json notes as well.

    Raises:
        ValueError: something differs and `resume` is strict; the text says what to type.
    """
    path = request.folder / "environment.json"
    if not path.is_file():  # removed: it is written anew
        return None
    began, now = read_json(path), _environment(request, device)
    found = differences(began, now)
    if not found:
        return None
    listed = ", ".join(f"{name} {' -> '.join(values)}" for name, values in found.items())
    if request.config.resume == "strict":
        anyway = request.command_with({"resume": "warn"})
        # A number in the configuration is another run's; that of torch's own choice the environment sets.
        back = f" (threads: OMP_NUM_THREADS={found['threads'][0]} before the command)" if "threads" in found else ""
        raise ValueError(
            f"this run began with something else than computes now: {listed}. It would end with other bits than one "
            f"that was not interrupted. Go back to what it began with{back}, or go on all the same: {anyway}"
        )
    note = {"at": now["started"], "differs": found}
    write(path, json.dumps({**began, "resumed": [*began.get("resumed", []), note]}, indent=1))
    return f"Note: this run began with something else than computes now: {listed}. Its last bits may differ for it."


def header(request: Request, tasks: Sequence[Task], device: str) -> list[tuple[str, str]]:
    """What the console says first. The batch is the only number that changes results, however it is cut."""
    said = [
        ("method", f"{request.method} = {' + '.join(request.config.method)}"),
        ("backbone", f"{request.backbone} on {device}"),
        ("tasks", f"{request.task_order}: {', '.join(task.name for task in tasks)}"),
    ]
    if distributed.size() > 1:
        shard = request.config.hardware.shard
        when = "" if shard == "always" else " while they train"
        parts = f", and hold the weights in parts{when}" if shard else ""
        said.append(("processes", f"{distributed.size()}, which share every batch out{parts}"))
    training = request.config.training
    for name, stage in (("base", training.base), ("later", training.incremental)):
        size = stage.micro_batch or stage.batch_size
        if size < stage.batch_size:
            passes = math.ceil(stage.batch_size / size)
            said.append((f"batch, {name}", f"{stage.batch_size} examples a step, in {passes} passes of {size}"))
    for task in tasks:
        own = (("", task.training), ("importance ", task.importance))
        given = [f"{of}{key} {value}" for of, said_of in own if said_of for key, value in said_of if value is not None]
        if given:
            said.append((task.name, ", ".join(given)))
    return [*said, ("folder", str(request.folder))]


def write_fisher(folder: Path, after: str, layers: Sequence[Mapping[str, Any]]) -> None:
    """fisher.json: the importance that the latest task began with, by layer and module (PE figure 4)."""
    write(folder / "fisher.json", json.dumps({"after": after, "layers": layers}, indent=1))


def write_masks(folder: Path, entry: Mapping[str, Any]) -> None:
    """masks.json: one entry per task with a selection (PIECE figures 3 and 5), each written anew."""
    path = folder / "masks.json"
    known = read_json(path)["tasks"] if path.is_file() else []
    tasks = [other for other in known if other["task"] != entry["task"]] + [entry]
    write(path, json.dumps({"tasks": tasks}, indent=1))


def write_predictions(
    folder: Path,
    number: int,
    after: str,
    examples: Mapping[str, Sequence[Example]],
    predictions: Mapping[str, Sequence[Prediction]],
    scores: Mapping[str, Sequence[float]],
) -> None:
    """predictions/<number>_<after>.jsonl: every answer of every task, with its score in percent."""
    lines = [
        json.dumps(
            {
                "task": name,
                "index": i,
                "answer": e.answer,
                "prediction": p.text,
                "confidence": p.confidence,
                "score": score,
            }
        )
        for name, found in predictions.items()
        for i, (e, p, score) in enumerate(zip(examples[name], found, scores[name], strict=True))
    ]
    (folder / "predictions").mkdir(exist_ok=True)
    write(folder / "predictions" / f"{number:02d}_{after}.jsonl", "\n".join([*lines, ""]))


def write_matrices(folder: Path, known: MatrixTexts, rows: Sequence[Sequence[float]]) -> None:
    """accuracy.csv and forgetting.csv.

    Args:
        known: their texts so far.
    """
    write_files(folder, known.texts(rows))


def throughput(folder: Path, task: Task, entries: int) -> dict[str, Any]:
    """What a task trained on, from metrics.jsonl and plan.json; what is not known is left out.

    Returns:
        `steps` (batches), `optimizer_steps`, `train_examples` (of the task's own), `examples_seen` (that went through
        training, with all that methods added), `replayed_examples` (`Learner.replayed`), `tokens`, `tokens_per_second`,
        `budget_spent` (in the unit of `training.budget`, if there is one), what `loss_course.courses` finds,
        `padding_share`, and the share of the device's products that the model needed (model FLOPs utilisation).
    """
    counted: dict[str, Any] = {
        "train_examples": len(task.train),
        "steps": 0,
        "optimizer_steps": 0,
        "examples_seen": 0,
        "replayed_examples": 0,
        "steps_times_rate": 0.0,
    }
    if not entries:
        return counted
    steps = last_steps(folder / "metrics.jsonl", task.name)
    if not steps:
        return counted
    tokens = sum(line["tokens"] for line in steps)
    seconds = sum(line["tokens"] / line["tokens_per_second"] for line in steps)
    positions = sum(line["tokens"] / (1 - line["padding_share"]) for line in steps)
    found = counted | {
        "steps": len(steps),
        **courses(steps)[task.name],
        "examples_seen": sum(line["examples"] for line in steps),
        "replayed_examples": sum(line["replayed_examples"] for line in steps),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "padding_share": 1 - tokens / positions,
    }
    if "budget_spent" in steps[-1]:
        found["budget_spent"] = steps[-1]["budget_spent"]
    path = folder / "plan.json"
    plan = read_json(path) if path.is_file() else {}
    needed, peak = plan.get("flops_per_token"), plan.get("flops_per_second")
    if needed and peak:
        found["model_flops_share"] = needed[task.index] * tokens / seconds / peak
    return found


def steps_of(folder: Path, task: int) -> list[dict[str, Any]]:
    """The numbers of a task's steps in metrics.jsonl, without what places them in the run."""
    lines = map(json.loads, read_text(folder / "metrics.jsonl").splitlines())
    placed = ("kind", "task", "task_index", "step")
    return [
        {name: value for name, value in line.items() if name not in placed}
        for line in lines
        if line["kind"] == "train" and line["task_index"] == task
    ]


def write_ability(folder: Path, names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> None:
    """ability.csv: what the probes measured before the first and after every task so far."""
    cells = np.array([list(row.values()) for row in rows])
    write_table(folder / "ability.csv", list(rows[0]), names, cells, write)


def tables(names: Sequence[str], rows: Sequence[Sequence[float]]) -> tuple[list[list[Any]], list[list[Any]]]:
    """The rows (after, T numbers) of both matrices, None where a cell is empty."""
    forgetting = forgetting_matrix(np.array(rows)).tolist()
    return _named([START, *names], rows), _named(names, forgetting)


def _named(names: Sequence[str], rows: Sequence[Sequence[float]]) -> list[list[Any]]:
    return [
        [after, *(None if math.isnan(cell) else cell for cell in row)] for after, row in zip(names, rows, strict=True)
    ]


def _noted(detail: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the run that methods noted with a task, by their formulas."""
    return {name: value for found in detail["method"].values() for name, value in found.get("metrics", {}).items()}


def write_summary(
    request: Request,
    test_examples: Mapping[str, int],
    scored_by: Mapping[str, Sequence[str]],
    rows: Sequence[Sequence[float]],
    details: Sequence[Mapping[str, Any]],
    clock: Clock,
    weights: str,
    ability: Sequence[Mapping[str, float]],
    labels: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """summary.json: every derived number by its formula, its interval; seconds, memory and storage by phase, task.

    Args:
        scored_by: the metrics of each task, of which the first one fills the matrix.
        details: what the run noted of each task.
        weights: hash of the final weights.
        ability: what the probes measured, before the first and after every task.
        labels: of the tasks whose accuracy says how well they are told apart.

    Returns:
        The file's content.
    """
    totals = clock.totals()
    tasks = []
    for index, detail in enumerate(details):
        seconds = clock.tasks.get(index, {})
        before = () if detail["measured_on_new_data"] else OFFLINE  # PIECE measures when the new data are there
        offline = sum(seconds.get(phase, 0.0) for phase in before)
        online = sum(seconds.get(phase, 0.0) for phase in (*ONLINE, *(() if before else OFFLINE)))
        tasks.append({**detail, "phases": seconds, "offline_seconds": offline, "online_seconds": online})
    alike = len({metrics[0] for metrics in scored_by.values()}) == 1
    sizes = list(test_examples.values()) if alike else None  # different metrics have no union
    scores = by_task(read_scores(request.folder), list(test_examples), len(rows))
    given = access(request.resolved, family_kind(request.config.backbone.family))
    of_labels, averages, bounds = label_scores(read_answers(request.folder, len(rows) - 1), labels or {})
    summary: dict[str, Any] = {
        "status": "completed",
        "tasks": list(test_examples),
        "test_examples": dict(test_examples),
        "scored_by": {task: list(metrics) for task, metrics in scored_by.items()},
        "metrics": derived(np.array(rows), sizes) | averages | _noted(details[-1]),
        "intervals": derived_intervals(scores, sizes) | bounds,
        "label_scores": of_labels,
        "ability": list(ability),
        "phases": totals,
        "offline_seconds": sum(task["offline_seconds"] for task in tasks),
        "online_seconds": sum(task["online_seconds"] for task in tasks),
        "tasks_detail": tasks,
        "peak_memory_mib": clock.peak_memory,
        "weights_sha256": weights,
        "run": {
            "task_order": request.task_order,
            "backbone": request.backbone,
            "method": request.method,
            "seed": request.config.seed,
            "hash": request.hash,
            "sweep": request.sweep,
            "fork": None if request.config.fork.run is None else f"{request.config.fork.run}:{request.config.fork.at}",
        },
        # What its classes say: a report imports none of the user's own.
        "access": {"old_data": list(given.old_data), "told": list(given.told)},
        "wall_seconds": sum(totals.values()),
    }
    write(request.folder / "summary.json", json.dumps(summary, indent=1))
    return summary
