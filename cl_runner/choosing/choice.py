"""Which of a method's tries is the best on validation examples, among as many tries for every method."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cl_runner.matrix import after
from cl_runner.report.comparison import lower_is_better
from cl_runner.report.folder import Run
from cl_runner.report.grouping import Group, axis_text, group_runs, names_of
from cl_runner.report.numbers import values_of

Value = TypeVar("Value", bound=Hashable)
SCORE = "score"


@dataclass(frozen=True)
class Criterion:
    """What a try is chosen by.

    Attributes:
        by: `score`: the mean over tasks of what their first metric gives; a probe with a number for each task, such as
            task_loss: their mean; or the name of any number of a run.
        first: of how many tasks, when they alone have been learned; None = of all, after the last one.
    """

    by: str = SCORE
    first: int | None = None

    def value(self, run: Run) -> float:
        """The number itself.

        Raises:
            ValueError: the run does not have it.
        """
        done = run.done if self.first is None else self.first
        if done > run.done:
            raise ValueError(f"{run.folder} has {run.done} tasks, and --first {self.first} asks for {self.first}")
        if self.by == SCORE:
            return float(after(run.rows, done)[-1].mean())
        names, values = run.ability
        places = [names.index(name) for task in run.tasks[:done] if (name := f"{self.by}/{task}") in names]
        if len(places) == done:
            return float(values[done, places].mean())
        numbers = values_of(run)
        if self.by in numbers and self.first is None:
            return numbers[self.by]
        known = dict.fromkeys([SCORE, *(name.partition("/")[0] for name in names), *numbers])
        raise ValueError(
            f"{run.folder} has no number {self.by!r}" + (" of its first tasks" if self.first else "") + "; it has: "
            f"{', '.join(known)}"
        )

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.by != SCORE and (lower_is_better(self.by) or lower_is_better(f"ability_own/{self.by}"))

    def __call__(self, run: Run) -> float:
        """The number with the sign by which more is better."""
        return -self.value(run) if self.lower else self.value(run)

    @property
    def text(self) -> str:
        """The rule in words."""
        best = "lowest" if self.lower else "highest"
        tasks = "all tasks, after the last one" if self.first is None else f"the first {self.first} tasks, after them"
        if self.by == SCORE:
            return f"the {best} mean score over {tasks}"
        return f"the {best} {self.by}, mean over {tasks}"


def pick(scores: Mapping[Value, float]) -> Value:
    """The value with the best score, more being better; of equal ones the first."""
    return max(scores, key=lambda value: scores[value])


@dataclass(frozen=True)
class Try:
    """One setting of a method: the values that its tries differ in, and the mean of its runs."""

    values: dict[str, Any]
    runs: list[Run]
    value: float


@dataclass(frozen=True)
class Choice:
    """A method with its tries in order, and which of them is chosen."""

    backbone: str
    method: str
    protocol: str
    tries: list[Try]
    chosen: int

    @property
    def name(self) -> str:
        """The method, and the backbone that it is tried on."""
        return f"{self.method} on {self.backbone}"

    @property
    def best(self) -> Try:
        """The try that is chosen."""
        return self.tries[self.chosen]


def check_validation(run: Run, criterion: Criterion) -> None:
    """A run is scored on validation examples, by what it is chosen by, or a ValueError says what to type."""
    split = run.config.get("evaluation", {}).get("split", "test")
    if split != "validation":
        raise ValueError(
            f"{run.folder} is scored on {split} examples, by which nothing may be chosen. Try with "
            "evaluation.split=validation (task_order.base.validation and task_order.incremental.validation say of how "
            "many); or leave such runs out: --where evaluation.split=validation"
        )
    probe = run.config.get("probe", {}).get(criterion.by, {})
    if probe.get("split", "validation") != "validation":
        raise ValueError(
            f"{run.folder}: {criterion.by} was measured on {probe['split']} examples, by which nothing may be chosen. "
            f"Try with probe.{criterion.by}.split=validation"
        )


def choose(
    runs: Sequence[Run],
    criterion: Criterion,
    unequal: bool = False,
    order: Callable[[dict[str, Any]], Any] = lambda values: 0,
) -> list[Choice]:
    """The best try of each method, by the mean of its runs over orders and seeds.

    Args:
        runs: completed, of all tries.
        unequal: take methods with different numbers of tries.
        order: of the tries of a method, by their values, of which equal ones the first is taken; as the values ascend.

    Raises:
        ValueError: a run is scored on test examples, some method has fewer tries, or some try fewer runs, than others.
    """
    for run in runs:
        check_validation(run, criterion)
    by_method: dict[tuple[str, str, str], list[Group]] = {}
    for group in group_runs(runs):
        names = group.axes
        by_method.setdefault((names["backbone"], names["method"], names["protocol"]), []).append(group)
    choices = [_choice(names, groups, criterion, order) for names, groups in by_method.items()]
    counts = {choice.name: len(choice.tries) for choice in choices}
    if len(set(counts.values())) > 1 and not unequal:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(
            f"numbers of tries differ: {listed}. The more a method was tried, the better its best try looks. Run the "
            "tries that are missing, or name the methods with --where method=NAME,NAME; --unequal chooses all the "
            "same, and the record says so"
        )
    return choices


def _of_data(key: str) -> bool:
    return key.startswith(("task_order.", "task."))


def _choice(
    names: tuple[str, str, str],
    groups: Sequence[Group],
    criterion: Criterion,
    order: Callable[[dict[str, Any]], Any],
) -> Choice:
    keys = [key for key in groups[0].axes if key not in ("task_order", "backbone", "method", "protocol")]
    tried = [key for key in keys if not _of_data(key) and len({repr(group.axes[key]) for group in groups}) > 1]
    by_values: dict[str, list[Group]] = {}
    for group in groups:
        by_values.setdefault(repr([group.axes[key] for key in tried]), []).append(group)
    blocks = [{block for group in same for block in _blocks(group)} for same in by_values.values()]
    everywhere = set.union(*blocks)
    for same, found in zip(by_values.values(), blocks, strict=True):
        if found != everywhere:
            values = ", ".join(f"{key}={axis_text(same[0].axes[key])}" for key in tried)
            place, seed = sorted(everywhere - found)[0]
            raise ValueError(
                f"{names[1]}, {values}: no completed run over {place} with seed {seed}, which other tries of it have: "
                "tries are compared on the same orders and seeds"
            )
    tries = []
    for same in by_values.values():
        of_try = [run for group in same for run in group.runs]
        value = float(np.mean([criterion.value(run) for run in of_try]))
        tries.append(Try({key: same[0].axes[key] for key in tried}, of_try, value))
    tries.sort(key=lambda one: order(one.values))
    sign = -1 if criterion.lower else 1
    chosen = pick({number: sign * one.value for number, one in enumerate(tries)})
    return Choice(*names, tries, chosen)


def _blocks(group: Group) -> list[tuple[str, int]]:
    cut = "".join(f" {key} {value}" for key, value in group.axes.items() if _of_data(key))
    return [(names_of(run)["task_order"] + cut, run.seed) for run in group.runs]
