"""What all methods with low-rank adapters share: options, adapters of tasks, what of them trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from cl_runner.config import Count, Positive
from cl_runner.data.task import Task
from cl_runner.layers.adapters import Adapters
from cl_runner.layers.heads import classifies
from cl_runner.layers.targets import Target, linear_layers
from cl_runner.layers.wrapped import Wrapped
from cl_runner.learner import Learner, derive_seed
from cl_runner.methods.base import Method
from cl_runner.methods.parts import head_of
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said
from cl_runner.trained import Trained


@dataclass
class LowRank(Method):
    """Adapters W x + (alpha / rank) B A x (Hu et al. 2022, arXiv:2106.09685), A uniform and B zero to begin with.

    The head of a classifier, which begins at random, learns as well.
    """

    rank: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: list[
        Literal[
            "query",
            "key",
            "value",
            "attention_output",
            "query_key_value",
            "ffn_gate",
            "ffn_input",
            "ffn_output",
        ]
    ]
    learning_rate: Positive | None

    chooses: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = ""
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def targeted(self, model: nn.Module) -> list[Target]:
        """The layers that adapters are added to."""
        return linear_layers(model, self.targets, f"method.{self.node}.targets")

    def check(self, skeleton: nn.Module, longest: int) -> None:
        greatest = min(min(target.width_in, target.width_out) for target in self.targeted(skeleton))
        if self.rank > greatest:
            raise ValueError(
                f"method.{self.node}.rank={self.rank}: the narrowest of the layers that adapters are added to has "
                f"{greatest} numbers, and a higher rank adds nothing. Type: method.{self.node}.rank={greatest}"
            )

    def peft_options(self) -> dict[str, Any]:
        """Of peft's LoraConfig, beside its target modules."""
        return {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}

    def make(self, model: nn.Module) -> Adapters:
        """Adapters for a model, of which there is none yet."""
        return Adapters(model, [target.name for target in self.targeted(model)], self.peft_options())

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        self.head = classifier_head(model)
        self.adapters = self.make(model)
        self.add(0, seed)
        return model

    def add(self, index: int, seed: int) -> None:
        """The adapter of a task, at values that depend on the run's seed and the task alone."""
        if name_of(index) not in self.adapters.names:
            self.adapters.add(name_of(index), derive_seed(seed, "adapter", index))

    def adapter_of(self, learner: Learner, task: Task) -> str:
        """The adapter that a task trains."""
        return name_of(0 if learner.restart else task.index)

    def head_names(self, learner: Learner, task: Task) -> list[str]:
        """Names of a classifier's head that a task trains."""
        return self.head

    def trains(self, learner: Learner, task: Task) -> Trained:
        names = [*self.adapters.names[self.adapter_of(learner, task)], *self.head_names(learner, task)]
        return Trained(names=names, learning_rate=self.learning_rate)

    def count(self, outline: Outline) -> int:
        """Adapters that a run has in the end."""
        return 1 if outline.restart else len(outline.tasks)

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        def attach(model: nn.Module) -> list[str]:
            adapters = self.make(model)
            for index in range(self.count(outline)):
                adapters.add(name_of(index), 0)
            adapters.use(list(adapters.names))
            return list(adapters.names.values())[-1]

        return needs_of(skeleton, attach)

    def export(self, model: nn.Module, tasks: Sequence[Task], folder: Path, base: str) -> str | None:
        head = {name: model.get_parameter(name).detach() for name in self.head}
        self.adapters.write(folder, list(self.adapters.names), head=head, base=base, task_type=task_type(model))
        return loading(model, base, folder)

    def export_merged(self, model: nn.Module, folder: Path) -> str | None:
        self.adapters.merge()
        return save_unwrapped(model, self.adapters, folder)


def classifier_head(model: nn.Module) -> list[str]:
    """Names of a classifier's head; of a language model, whose output layer is pretrained, none."""
    assert isinstance(model, PreTrainedModel)
    return sorted(head_of(model)) if classifies(model) else []


def needs_of(skeleton: nn.Module, adapts: Callable[[nn.Module], Sequence[str]]) -> Needs:
    """What trains is beside the weights of an architecture, and a classifier's head.

    Args:
        adapts: adds it to an architecture, and says the names of what of it trains.
    """
    adapted = copy.deepcopy(skeleton)
    names = [*adapts(adapted), *classifier_head(adapted)]
    sizes = {name: p.numel() for name, p in adapted.named_parameters()}
    return Needs(first="listed", later="listed", listed={name: sizes[name] for name in names}, adapts=adapts)


def sizes_beneath(targets: Sequence[Target]) -> dict[str, int]:
    """Entries of the weights beneath, by the names that they have then."""
    return {f"{target.name}.base_layer.weight": target.width_in * target.width_out for target in targets}


def save_unwrapped(model: nn.Module, layers: Wrapped, folder: Path) -> str:
    """A model whose weights hold all that was learned, as transformers saves it; how it is loaded."""
    layers.unwrap()
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(folder)
    return f"from_pretrained({str(folder)!r})"


def task_type(model: nn.Module) -> str | None:
    """What peft calls that which a model does; None where it has no name for it."""
    assert isinstance(model, PreTrainedModel)
    if classifies(model):
        return "SEQ_CLS"
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if "ForCausalLM" in type(model).__name__ or "LMHead" in type(model).__name__ else None


def loading(model: nn.Module, base: str, folder: Path) -> str:
    """How an exported adapter is loaded, to be typed."""
    assert isinstance(model, PreTrainedModel)
    classes = f", num_labels={model.config.num_labels}" if classifies(model) else ""
    backbone = f"transformers.{type(model).__name__}.from_pretrained({base!r}{classes})"
    return f"peft.PeftModel.from_pretrained({backbone}, {str(folder)!r})"


def name_of(index: int) -> str:
    """What a task's adapter is called."""
    return f"{index:02d}"
