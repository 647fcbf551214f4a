"""A continual-learning method as a few small hooks, and a chain of methods, which is a method again.

The order around a task: `before_task` (fresh tasks only; what it finds out is named in `state`) -> `activate` (pure in
task and state, redone on resume) -> training steps -> `after_task`. Of a chain, the method that selects what trains
comes first: the others then hold their memory for the selected weights only, and after the task they see a model
whose layers are its own again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Batch, Output, Prediction

if TYPE_CHECKING:
    from cl_runner.learner import Learner

Predict = Callable[[Batch], list[Prediction]]


class Method:
    """Override the hooks you need; each default does nothing. Subclasses are dataclasses and final.

    The fields of the dataclass are the method's options, declared in conf/method/*.yaml under the method's node.
    """

    state: ClassVar[tuple[str, ...]] = ()  # attributes saved for resume: tensors, numbers, dicts and lists of them
    families: ClassVar[tuple[str, ...]] = ("classifier", "causal", "seq2seq", "image_text")  # checked before loading
    chooses: ClassVar[bool] = False  # decides what trains: at most one of a chain does
    isolates: ClassVar[bool] = False  # a task changes nothing that earlier tasks use: there is nothing to protect
    protects: ClassVar[bool] = False  # acts against forgetting: has nothing to do beside a method that isolates
    node: str  # where its options stand in the configuration: method.<node>

    def __init_subclass__(cls) -> None:
        hidden = set(cls.__annotations__) & {name for name in vars(Method) if not name.startswith("_")} - {
            "state",
            "families",
            "chooses",
            "isolates",
            "protects",
        }
        assert not hidden, f"{cls.__name__}: fields {sorted(hidden)} hide the hooks of the same name"

    # structure
    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        """Once, before anything is trained: add adapters, prompts, heads for all tasks.

        The same arguments (of tasks their names and labels count, not examples) give the same bits.

        Args:
            restart: every task starts from the pretrained weights.
        """
        return model

    def check(self, skeleton: nn.Module, longest: int) -> None:
        """Raise ValueError if the options do not fit the backbone.

        Args:
            skeleton: the architecture without weights.
            longest: tokens that the model may have to read at once, of an answer as well where it reads its own.
        """

    def activate(self, learner: Learner, task: Task) -> None:
        """Set which parameters run and train in this task. Pure in task and state: redone on resume."""

    # around a task
    def before_task(self, learner: Learner, task: Task) -> None:
        """Once per task: importance, selections, recorded outputs. What it finds out belongs in `state`."""

    def reviews_old_data(self) -> bool:
        """Whether `before_task` makes a pass over all old data: told to the user as part of the time left."""
        return False

    def data(self, task: Task, examples: Sequence[Example]) -> Sequence[Example]:
        """What to train on: append replayed or generated examples."""
        return examples

    def after_task(self, learner: Learner, task: Task) -> None:
        """What to remember of a finished task."""

    # inside a step
    def owned(self, learner: Learner, params: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """What the optimizer holds and clips; default: the parameters that train."""
        return params

    def peak_learning_rate(self, task: Task, rate: float) -> float:
        """The peak learning rate of this task; default: the configuration's."""
        return rate

    def prepare(self, learner: Learner, batch: Batch) -> Batch:
        """Before the forward pass: what `loss` needs travels in the batch."""
        return batch

    def loss(self, learner: Learner, batch: Batch, output: Output) -> Tensor | float:
        """An extra term of the loss."""
        return 0.0

    def grads(self, learner: Learner) -> None:
        """Edit the gradients of `learner.trained`, once per optimizer step, before clipping."""

    def after_step(self, learner: Learner) -> None:
        """After the optimizer's step: write through, moving averages, path integrals."""

    # every pass of the model
    def inputs(self, learner: Learner, examples: Sequence[Example]) -> Batch:
        """What a pass over these examples needs besides their tokens; first dimension = examples."""
        return {}

    def for_texts(self, learner: Learner, texts: Sequence[str]) -> Batch:
        """The same for texts that are no examples, such as a benchmark's questions; first dimension = texts."""
        return {}

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        """Before every pass, of training or not: set up what this batch needs, or change what the model reads."""
        return batch

    # inference
    def predict(self, learner: Learner, batch: Batch, inner: Predict) -> list[Prediction]:
        """Wrap the prediction: route, retrieve, adapt."""
        return inner(batch)

    # afterwards
    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        """What is worth knowing once a task is learned and evaluated, for its entry in summary.json.

        Numbers in percent under "metrics" join those of the matrix. Files of its own may go into the run's folder.
        """
        return {}

    # resume
    def state_dict(self) -> dict[str, Any]:
        """The attributes named in `state`; not overridden but by the chain."""
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        for name in self.state:
            setattr(self, name, state[name])


class Chain(Method):
    """Several methods as one: data and gradients pass through in order, losses add up, predictions nest."""

    def __init__(self, methods: Mapping[str, Method]):
        self.methods = dict(methods)
        self._selecting_first = sorted(self.methods.values(), key=lambda method: not method.chooses)

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        for method in self.methods.values():
            model = method.build(model, tasks, seed, restart)
        return model

    def check(self, skeleton: nn.Module, longest: int) -> None:
        for method in self.methods.values():
            method.check(skeleton, longest)

    def activate(self, learner: Learner, task: Task) -> None:
        for method in self._selecting_first:
            method.activate(learner, task)

    def before_task(self, learner: Learner, task: Task) -> None:
        for method in self._selecting_first:
            method.before_task(learner, task)

    def reviews_old_data(self) -> bool:
        return any(method.reviews_old_data() for method in self.methods.values())

    def data(self, task: Task, examples: Sequence[Example]) -> Sequence[Example]:
        for method in self.methods.values():
            examples = method.data(task, examples)
        return examples

    def after_task(self, learner: Learner, task: Task) -> None:
        for method in self._selecting_first:
            method.after_task(learner, task)

    def owned(self, learner: Learner, params: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        for method in self.methods.values():
            params = method.owned(learner, params)
        return params

    def peak_learning_rate(self, task: Task, rate: float) -> float:
        for method in self.methods.values():
            rate = method.peak_learning_rate(task, rate)
        return rate

    def prepare(self, learner: Learner, batch: Batch) -> Batch:
        for method in self.methods.values():
            batch = method.prepare(learner, batch)
        return batch

    def loss(self, learner: Learner, batch: Batch, output: Output) -> Tensor | float:
        return sum(method.loss(learner, batch, output) for method in self.methods.values())

    def grads(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.grads(learner)

    def after_step(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.after_step(learner)

    def inputs(self, learner: Learner, examples: Sequence[Example]) -> Batch:
        return {name: t for method in self.methods.values() for name, t in method.inputs(learner, examples).items()}

    def for_texts(self, learner: Learner, texts: Sequence[str]) -> Batch:
        return {name: t for method in self.methods.values() for name, t in method.for_texts(learner, texts).items()}

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        for method in self.methods.values():
            batch = method.before_forward(learner, batch)
        return batch

    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        found = {name: method.describe(learner, task, folder) for name, method in self.methods.items()}
        return {name: numbers for name, numbers in found.items() if numbers}

    def predict(self, learner: Learner, batch: Batch, inner: Predict) -> list[Prediction]:
        for method in reversed(self.methods.values()):
            inner = _around(method, learner, inner)
        return inner(batch)

    def state_dict(self) -> dict[str, Any]:
        return {name: method.state_dict() for name, method in self.methods.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, method in self.methods.items():
            method.load_state_dict(state[name])


def _around(method: Method, learner: Learner, inner: Predict) -> Predict:
    return lambda batch: method.predict(learner, batch, inner)
