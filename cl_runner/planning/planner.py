"""The plan of a run: memory of each phase, disk, counts and time, from numbers and an architecture without weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cl_runner.digests import write
from cl_runner.planning import peaks
from cl_runner.planning.architecture import Architecture
from cl_runner.planning.disk import disk_bytes
from cl_runner.planning.prices import Prices
from cl_runner.planning.seconds import seconds, work
from cl_runner.planning.setting import Setting
from cl_runner.planning.speed import Speed


@dataclass(frozen=True)
class Phase:
    """The peak memory and the time of one phase; seconds are None where nothing says how fast the device is."""

    bytes: int
    seconds: float | None
    examples: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Attributes:
        phases: load, importance, train, evaluate; select, where evaluations select a task's best epoch.
        kept_bytes: of the finished run's folder; `disk` also says what is there while it runs.
        trainable: entries that train, by task.
        flops_per_token: of training, by task: of the model's products, forward and backward, for one token.
        flops_per_second: products of this device, calibrated; None where that was not done.
        basis: what the seconds are based on.
        unsaid: methods and probes that do not say what they need, and are not in the plan.
    """

    phases: dict[str, Phase]
    disk: dict[str, int]
    kept_bytes: int
    parameters: int
    trainable: dict[str, int]
    flops_per_token: dict[str, float]
    flops_per_second: float | None
    steps: int
    basis: str
    unsaid: tuple[str, ...]


class Planner:
    """Plans of runs with one architecture; passes that were priced once are remembered.

    Args:
        skeleton: makes the architecture on the meta device.
        base_bytes: of the process before there is a model; on a GPU 0, as its allocator counts.
        store: a folder in which processes share what passes cost, or None.
    """

    def __init__(self, skeleton: Callable[[], PreTrainedModel], base_bytes: int, store: Path | None = None):
        self.base_bytes = base_bytes
        self.architecture = Architecture(skeleton)
        self.prices = Prices(self.architecture, store)

    def peak(self, s: Setting, phase: str) -> int:
        """Peak bytes of one of the run's phases."""
        return peaks.peak_bytes(self.prices, s, phase, self.base_bytes)

    def memory(self, s: Setting) -> dict[str, int]:
        """Peak bytes of each phase, training by stage."""
        return {phase: self.peak(s, phase) for phase in peaks.phases(s)}

    def held(self, s: Setting) -> tuple[int, int]:
        """Bytes that are there between two steps, and those of them that the methods hold."""
        return peaks.held_bytes(self.prices, s, self.base_bytes)

    def in_main_memory(self, s: Setting) -> int:
        """Bytes of a run on a GPU that lie in main memory while it computes."""
        return peaks.in_main_memory(self.prices, s)

    def in_first_process(self, s: Setting) -> int:
        """Bytes that the first of several processes takes: `peaks.in_first_process`."""
        return peaks.in_first_process(self.prices, s)

    def disk(self, s: Setting) -> dict[str, int]:
        """Bytes on disk by what they hold."""
        return disk_bytes(self.architecture, s)

    def seconds(self, s: Setting, speed: Speed) -> dict[str, float]:
        """Seconds of each phase on a device as fast as `speed`."""
        return seconds(self.prices, s, speed)

    def plan(
        self, s: Setting, seconds: Mapping[str, float] | None, basis: str, flops_per_second: float | None = None
    ) -> Plan:
        """Everything at once.

        Args:
            seconds: of each phase; None where nothing says how fast the device is.
            basis: what the seconds are based on.
            flops_per_second: of the device, calibrated.
        """
        done = work(s)
        largest: dict[str, int] = {}
        for name, size in self.memory(s).items():
            phase = name.split()[0]
            largest[phase] = max(largest.get(phase, 0), size)
        if "select" in largest:  # it happens inside training, whose peak its clock shows as well
            largest["select"] = max(largest["select"], largest["train"])
        phases = {}
        for phase, size in largest.items():
            examples, tokens = done.get(phase, (0, 0.0))
            known = None if seconds is None else seconds.get(phase)
            phases[phase] = Phase(size, known, examples, round(tokens))
        disk = self.disk(s)
        return Plan(
            phases,
            disk,
            disk["snapshots"] + disk["predictions"],
            self.architecture.parameters(s),
            {task.name: self.architecture.trained(s, task) for task in s.tasks},
            {task.name: self.prices.flops_per_token(s, task) for task in s.tasks},
            flops_per_second,
            sum(task.steps for task in s.tasks if task.trains != "nothing"),
            basis,
            s.unsaid,
        )


def plan_json(plan: Plan) -> dict[str, Any]:
    """The content of plan.json."""
    return {
        "phases": {
            name: {"bytes": phase.bytes, "seconds": phase.seconds, "examples": phase.examples}
            for name, phase in plan.phases.items()
        },
        "disk_bytes": plan.kept_bytes,
        "trainable": list(plan.trainable.values()),
        "flops_per_token": list(plan.flops_per_token.values()),
        "flops_per_second": plan.flops_per_second,
        "basis": plan.basis,
        "unsaid": list(plan.unsaid),
    }


def write_plan(folder: Path, plan: Plan, fitted: Mapping[str, str]) -> None:
    """plan.json in a run's folder, which the report sets beside what was measured.

    Args:
        fitted: options by which the run computes so that it fits, beside what was asked.
    """
    write(folder / "plan.json", json.dumps({**plan_json(plan), "fitted": dict(fitted)}, indent=1))
