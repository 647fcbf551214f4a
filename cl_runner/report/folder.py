"""Reading run folders: what is there of a finished, unfinished or failed run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from cl_runner.access import Access, access
from cl_runner.damage import read_config
from cl_runner.digests import Damaged, read, read_json, read_text, readable
from cl_runner.intervals import by_task, derived_intervals, draw, interval, read_scores
from cl_runner.matrix import Floats, after, derived, read_matrix, renamed

Status = Literal["completed", "failed", "unfinished"]

#: Folders that hold no runs of their own: W&B's keep a config.yaml too, a checkpoint and snapshots lie in their run.
SKIPPED = {"wandb", "tensorboard", "mlflow", "state", "snapshots"}


@dataclass(frozen=True)
class Run:
    """One run folder. Small files are read at once, the long ones (steps, predictions) when asked for."""

    folder: Path
    status: Status
    config: dict[str, Any]
    overrides: list[str]
    environment: dict[str, Any]
    summary: dict[str, Any]  # empty while unfinished
    tasks: list[str]  # of the order; empty before the first evaluation
    rows: Floats  # [t + 1, T] percent, as in cl_runner/matrix.py
    task_order: str
    backbone: str
    method: str
    hash: str

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config["seed"])

    @property
    def done(self) -> int:
        """Tasks that were trained and evaluated."""
        return max(len(self.rows) - 1, 0)

    @property
    def test_examples(self) -> list[int] | None:
        """Test items per task, from the summary or else from the kept predictions."""
        sizes = self.summary.get("test_examples")
        if sizes is None and self.scores:
            sizes = {task: len(scores) for row in self.scores.values() for task, scores in row.items()}
        return [sizes[task] for task in self.tasks] if sizes and set(self.tasks) <= set(sizes) else None

    @property
    def scored_by(self) -> dict[str, str]:
        """The metric that fills each task's column: from the summary, or else from the configuration."""
        found = self.summary.get("scored_by")
        if found is not None:
            return {task: metrics[0] for task, metrics in found.items()}
        order, scoring = self.config["task_order"], self.config.get("evaluation", {}).get("scoring")
        named = {}
        for task in order["tasks"]:
            definition = self.config.get("task", {}).get(task.get("task") or order.get("task"), {})
            metrics = definition.get("released_metrics", {}).get(scoring) or definition.get("metrics") or ["accuracy"]
            named[task["name"]] = metrics[0]
        return named

    @property
    def measure(self) -> str:
        """What a cell of the matrix is: the one metric of all tasks, or `score`."""
        metrics = set(self.scored_by.values())
        return metrics.pop() if len(metrics) == 1 else "score"

    @property
    def marks(self) -> list[str]:
        """What sets a run's evaluation apart from the standard protocol; empty where nothing does."""
        evaluation = self.config.get("evaluation", {})
        marks = []
        sampling = evaluation.get("sampling")
        if sampling is not None:
            values = [f"{key.replace('_', '-')} {value:g}" for key, value in sampling.items() if value is not None]
            marks.append(f"sampled decoding ({', '.join(values)})")
        scoring = evaluation.get("scoring", "standard")
        if scoring != "standard":
            marks.append(f"scored as released with {scoring}")
        if evaluation.get("answer_slice") == "prefix":
            marks.append("answers cut out by the prompt's text")
        text = {"piece": "thoughts cut off as released with piece", "raw": "answers with thoughts and white space"}
        if evaluation.get("answer_text") in text:
            marks.append(text[evaluation["answer_text"]])
        if evaluation.get("max_new_tokens") is not None:
            marks.append(f"answers of up to {evaluation['max_new_tokens']} tokens")
        if evaluation.get("labels") == "likelihood":
            marks.append("labels chosen by likelihood")
        for name, node in self.config.get("method", {}).items():
            if node.get("compat"):
                marks.append(f"{name} computed as released ({', '.join(node['compat'])})")
        return marks

    @property
    def protocol_note(self) -> str:
        """How the run's evaluation differs from the standard protocol; empty where it does not."""
        return f"Not the standard protocol: {', '.join(self.marks)}." if self.marks else ""

    @cached_property
    def access(self) -> Access:
        """What it was given: as the run noted it; of older ones, as far as the methods of this package say it."""
        noted = self.summary.get("access")
        if noted is not None:
            return Access(tuple(noted["old_data"]), tuple(noted["told"]))
        return access(self.config, self.config["backbone"].get("family"), foreign=True)

    @property
    def metrics(self) -> dict[str, float]:
        """Derived numbers by formula name; of an unfinished run those of the tasks done so far."""
        if "metrics" in self.summary:
            return renamed(cast(dict[str, float], self.summary["metrics"]))
        if not self.done:
            return {}
        return derived(after(self.rows, self.done), self.union_sizes)

    @property
    def union_sizes(self) -> list[int] | None:
        """Test items of the tasks done, None where they have no union: unknown, or different metrics."""
        sizes = self.test_examples
        alike = len({self.scored_by[task] for task in self.tasks[: self.done]}) == 1
        return sizes[: self.done] if sizes and alike else None

    @cached_property
    def intervals(self) -> dict[str, list[float]]:
        """95 % intervals [low, high] of `metrics`; empty where predictions are missing."""
        if "intervals" in self.summary:
            return renamed(cast(dict[str, list[float]], self.summary["intervals"]))
        done = self.tasks[: self.done]
        if not done or not set(done) <= set(self.scores.get(self.done, {})):
            return {}
        return derived_intervals(by_task(self.scores, done, self.done + 1), self.union_sizes)

    @property
    def first_task_interval(self) -> Floats | None:
        """[t, 2] percent: the 95 % interval of the first task after each; None where predictions are missing."""
        if not self.done or any(self.tasks[0] not in self.scores.get(row, {}) for row in range(1, self.done + 1)):
            return None
        drawn = draw(by_task(self.scores, self.tasks[:1], self.done + 1))
        return interval(drawn[:, 1:, 0]).T

    @cached_property
    def ability(self) -> tuple[list[str], Floats]:
        """Names (probe/number) and values [t + 1, K] of ability.csv, before the first and after every task so far."""
        path = self.folder / "ability.csv"
        return read_matrix(path) if path.exists() else ([], np.empty((0, 0)))

    @property
    def details(self) -> list[dict[str, Any]]:
        """Per task: name, phases, seconds, counts and bytes (summary.json)."""
        return cast(list[dict[str, Any]], self.summary.get("tasks_detail", []))

    @property
    def retrieval(self) -> list[dict[str, Any]]:
        """What a method that retrieves noted of each task in `details`: served, timing, ...; {} if nothing."""
        noted = [(task.get("method") or {}).values() for task in self.details]
        return [next((found for found in entries if "retrieval_accuracy" in found), {}) for entries in noted]

    @property
    def retrieval_accuracy(self) -> dict[str, float]:
        """Task -> percent of its test texts that retrieve its own keys, after the last task, or empty."""
        return cast(dict[str, float], self.retrieval[-1].get("retrieval_accuracy", {})) if self.retrieval else {}

    def served(self, name: str) -> dict[str, float]:
        """Task -> `served_percent` or `own_weight_percent` of its test texts, after the last task, or empty."""
        found = self.retrieval[-1].get("served", {}) if self.retrieval else {}
        return {task: each[name] for task, each in found.items()}

    @cached_property
    def keys(self) -> dict[str, Floats]:
        """Keys [g, n, c] of each task learned so far (keys.safetensors); empty where there are none."""
        return self._of_tasks("keys.safetensors")

    @cached_property
    def queries(self) -> dict[str, Floats]:
        """Queries [texts, g, c] of some texts of each task learned so far (queries.safetensors), or empty."""
        return self._of_tasks("queries.safetensors")

    def _of_tasks(self, name: str) -> dict[str, Floats]:
        """A tensor of each task in the order of the run: safetensors gives them in a new order each time."""
        found = _tensors(self.folder / name)
        return {task: found[task] for task in [*self.tasks, *sorted(set(found) - set(self.tasks))] if task in found}

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return _json_lines(self.folder / "metrics.jsonl")

    @cached_property
    def masks(self) -> list[dict[str, Any]]:
        """Per task with a selection: task, cells and overlap (masks.json); empty where there is none."""
        return cast(list[dict[str, Any]], _json(self.folder / "masks.json").get("tasks", []))

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What was predicted before the run (plan.json), or empty."""
        return _json(self.folder / "plan.json")

    @cached_property
    def data(self) -> dict[str, Any]:
        """What was read for each task (`tasks` of data.json), or empty."""
        return cast(dict[str, Any], _json(self.folder / "data.json").get("tasks", {}))

    @cached_property
    def scores(self) -> dict[int, dict[str, Floats]]:
        """Row of the matrix -> task -> percent of each test example [n], from the kept predictions."""
        return read_scores(self.folder)

    @property
    def all_scores(self) -> dict[str, dict[str, float]]:
        """Task -> metric -> percent, of the last evaluation; empty where metrics.jsonl holds none."""
        lines = [line for line in self.log if line["kind"] == "evaluation" and "scores" in line]
        return cast(dict[str, dict[str, float]], lines[-1]["scores"]) if lines else {}


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _tensors(path: Path) -> dict[str, Floats]:
    if not path.exists():
        return {}
    content = read(path)
    try:
        return {name: values.astype(np.float64) for name, values in load(content).items()}
    except SafetensorError as error:
        raise Damaged(path, f"cannot be read ({error})") from None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = read_text(path)
    with readable(path):
        # A killed run may have left half of its last line.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n") and line.strip()]


class _Given(BaseModel):
    """What a report takes from a file that anybody may have written; what it does not take may be anything."""

    model_config = ConfigDict(extra="allow")


class _Access(_Given):
    old_data: list[str]
    told: list[str]


class _Summary(_Given):
    status: str | None = None
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    test_examples: dict[str, int] = {}
    scored_by: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    tasks_detail: list[dict[str, Any]] = []
    phases: dict[str, float] = {}
    peak_memory_mib: dict[str, float] | None = None
    run: dict[str, str | int | None] = {}
    access: _Access | None = None


class _Named(_Given):
    name: str


class _Order(_Given):
    tasks: Annotated[list[_Named], Field(min_length=1)]
    joint: bool
    restart: bool


class _Evaluation(_Given):
    sampling: dict[str, float | None] | None = None


class _Configuration(_Given):
    seed: int
    data_root: str
    backbone: _Named
    task_order: _Order
    task: dict[str, dict[str, Any]] = {}
    method: dict[str, dict[str, Any]]
    evaluation: _Evaluation = _Evaluation()


def _checked(path: Path, content: dict[str, Any], schema: type[_Given]) -> dict[str, Any]:
    """A file's content as it is, if a report can take from it what it needs.

    Raises:
        Damaged: it cannot.
    """
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Damaged(path, f"is not a run's, or was changed ({place}: {first['msg']})") from None
    return content


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it has the resolved configuration, and the data's fingerprints beside it."""
    return (folder / "config.yaml").is_file() and (folder / "data.json").is_file()


def read_run(folder: Path) -> Run:
    """A run folder, whatever is there of it.

    Raises:
        ValueError: there is no config.yaml with a data.json, or a file is damaged or of something else, which is named.
    """
    if not is_run(folder):
        raise ValueError(f"{folder} is no run folder: it has no config.yaml with a data.json beside it")
    config = _checked(folder / "config.yaml", read_config(folder / "config.yaml"), _Configuration)
    summary = _checked(folder / "summary.json", _json(folder / "summary.json"), _Summary)
    tasks, rows = [task["name"] for task in config["task_order"]["tasks"]], np.empty((0, 0))
    if (folder / "accuracy.csv").exists():
        columns, rows = read_matrix(folder / "accuracy.csv")
        if columns != tasks or len(rows) > len(tasks) + 1:
            raise Damaged(folder / "accuracy.csv", "is not of the tasks of config.yaml")
    status: Status = "unfinished"
    if (folder / "FAILED").exists():
        status = "failed"
    elif summary.get("status") == "completed":
        status = "completed"
    overrides = folder / "overrides.txt"
    parts = folder.resolve().parts
    named = summary.get("run") or {}
    match = re.fullmatch(r"seed\d+-(\w+)", parts[-1])
    path_names = dict(zip(("task_order", "backbone", "method"), parts[-4:-1], strict=False)) if match else {}
    return Run(
        folder=folder,
        status=status,
        config=config,
        overrides=read_text(overrides).splitlines() if overrides.exists() else [],
        environment=_json(folder / "environment.json"),
        summary=summary,
        tasks=tasks,
        rows=rows,
        task_order=str(named.get("task_order", path_names.get("task_order", "?"))),
        backbone=str(named.get("backbone", config["backbone"]["name"])),
        method=str(named.get("method", path_names.get("method", "+".join(config["method"])))),
        hash=str(named.get("hash", match[1] if match else "")),
    )


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """All completed runs in or below the given folders, each once, and a note for every one left out.

    Raises:
        ValueError: a folder does not exist, or the only one is a run with a damaged file.
    """
    found, notes = every_run(folders)
    notes += [f"left out {run.folder}: {run.status}" for run in found if run.status != "completed"]
    return [run for run in found if run.status == "completed"], notes


def every_run(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The same of runs that are unfinished or have failed as well; notes are of folders that cannot be read."""
    paths: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        found = [folder] if is_run(folder) else _below(folder)
        paths.update({path.resolve(): path for path in found})
    runs, notes = [], []
    for path in paths.values():
        try:
            run = read_run(path)
        except ValueError as error:
            if list(folders) == [path]:
                raise
            notes.append(f"left out {path}: {error}")
            continue
        runs.append(run)
    return runs, notes


def _below(folder: Path) -> list[Path]:
    """The run folders below a folder, sorted."""
    found = [path.parent for path in sorted(folder.rglob("config.yaml"))]
    return [path for path in found if not SKIPPED & set(path.relative_to(folder).parts) and is_run(path)]
