"""Reading run folders: what is there of a finished, unfinished or failed run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from omegaconf import OmegaConf

from cl_runner.matrix import Floats, after, derived, read_matrix

Status = Literal["completed", "failed", "unfinished"]


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
        if sizes is None and self.answers:
            sizes = {task: len(correct) for task, correct in self.answers[max(self.answers)].items()}
        return [sizes[task] for task in self.tasks] if sizes and set(self.tasks) <= set(sizes) else None

    @property
    def metrics(self) -> dict[str, float]:
        """Derived numbers by formula name; of an unfinished run those of the tasks done so far."""
        if "metrics" in self.summary:
            return cast(dict[str, float], self.summary["metrics"])
        if not self.done:
            return {}
        sizes = self.test_examples
        return derived(after(self.rows, self.done), sizes[: self.done] if sizes else None)

    @property
    def details(self) -> list[dict[str, Any]]:
        """Per task: name, phases, seconds, counts and bytes (summary.json)."""
        return cast(list[dict[str, Any]], self.summary.get("tasks_detail", []))

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return _json_lines(self.folder / "metrics.jsonl")

    @cached_property
    def answers(self) -> dict[int, dict[str, np.ndarray]]:
        """Which answers were right: row of the matrix -> task -> bool [n]."""
        found: dict[int, dict[str, np.ndarray]] = {}
        for path in sorted((self.folder / "predictions").glob("[0-9]*_*.jsonl")):
            by_task: dict[str, list[bool]] = {}
            for line in _json_lines(path):
                by_task.setdefault(line["task"], []).append(line["answer"] == line["prediction"])
            found[int(path.name.partition("_")[0])] = {k: np.array(v, dtype=bool) for k, v in by_task.items()}
        return found


def _json(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A killed run may have left half of its last line.
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it has the resolved configuration."""
    return (folder / "config.yaml").is_file()


def read_run(folder: Path) -> Run:
    """A run folder, whatever is there of it.

    Raises:
        ValueError: there is no config.yaml.
    """
    if not is_run(folder):
        raise ValueError(f"{folder} is no run folder: it has no config.yaml")
    config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    summary = _json(folder / "summary.json")
    tasks, rows = [task["name"] for task in config["task_order"]["tasks"]], np.empty((0, 0))
    if (folder / "accuracy.csv").exists():
        tasks, rows = read_matrix(folder / "accuracy.csv")
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
        overrides=overrides.read_text(encoding="utf-8").splitlines() if overrides.exists() else [],
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
        ValueError: a folder does not exist.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        found = [folder] if is_run(folder) else [path.parent for path in sorted(folder.rglob("config.yaml"))]
        paths.update({path.resolve(): path for path in found if "state" not in path.parts[-2:]})
    runs = [read_run(path) for path in paths.values()]
    notes = [f"left out {run.folder}: {run.status}" for run in runs if run.status != "completed"]
    return [run for run in runs if run.status == "completed"], notes
