"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796) as in PE (2022.naacl-industry.35)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor, nn

from cl_runner.config import NonNegative, Sharded, Share
from cl_runner.data.task import Task
from cl_runner.importance import fisher
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.penalty import pull_back
from cl_runner.needs import Needs, Outline
from cl_runner.read_if import ReadIf
from cl_runner.said import Said


@dataclass
class EWC(Method):
    """L_EWC = strength * sum_i F_i (theta_i - theta_i_old)^2 over the weights that train (PE eq. 3, 4; no 1/2).

    With `with_half` it is strength / 2, as in Kirkpatrick et al. eq. 3 and PIECE's release.
    """

    strength: NonNegative
    with_half: bool
    fisher_data: Literal["old_tasks", "last_task"]
    decay: Annotated[Share, ReadIf("fisher_data", ("last_task",))]

    sharded: ClassVar[Sharded] = "always"
    state: ClassVar[tuple[str, ...]] = ("fisher",)
    protects: ClassVar[bool] = True
    recalls: ClassVar[Said] = {"fisher_data": {"last_task": "its Fisher"}}
    keeps: ClassVar[Said] = {
        "fisher_data": {
            "old_tasks": "the Fisher: 4 bytes per trained weight",
            "last_task": "the sum of Fishers: 4 bytes per weight of the model, and 4 bytes per trained weight",
        }
    }
    old_data: ClassVar[Said] = {"fisher_data": {"old_tasks": "importance"}}
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.fisher: dict[str, Tensor] = {}  # of what trains, or of all weights if it is added up

    def plain_at_first(self) -> bool:
        return True

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        last = self.fisher_data == "last_task"
        return Needs(
            measures=frozenset({self.fisher_data}),
            measured=None if last else "selected",
            mean_bytes=4,
            entry_bytes=4,  # the Fisher of what trains
            weight_bytes=4 if last else 0,  # the Fisher of all weights
        )

    def before_task(self, learner: Learner, task: Task) -> None:
        if learner.has_old_tasks(task) and self.fisher_data == "old_tasks":
            # PE eq. 1: all old data, latest weights
            found = fisher(learner, learner.old_examples(task), learner.selected or None)
            # Sums may lie in main memory; what trains lies on the device.
            self.fisher = {
                name: learner.part(name, found[name]).to(learner.device) for name in learner.selected or found
            }

    def after_task(self, learner: Learner, task: Task) -> None:
        if self.fisher_data == "last_task":
            found = fisher(learner, task.train)
            new = {name: learner.in_parts(name, of_name.to(learner.device)) for name, of_name in found.items()}
            old = self.fisher
            self.fisher = {name: f + self.decay * old[name] if name in old else f for name, f in new.items()}

    def grads(self, learner: Learner) -> None:
        assert learner.task is not None
        if not learner.has_old_tasks(learner.task):
            return
        # eq. 4; theta_old are the weights that train, as they were
        strength = self.strength / 2 if self.with_half else self.strength
        learner.log("ewc", pull_back(learner, strength, self.fisher))
