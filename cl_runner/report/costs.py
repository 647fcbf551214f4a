"""What a run costs, as numbers with names: means over the tasks after the first, the ones that arrive in a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cl_runner.report.folder import Run

COSTS = {
    "trainable_share/later_tasks": "100 x trainable / all parameters, mean over the tasks after the first",
    "stored_bytes/later_tasks": "bytes of a snapshot, mean over the tasks after the first",
    "online_seconds/later_tasks": "preparation and training, mean over the tasks after the first",
    "offline_seconds/later_tasks": "importance and selection, mean over the tasks after the first",
}
_OF_A_TASK: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "trainable_share/later_tasks": lambda task: 100 * task["trainable"] / task["model_parameters"],
    "stored_bytes/later_tasks": lambda task: task["stored_bytes"],
    "online_seconds/later_tasks": lambda task: task["online_seconds"],
    "offline_seconds/later_tasks": lambda task: task["offline_seconds"],
}


def costs(run: Run) -> dict[str, float]:
    """The numbers of `COSTS`; empty if the run has no task after the first, or is unfinished."""
    later = run.details[1:]
    if not later:
        return {}
    return {name: sum(cost(task) for task in later) / len(later) for name, cost in _OF_A_TASK.items()}


def cost_text(name: str, value: float, unit: bool = True) -> str:
    """A cost as people read it."""
    if name.startswith("stored_bytes"):
        return bytes_text(value)
    if name.startswith("trainable_share"):
        return f"{value:.3g} %" if unit else f"{value:.3g}"
    return f"{value:.1f} s" if unit else f"{value:.1f}"


def bytes_text(size: float) -> str:
    """A number of bytes in the largest unit of which it has at least one."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
