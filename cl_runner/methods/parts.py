"""Parts of the weights learn as a whole: biases (BitFit, Ben Zaken et al. 2022, arXiv:2106.10199), head, layers."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from cl_runner.config import Positive, Sharded, Whole
from cl_runner.data.task import Task
from cl_runner.families.freezing import frozen
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said
from cl_runner.sparse.groups import blocks
from cl_runner.trained import Trained


def head_of(model: PreTrainedModel) -> set[str]:
    """Names of what turns hidden states into outputs: a classifier, or an output layer that is not tied."""
    names = {name for name, _ in model.named_parameters()}
    output = model.get_output_embeddings()
    if output is None:
        return {name for name in names if not name.startswith(f"{model.base_model_prefix}.")}
    inputs = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    own = {id(parameter) for parameter in output.parameters()} - inputs
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


@dataclass
class Parts(Method):
    """Which parts, the configuration says; they learn every task, one after the other."""

    names: list[str]
    head: bool
    first_layers: Whole
    last_layers: Whole
    first_task: Literal["whole", "selected"]
    learning_rate: Positive | None

    sharded: ClassVar[Sharded] = "always"
    chooses: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    learns: ClassVar[Said] = {
        "first_task": {"whole": "all weights in the first task, then"},
        "names": {...: "tensors named {names}"},
        "head": {True: "the head"},
        "first_layers": {...: "the first of each stack of layers ({first_layers})"},
        "last_layers": {...: "the last of each stack of layers ({last_layers})"},
    }
    keeps: ClassVar[Said] = ""
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def check(self, skeleton: nn.Module, longest: int) -> None:
        layers = min((len(stack) for stack in blocks([n for n, _ in skeleton.named_parameters()]).values()), default=0)
        for option, wanted in (("first_layers", self.first_layers), ("last_layers", self.last_layers)):
            if wanted > layers:
                raise ValueError(
                    f"method.{self.node}.{option}={wanted}, and this backbone has {layers} layers. "
                    f"Type: method.{self.node}.{option}={layers}"
                )
        if not self.candidates(skeleton):
            asked = [*self.names, *(["its head"] if self.head else [])]
            raise ValueError(
                f"method.{self.node}: this backbone has nothing of {', '.join(asked) or 'what is asked for'} "
                "that could train (an output layer tied to the word embeddings is theirs). Type: method=layer_norm"
            )

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        first: Literal["listed", "all"] = "listed" if self.first_task == "selected" else "all"
        return Needs(first=first, later="listed", listed=self.candidates(skeleton))

    def candidates(self, model: nn.Module) -> dict[str, int]:
        """Entries of the tensors that train, by name."""
        sizes = {name: p.numel() for name, p in model.named_parameters() if name not in frozen(model)}
        assert isinstance(model, PreTrainedModel)
        head = head_of(model) if self.head else set()
        chosen: set[str] = set()
        for stack in blocks(list(sizes)).values():
            chosen |= {*stack[: self.first_layers], *stack[len(stack) - self.last_layers :]}
        return {
            name: size
            for name, size in sizes.items()
            if name in head
            or any(name.startswith(f"{block}.") for block in chosen)
            or any(fnmatchcase(name, pattern) for pattern in self.names)
        }

    def select(self, learner: Learner, task: Task) -> None:
        """Nothing to select; but a name that fits nothing leaves a method that is called another one."""
        known = learner.parameters()
        missing = [pattern for pattern in self.names if not any(fnmatchcase(name, pattern) for name in known)]
        if missing and task.index == 0:
            learner.warn(
                f"Note: nothing of this backbone fits {', '.join(missing)} of method.{self.node}.names, so that it "
                f"trains {len(self.candidates(learner.model))} other tensors alone, as method=head_only does"
            )

    def trains(self, learner: Learner, task: Task) -> Trained:
        if task.index == 0 and self.first_task == "whole":
            return Trained()
        return Trained(names=self.candidates(learner.model).keys(), learning_rate=self.learning_rate)
