"""Seconds from a past run of the same kind on the same machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.compose import check
from cl_runner.config import Config
from cl_runner.damage import read_config
from cl_runner.digests import read_json
from cl_runner.planning.tasks import Counts
from cl_runner.tracking.environment import describe_environment

#: phase -> examples, and the tokens they hold
Work = Mapping[str, tuple[int, float]]

#: What must be equal for the pace of one run to be that of another: nodes of the configuration.
SAME = ("backbone", "method", "importance", "evaluation", "probe")
SAME_HARDWARE = ("device", "precision", "threads", "gradient_checkpointing")


def past_seconds(
    root: Path,
    runs: str,
    resolved: Mapping[str, Any],
    device: str,
    work: Work,
    work_of: Callable[[Config, Sequence[Counts]], Work],
) -> tuple[dict[str, float], str] | None:
    """Seconds of each phase at the pace of the newest finished run of the same kind, and the folder of that run.

    Args:
        root, runs: where runs are, and the pattern below it of the folders to look at.
        resolved: the configuration of the run to plan.
        device: torch device it computes on.
        work: examples of each phase of the run to plan.
        work_of: the same of a past run, from its configuration and the examples of its tasks.
    """
    here = _machine(describe_environment("", device))
    newest = sorted(root.glob(f"{runs}/summary.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest:
        try:
            summary = read_json(path)
            there = read_json(path.parent / "environment.json")
            past = read_config(path.parent / "config.yaml")
            if _machine(there) != here or _kind(past) != _kind(resolved):
                continue
            if any(task["importance_cached"] for task in summary["tasks_detail"]):
                continue  # its offline phase took no time
            examples = {task["name"]: task["train_examples"] for task in summary["tasks_detail"]}
            tested = summary["test_examples"]
            counts = [Counts(name, number, tested[name]) for name, number in examples.items()]
            done = work_of(check(past), counts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # of another version, unfinished or damaged: no evidence
        seconds = {
            phase: summary["phases"].get(phase, 0.0) * number / done[phase][0]
            for phase, (number, _) in work.items()
            if number and phase != "select" and done[phase][0]
        }
        if work["select"][0]:  # the same passes as those of an evaluation
            seconds["select"] = summary["phases"].get("evaluate", 0.0) * work["select"][0] / done["evaluate"][0]
        return {**seconds, "load": summary["phases"].get("load", 0.0)}, str(path.parent)
    return None


def _machine(environment: Mapping[str, Any]) -> tuple[Any, ...]:
    hardware = environment["hardware"]
    return tuple(hardware[key] for key in ("cpu", "cores", "device"))


def _kind(resolved: Mapping[str, Any]) -> dict[str, Any]:
    kind: dict[str, Any] = {key: resolved[key] for key in SAME}
    kind["hardware"] = {key: resolved["hardware"][key] for key in SAME_HARDWARE}
    training = resolved["training"]
    changes = [task.get("training") or {} for task in resolved["task_order"]["tasks"]]
    stages = [training["base"], training["incremental"], *(change for change in changes if change)]
    kind["sizes"] = [(stage.get("batch_size"), stage.get("micro_batch")) for stage in stages]
    kind["training"] = [training[key] for key in ("optimizer", "group_by_length")]
    return kind
