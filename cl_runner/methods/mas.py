"""Memory aware synapses (Aljundi et al. 2018, arXiv:1711.09601)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from cl_runner.batch import Output
from cl_runner.config import NonNegative, Share
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.penalty import pull_back
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said
from cl_runner.sparse.importance import cap


def squared_length(output: Output) -> Tensor:
    """||F(x)||^2 (section 4.1, last paragraph), of a language model the mean over the answer's tokens."""
    return output.logits.float().square().sum(-1).mean()


@dataclass
class MAS(Method):
    """L_MAS = strength * sum_i Omega_i (theta_i - theta_i_old)^2 over the weights that train (eq. 4).

    Omega_i is the mean over examples of |d ||F(x)||^2 / d theta_i| (eq. 3, with the squared length), without dropout,
    after each task on its own data and added up: no labels enter.
    """

    strength: NonNegative
    decay: Share

    state: ClassVar[tuple[str, ...]] = ("importance",)
    protects: ClassVar[bool] = True
    recalls: ClassVar[Said] = "its importance"
    keeps: ClassVar[Said] = "the importance: 4 bytes per weight of the model"
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.importance: dict[str, Tensor] = {}

    def plain_at_first(self) -> bool:
        return True

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs(measures=frozenset({"last_task"}), one_by_one=True, mean_bytes=4, weight_bytes=4)

    def after_task(self, learner: Learner, task: Task) -> None:
        chosen = cap(task.train, learner.measured.now.max_examples, learner.seed_of("importance", "examples"))
        learner.model.eval()
        found: dict[str, Tensor] = {}
        with learner.clock.phase("importance"):
            for done, example in enumerate(chosen, start=1):
                for name, gradient in learner.gradient([example], 1, of=squared_length).items():
                    new = gradient.abs().div_(len(chosen))
                    found[name] = found[name].add_(new) if name in found else new
                learner.progress("importance", done, len(chosen))
        old = self.importance
        self.importance = {name: new + self.decay * old[name] if name in old else new for name, new in found.items()}

    def grads(self, learner: Learner) -> None:
        assert learner.task is not None
        if learner.has_old_tasks(learner.task):
            learner.log("mas", pull_back(learner, self.strength, self.importance))
