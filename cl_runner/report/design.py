"""Runs as a design: settings, such as methods, each over the same orders of the same tasks and the same seeds."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cl_runner.intervals import by_task, derived_draws, read_scores
from cl_runner.matrix import Floats
from cl_runner.report.folder import Run
from cl_runner.report.grouping import Group, axis_text, names_of
from cl_runner.report.numbers import values_of
from cl_runner.report.sections import UNUSABLE, not_of_a_run
from cl_runner.statistics.orders import unevenness

#: An order, by its name, and a seed.
Block = tuple[str, int]


@dataclass(frozen=True)
class Setting:
    """What differs in anything but order and seed, with its runs."""

    label: str
    runs: dict[Block, Run]


@dataclass(frozen=True)
class Design:
    """Settings that can be compared: over orders of the same tasks, scored alike, on the same split."""

    settings: list[Setting]

    @property
    def orders(self) -> list[str]:
        """By first appearance."""
        return list(dict.fromkeys(order for setting in self.settings for order, _ in setting.runs))

    @property
    def several(self) -> bool:
        """Whether some setting has more than one run."""
        return any(len(setting.runs) > 1 for setting in self.settings)

    def over(self, order: str) -> Design:
        """The same settings over one order alone."""
        return Design(
            [
                Setting(setting.label, {block: run for block, run in setting.runs.items() if block[0] == order})
                for setting in self.settings
            ]
        )

    def notes(self) -> list[str]:
        """How the orders are balanced, and which runs are missing."""
        tasks = {order: run.tasks for setting in self.settings for (order, _), run in setting.runs.items()}
        said = []
        if len(tasks) > 1:
            places, pairs = unevenness(list(tasks.values()))
            even = "balanced: every task is as often at every place" if places == 0 else "not balanced over places"
            even += " and follows every other as often" if places == pairs == 0 else ""
            said.append(f"{len(tasks)} orders, {even}")
        blocks = dict.fromkeys(block for setting in self.settings for block in setting.runs)
        for setting in self.settings:
            lacking = [f"{order} seed {seed}" for order, seed in blocks if (order, seed) not in setting.runs]
            if lacking:
                more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
                said.append(f"{setting.label} lacks {', '.join(lacking[:4])}{more}")
        return said


def designs_of(groups: Sequence[Group]) -> list[Design]:
    """The designs that groups of runs make; runs over other tasks, protocols or splits are never in one."""
    apart: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        apart.setdefault(_benchmark(group), []).append(group)
    return [_design(same) for same in apart.values()]


def _of_order(key: str) -> bool:
    return key == "task_order" or key.startswith(("task_order.", "task."))


def _benchmark(group: Group) -> tuple[Any, ...]:
    """What runs of one design share."""
    run = group.runs[0]
    cut = repr([(key, value) for key, value in group.axes.items() if key != "task_order" and _of_order(key)])
    split = run.config.get("evaluation", {}).get("split", "test")
    return (*sorted(run.tasks), group.axes["protocol"], split, cut)


def _design(groups: Sequence[Group]) -> Design:
    keys = [key for key in groups[0].axes if not _of_order(key) and key != "protocol"]
    differ = [key for key in keys if key != "method" and len({repr(group.axes[key]) for group in groups}) > 1]
    methods = {str(group.axes["method"]) for group in groups}
    by_setting: dict[str, list[Group]] = {}
    for group in groups:
        by_setting.setdefault(repr([group.axes[key] for key in keys]), []).append(group)
    settings: list[Setting] = []
    for same in by_setting.values():
        axes = same[0].axes
        parts = [f"{key.rpartition('.')[2]} {axis_text(axes[key])}" for key in differ if axes[key] is not None]
        told = parts if len(by_setting) > len(methods) else []
        runs = {(names_of(run)["task_order"], run.seed): run for group in same for run in group.runs}
        label = ", ".join([str(axes["method"]), *told])
        twins = sum(setting.label.partition(" #")[0] == label for setting in settings)  # long values look alike
        settings.append(Setting(f"{label} #{twins + 1}" if twins else label, runs))
    return Design(settings)


@dataclass
class Numbers:
    """Numbers of runs, as they are and under the same draws of test examples; each run is read once.

    Attributes:
        missing: runs whose kept predictions could not be used, and why.
    """

    missing: list[str] = field(default_factory=list)
    _values: dict[str, dict[str, float]] = field(default_factory=dict)
    _drawn: dict[str, dict[str, Floats]] = field(default_factory=dict)

    def value(self, run: Run, name: str) -> float | None:
        """A number of a run, if it has it."""
        return self.of(run).get(name)

    def of(self, run: Run) -> dict[str, float]:
        """All numbers of a run."""
        key = str(run.folder)
        if key not in self._values:
            self._values[key] = values_of(run)
        return self._values[key]

    def drawn(self, run: Run, name: str) -> Floats:
        """[draws] under the draws of examples that all runs share; [1], the number itself, where that is not known."""
        key = str(run.folder)
        if key not in self._drawn:
            self._drawn[key] = self._draw(run)
        found = self._drawn[key].get(name)
        return np.array([self.value(run, name)], dtype=np.float64) if found is None else found

    def _draw(self, run: Run) -> dict[str, Floats]:
        try:
            scores = read_scores(run.folder)
            if not set(run.tasks) <= set(scores.get(run.done, {})):
                self.missing.append(f"{run.folder} keeps no predictions: of it test examples are not drawn")
                return {}
            streams = [zlib.crc32(task.encode()) for task in run.tasks]
            found = derived_draws(by_task(scores, run.tasks, run.done + 1), run.union_sizes, streams=streams)
        except UNUSABLE as error:
            why = not_of_a_run(run.folder / "predictions", error)
            self.missing.append(f"{why}: of this run test examples are not drawn")
            return {}
        return {name: values for name, values in found.items() if not np.isnan(values).any()}
