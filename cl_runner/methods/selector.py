"""Selection of the weights that learn a task: PE (2022.naacl-industry.35, section 3.1) and its controls.

Which paper it is stands in the YAML: scores, the data they are computed on, smallest or largest, and the share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from cl_runner.config import Fraction, Positive
from cl_runner.data.task import Task
from cl_runner.methods.base import Method
from cl_runner.sparse.layers import CompactValues
from cl_runner.sparse.selection import layer_groups, match, random_selection, select

if TYPE_CHECKING:
    from cl_runner.learner import Learner


@dataclass
class Selector(Method):
    """Offline: score the weights, select a share of each layer. Online: the optimizer knows the selected entries only.

    Positions are selected anew for every task after the base task, which trains all weights.
    """

    score: Literal["fisher", "random"]
    score_data: Literal["old_tasks", "new_task"]
    keep: Literal["smallest", "largest"]
    scope: Literal["layer", "tensor", "global"]
    fraction: Fraction
    include: list[str]
    exclude: list[str]
    learning_rate: Positive | None

    state: ClassVar[tuple[str, ...]] = ("indices",)
    last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.indices: dict[str, Tensor] = {}  # flat positions of the selected entries by tensor name
        self.values: CompactValues | None = None

    def check(self, sizes: Mapping[str, int]) -> None:
        names = match(list(sizes), self.include, self.exclude)
        entries = sum(sizes[name] for name in names)
        if self.fraction * entries < 1:
            raise ValueError(
                f"method.pe.fraction={self.fraction:g} of {entries} weights selects not one; "
                f"the least is {1 / entries:.1g}. Type: method.pe.fraction={1 / entries:.1g}"
            )

    def reviews_old_data(self) -> bool:
        return self.score == "fisher" and self.score_data == "old_tasks"

    def before_task(self, learner: Learner, task: Task) -> None:
        if not learner.has_old_tasks(task):
            return
        weights = learner.parameters()
        names = match(list(weights), self.include, self.exclude)
        groups = layer_groups(names, self.scope)
        if self.score == "fisher":
            data = learner.old_examples(task) if self.score_data == "old_tasks" else task.train
            scores = learner.fisher(data)  # PE eq. 1
        seed = learner.seed_of("selection", task.index)  # PE-rand draws anew for each task
        with learner.clock.phase("selection"):
            if self.score == "fisher":
                chosen = {name: scores[name] for name in names}
                selection = select(chosen, groups, self.fraction, self.keep, seed)
            else:
                sizes = {name: weights[name].shape for name in names}
                selection = random_selection(sizes, groups, self.fraction, seed)
        self.indices = selection.indices

    def activate(self, learner: Learner, task: Task) -> None:
        learner.train_all(not self.indices)
        if self.indices:
            self.values = CompactValues(learner.parameters(), self.indices)

    def owned(self, learner: Learner, params: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        if self.values is None:
            return params
        learner.selected = self.indices
        return self.values.parameters

    def peak_learning_rate(self, task: Task, rate: float) -> float:
        return self.learning_rate if self.indices and self.learning_rate is not None else rate

    def after_step(self, learner: Learner) -> None:
        if self.values is not None:
            self.values.write_through()

    def after_task(self, learner: Learner, task: Task) -> None:
        if self.values is not None:
            self.values.release()
            self.values = None
