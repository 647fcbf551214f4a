"""A continual-learning method as a few small hooks, and a chain of methods, which is a method again.

The order around a task: `grow` -> `select` (of the method that chooses, fresh tasks only) -> `trains` -> `before_task`
(fresh tasks only) -> `data` -> training -> `conclude` -> `after_task`; `grow` and `trains` are redone on resume. What
hooks of fresh tasks find out is named in `state`; what trains, as it was before the task, is `learner.before`, on
resume as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import Sharded
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Prediction
from cl_runner.hooks import Predict
from cl_runner.learner import Learner
from cl_runner.needs import Needs, Outline, combine
from cl_runner.said import Said
from cl_runner.trained import Trained


class Method:
    """Override the hooks you need; each default does nothing. Subclasses are dataclasses and final.

    The fields of the dataclass are the method's options, declared in conf/method/*.yaml under the method's node.
    """

    state: ClassVar[tuple[str, ...]] = ()  # attributes saved for resume: tensors, numbers, dicts and lists of them
    families: ClassVar[tuple[str, ...]] = ("classifier", "causal", "seq2seq", "image_text")  # checked before loading
    chooses: ClassVar[bool] = False  # decides what trains: at most one of a chain
    isolates: ClassVar[bool] = False  # a task changes nothing that earlier tasks use: there is nothing to protect
    keeps_passes: ClassVar[bool] = False  # `prepare` or `loss` keep what a pass shows: every process does all of them
    # `grads` is as right where each process has its own rows of what trains; "always": whole weights are never needed.
    sharded: ClassVar[Sharded] = False
    measures: ClassVar[bool] = True  # may measure the importance of weights, by what stands under `importance`
    protects: ClassVar[bool] = False  # acts against forgetting, which is idle beside a method that isolates
    directs: ClassVar[bool] = False  # `grads` promises where a step goes, which another such method would undo
    watches: ClassVar[bool] = False  # `grads` reads the loss's own gradient, before others add to it
    joins: ClassVar[bool] = False  # all data of old tasks are learned in every step: there is nothing to protect
    renews: ClassVar[bool] = False  # each task trains parameters that no earlier one had, a classifier's head aside
    recalls: ClassVar[Said] = ""  # not empty: what it knows of a weight it found out in earlier tasks
    rebuilds: ClassVar[bool] = False  # its layers compute with what it makes of the weights anew for each task
    goes_back: ClassVar[bool] = False  # computes with the weights as they were at the start
    trains_nothing: ClassVar[bool] = False  # nor does anything beside it have a step to act on
    writes: ClassVar[bool] = False  # a batch is learned by what the model writes itself, not by its examples' answers
    by_answers: ClassVar[bool] = False  # its term is of the examples' own answers, or it keeps outputs of theirs
    reads_chats: ClassVar[bool] = True  # an example may be a chat, whose turns the chat template writes
    routes: ClassVar[bool] = False  # an example is given what its task learned, as far as the method can tell the task
    # What people are told of it: a text, or texts by the value of an option (cl_runner/said.py). None: it does not say.
    learns: ClassVar[Said] = None  # what trains, of a method that chooses
    keeps: ClassVar[Said] = None  # beside the weights, and how large
    old_data: ClassVar[Said] = None  # a word of OLD_DATA: what it goes back to of old tasks; "" = nothing
    told: ClassVar[Said] = None  # a word of TOLD: what it is told of a question in a test; "" = nothing
    node: str  # where its options stand in the configuration: method.<node>

    def __init_subclass__(cls) -> None:
        declared = {"state", "families", "chooses", "isolates", "measures", "protects", "routes", "keeps_passes"}
        declared |= {"directs", "joins", "renews", "trains_nothing", "rebuilds", "goes_back", "writes"}
        declared |= {"by_answers", "sharded", "reads_chats", "watches"}
        fields = {name for name, kind in cls.__annotations__.items() if "ClassVar" not in str(kind)}
        hidden = fields & {name for name in vars(Method) if not name.startswith("_")} - declared
        assert not hidden, f"{cls.__name__}: fields {sorted(hidden)} hide the hooks of the same name"

    @property
    def answering(self) -> Sequence[str]:
        """The methods that do more for an answer than ask the model."""
        return () if type(self).predict is Method.predict else (self.node,)

    @property
    def offloads(self) -> bool:
        """Whether what the optimizer holds of whole weights may lie elsewhere than these (hardware.offload)."""
        edits = type(self).grads is not Method.grads or type(self).after_step is not Method.after_step
        return bool(self.sharded) or not edits

    def plain_at_first(self) -> bool:
        """Whether the first task's weights end with the bits of plain fine-tuning, where everything trains in it."""
        return False

    # structure
    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        """Once, before anything is trained: add adapters, prompts, heads for all tasks.

        The same arguments (of tasks their names and labels count, not examples) give the same bits.

        Args:
            restart: every task starts from the pretrained weights.
        """
        return model

    def grow(self, model: nn.Module, index: int, seed: int) -> None:
        """A later task begins: add the parameters that exist from now on, at values that the same arguments give again.

        Also on resume, for each later task that had begun, in their order; not where tasks start from pretrained
        weights.

        Args:
            index: of the task, from 1.
        """

    def check(self, skeleton: nn.Module, longest: int) -> None:
        """Raise ValueError if the options do not fit the backbone.

        Args:
            skeleton: the architecture without weights.
            longest: tokens that the model may have to read at once, of an answer as well where it reads its own.
        """

    def acts_on(self, skeleton: nn.Module, trained: Collection[str]) -> bool:
        """Whether it has something to do where these parameters alone train, as whole tensors.

        Args:
            skeleton: the architecture without weights.
            trained: names, of adapters as they are called in the model that has them.
        """
        return True

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs | None:
        """What the plan of a run has to know; None: the method does not say, and the plan names it.

        Args:
            skeleton: the architecture without weights, before `build`.
            outline: of the run.
        """
        return None

    # around a task
    def select(self, learner: Learner, task: Task) -> None:
        """Once per task, of the method that chooses, before it is known what trains: importance, selections, keys."""

    def trains(self, learner: Learner, task: Task) -> Trained | None:
        """What trains in this task, of the method that chooses. Pure in task and state, asked again on resume.

        Returns:
            None: everything that the backbone lets train.
        """
        return None

    def before_task(self, learner: Learner, task: Task) -> None:
        """Once per task, when it is known what trains: what to protect, recorded outputs."""

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        """What each epoch goes through: mix in replayed examples, or append an epoch. Pure in task and state.

        Plan, progress and summary count what is returned. An example that comes again is the same object, with its
        own `task` and `row`.
        """
        return epochs

    def validation(self, learner: Learner, task: Task, tasks: list[Task]) -> list[Task]:
        """By whose validation examples the best epoch is selected, where one is; at first by the task's own alone.

        A method adds tasks whose `validation` is what it has of them. Pure in task and state.
        """
        return tasks

    def conclude(self, learner: Learner, task: Task) -> None:
        """Training is over and the model not kept yet: what was learned beside the model's own tensors joins them.

        The place for `learner.merge`, where `Trained.merged` named the tensors; once more if the run dies before the
        model is kept.
        """

    def after_task(self, learner: Learner, task: Task) -> None:
        """What to remember of a finished task."""

    # inside a step
    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        """The optimizer steps that a batch makes, each a list of parts whose losses add up.

        Called once per batch, whatever its passes: the place for draws from a memory and for counters.

        Args:
            step: number of the batch in this task, from 0.
            steps: what earlier methods of the chain made of it; at first one step of one part of kind "new".
        """
        return steps

    def prepare(self, learner: Learner, part: Part, batch: Batch) -> Batch:
        """Before the forward pass over some examples of a part: what `loss` needs travels in the batch."""
        return batch

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        """An extra term of the pass's mean loss. No forward pass in here: `prepare` and `steps` are the places."""
        return 0.0

    def grads(self, learner: Learner) -> None:
        """Edit the gradients of `learner.trained`, once per optimizer step, before clipping."""

    def after_step(self, learner: Learner) -> None:
        """After an optimizer step: moving averages, path integrals, what to remember of its examples."""

    # every pass of the model
    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        """Before every pass, of training or not: set up what these examples need, or change what the model reads."""
        return batch

    # inference
    def predict(self, learner: Learner, batch: Batch, inner: Predict) -> list[Prediction]:
        """Wrap the prediction: route, retrieve, adapt."""
        return inner(batch)

    def ahead(self, learner: Learner, examples: Sequence[Example]) -> float:
        """Seconds that were spent on these questions of a test before they were asked, such as on encoding them."""
        return 0.0

    # afterwards
    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        """What is worth knowing once a task is learned and evaluated, for its entry in summary.json.

        Numbers in percent under "metrics" join those of the matrix. Files of its own may go into the run's folder.
        """
        return {}

    def export(self, model: nn.Module, tasks: Sequence[Task], folder: Path, base: str) -> str | None:
        """Write a model that the method changed the structure of as other libraries load it.

        Args:
            model: after some tasks; it is of no use afterwards.
            tasks: all of the run.
            folder: to write into.
            base: the backbone, as from_pretrained takes it.

        Returns:
            How it is loaded; None: there is no such form.
        """
        return None

    def export_merged(self, model: nn.Module, folder: Path) -> str | None:
        """The same as a model without any structure of the method's, for one that can be; else None."""
        return None

    def restored(self, task: Task) -> bool:
        """The weights are those after `task`, in another process: set what answers go by beside them.

        Returns:
            False: that is in the method's state alone.
        """
        return True

    def goes_back_to(self, tasks: Sequence[Task], seed: int) -> Sequence[Example]:
        """Training examples that answers need, of an exported model as of the run."""
        return ()

    # resume
    def state_dict(self) -> dict[str, Any]:
        """The attributes named in `state`; not overridden but by the chain."""
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        for name in self.state:
            setattr(self, name, state[name])


class Chain(Method):
    """Several methods as one: data, steps and gradients pass through in order, losses add up, predictions nest.

    The method that directs changes gradients after all others, so that what it promises holds of the whole step; one
    that watches reads them before all others.
    """

    def __init__(self, methods: Mapping[str, Method]):
        choosing = [name for name, method in methods.items() if method.chooses]
        assert len(choosing) <= 1, f"{choosing} all decide what trains"
        self.methods = dict(methods)
        self.keeps_passes = any(method.keeps_passes for method in methods.values())  # type: ignore[misc]  # of a chain

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        for method in self.methods.values():
            model = method.build(model, tasks, seed, restart)
        return model

    def grow(self, model: nn.Module, index: int, seed: int) -> None:
        for method in self.methods.values():
            method.grow(model, index, seed)

    def check(self, skeleton: nn.Module, longest: int) -> None:
        for method in self.methods.values():
            method.check(skeleton, longest)

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        said = {name: method.needs(skeleton, outline) for name, method in self.methods.items()}
        return combine(said, self.chooser)

    @property
    def answering(self) -> list[str]:
        return [name for name, method in self.methods.items() if type(method).predict is not Method.predict]

    @property
    def chooser(self) -> str | None:
        """The method that decides what trains; None = everything that the backbone lets train."""
        return next((name for name, method in self.methods.items() if method.chooses), None)

    def select(self, learner: Learner, task: Task) -> None:
        for method in self.methods.values():
            method.select(learner, task)

    def trains(self, learner: Learner, task: Task) -> Trained | None:
        return None if self.chooser is None else self.methods[self.chooser].trains(learner, task)

    def before_task(self, learner: Learner, task: Task) -> None:
        for method in self.methods.values():
            method.before_task(learner, task)

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        for method in self.methods.values():
            epochs = method.data(learner, task, epochs)
        return epochs

    def validation(self, learner: Learner, task: Task, tasks: list[Task]) -> list[Task]:
        for method in self.methods.values():
            tasks = method.validation(learner, task, tasks)
        return tasks

    def conclude(self, learner: Learner, task: Task) -> None:
        for method in self.methods.values():
            method.conclude(learner, task)

    def after_task(self, learner: Learner, task: Task) -> None:
        for method in self.methods.values():
            method.after_task(learner, task)

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        for method in self.methods.values():
            steps = method.steps(learner, task, step, steps)
        return steps

    def prepare(self, learner: Learner, part: Part, batch: Batch) -> Batch:
        for method in self.methods.values():
            batch = method.prepare(learner, part, batch)
        return batch

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        return sum(method.loss(learner, part, batch, output) for method in self.methods.values())

    def grads(self, learner: Learner) -> None:
        for method in sorted(self.methods.values(), key=lambda method: method.directs - method.watches):
            method.grads(learner)

    def after_step(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.after_step(learner)

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        for method in self.methods.values():
            batch = method.before_forward(learner, batch)
        return batch

    def ahead(self, learner: Learner, examples: Sequence[Example]) -> float:
        return sum(method.ahead(learner, examples) for method in self.methods.values())

    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        found = {name: method.describe(learner, task, folder) for name, method in self.methods.items()}
        return {name: numbers for name, numbers in found.items() if numbers}

    def export(self, model: nn.Module, tasks: Sequence[Task], folder: Path, base: str) -> str | None:
        said = (method.export(model, tasks, folder, base) for method in self.methods.values())
        return next((one for one in said if one is not None), None)

    def export_merged(self, model: nn.Module, folder: Path) -> str | None:
        said = (method.export_merged(model, folder) for method in self.methods.values())
        return next((one for one in said if one is not None), None)

    def goes_back_to(self, tasks: Sequence[Task], seed: int) -> Sequence[Example]:
        return [example for method in self.methods.values() for example in method.goes_back_to(tasks, seed)]

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
