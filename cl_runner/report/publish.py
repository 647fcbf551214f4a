"""Results we stand by: runs as small JSON and Markdown with command, seeds, data, hardware and versions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.choosing.record import chosen_tables, records_of
from cl_runner.report.folder import Run
from cl_runner.report.grouping import STANDARD, group_runs
from cl_runner.report.html import write
from cl_runner.report.numbers import values_of
from cl_runner.report.tables import all_tables
from cl_runner.report.text_table import as_markdown


def published(runs: Sequence[Run], folder: Path, command: str) -> list[Path]:
    """Write results.json and results.md of completed runs.

    Paths of the machine that computed them (data root, output root, a checkpoint's folder) are replaced by names.

    Args:
        folder: such as outputs/published/<name>.
        command: the line, or lines, that made the runs.

    Returns:
        The two paths.
    """
    roots = {str(run.config["data_root"]) for run in runs}
    # A relative root, such as the default `data`, tells nothing about a machine.
    hidden = {root: "DATA" for root in roots if Path(root).is_absolute()}
    checkpoints = {str(run.config["backbone"].get(key)) for run in runs for key in ("checkpoint", "gguf")}
    hidden |= {folder: "FOLDER" for folder in checkpoints if Path(folder).is_absolute()}
    environments: list[dict[str, Any]] = []
    data: list[dict[str, Any]] = []
    entries = []
    for run in runs:
        environment = {key: run.environment.get(key) for key in ("python", "packages", "git", "hardware")}
        definition = {
            "task_order": run.task_order,
            "definition": run.config["task_order"],
            "tasks": run.config["task"],
            "test_examples": run.summary["test_examples"],
            "train_examples": {task["name"]: task["train_examples"] for task in run.details},
        }
        entries.append(
            {
                "task_order": run.task_order,
                "backbone": run.backbone,
                "method": run.method,
                "seed": run.seed,
                "hash": run.hash,
                "overrides": [text for text in run.overrides if not text.startswith(("data_root=", "root="))],
                "environment": _place(environments, environment),
                "data": _place(data, definition),
                "protocol": ", ".join(run.marks) or STANDARD,
                "old_data": list(run.access.old_data),
                "told": list(run.access.told),
                "metrics": values_of(run),
                "intervals": run.intervals,
                "tasks": run.tasks,
                "scored_by": run.scored_by,
                "accuracy": [[None if math.isnan(cell) else cell for cell in row] for row in run.rows.tolist()],
                "ability": {name: run.ability[1][:, k].tolist() for k, name in enumerate(run.ability[0])},
                "retrieval_accuracy": run.retrieval_accuracy,
                "wall_seconds": run.summary.get("wall_seconds"),
            }
        )
    command = replaced(command, hidden)
    results = replaced(
        {
            "command": command,
            "seeds": sorted({run.seed for run in runs}),
            "environments": environments,
            "data": data,
            "runs": entries,
        }
        | ({"choices": list(records.values())} if (records := records_of(runs)) else {}),
        hidden,
    )
    text = json.dumps(results, indent=1, ensure_ascii=False)
    return [
        write(folder / "results.json", text + "\n"),
        write(folder / "results.md", _markdown(runs, folder.name, command, environments, data)),
    ]


def _place(known: list[dict[str, Any]], entry: dict[str, Any]) -> int:
    """The index of an entry in a list of different ones."""
    if entry not in known:
        known.append(entry)
    return known.index(entry)


def replaced(node: Any, names: Mapping[str, str]) -> Any:
    """A JSON value with paths replaced by names, longest first."""
    if isinstance(node, str):
        for path in sorted(names, key=len, reverse=True):
            node = node.replace(path, names[path])
        return node
    if isinstance(node, Mapping):
        return {key: replaced(value, names) for key, value in node.items()}
    return [replaced(value, names) for value in node] if isinstance(node, list) else node


def _markdown(
    runs: Sequence[Run],
    name: str,
    command: str,
    environments: Sequence[Mapping[str, Any]],
    data: Sequence[Mapping[str, Any]],
) -> str:
    groups = group_runs(runs)
    lines = [f"# {name}", "", "```", command, "```", ""]
    lines += [as_markdown(table) for table in [*all_tables(groups), *chosen_tables(runs)]]
    lines += [f"Seeds: {', '.join(str(seed) for seed in sorted({run.seed for run in runs}))}.", ""]
    for entry in data:
        train, test = entry["train_examples"], entry["test_examples"]
        sizes = ", ".join(f"{task} {train.get(task, 0)}/{count}" for task, count in test.items())
        lines += [f"Data, {entry['task_order']} (training/test examples of each task): {sizes}.", ""]
    for entry in environments:
        hardware, packages = entry["hardware"] or {}, entry["packages"] or {}
        machine = ", ".join(f"{key} {value}" for key, value in hardware.items())
        versions = ", ".join(f"{key} {value}" for key, value in packages.items())
        line = f"Hardware: {machine}. Python {entry['python']}; {versions}."
        if line not in lines:  # environments may differ in what is not shown here, such as the commit
            lines += [line, ""]
    lines.append("results.json beside this page has every run's matrix, numbers and overrides.")
    return "\n".join(lines) + "\n"
