"""What a method may ask of the running system: weights, what trains, passes, gradients, batches, logging."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cl_runner.batch import Batch, Output, longest_first
from cl_runner.config import Evaluation, Sharded, TaskOrder
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Answering, Family, Prediction
from cl_runner.families.freezing import frozen
from cl_runner.hooks import Hooks
from cl_runner.metrics.base import reads_of, score
from cl_runner.sequences import Chained
from cl_runner.shards import Shards, whole
from cl_runner.sparse.measured import Measured
from cl_runner.tracking.clock import Clock
from cl_runner.trained import Held, Trained

#: Called with a phase's name, the number of items done and the number of items in all; may raise to interrupt.
Progress = Callable[[str, int, int], None]

#: What a probe may tell of an example's true task.
Told = Literal["task", "labels"]


def derive_seed(*parts: object) -> int:
    """A seed that depends on `parts` only: the same on every machine and after every resume."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Learner:
    """The model being trained and the operations a method may ask of it.

    Attributes:
        method: whose hooks surround every pass.
        measuring: the family as it reads texts for importance, which may be cut shorter there.
        task: the one under way; None between tasks.
        what: trains in it, as the method said.
        before: what trains, or was written, as it was before the task, by name, in the shape of `part`.
        terms: what methods logged in the current step.
        replayed: examples of earlier tasks that steps trained on, or took the gradient of, in this session.
        pass_size: examples of a training pass, at most.
        measured: importance that was measured in the task under way.
        cache: a folder that other runs share, or None.
        store: a folder for what methods keep beside checkpoints and can make again, while the run goes on, or None.
        warn: tells the user something.
        evaluation: of the configuration, or None.
        told: of an example's true task, what methods and answers may use for once: which it is, its labels.
        apart: where what belongs to weights that train whole lies, where that is not beside them.
        shards: how the weights lie in parts over the processes; None: each process has all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        tasks: Sequence[Task],
        seed: int,
        device: torch.device,
        method: Hooks[Learner],
        precision: str = "fp32",
        order: TaskOrder | None = None,
        evaluation: Evaluation | None = None,
        measured: Measured | None = None,
        measuring: Family | None = None,
        cache: Path | None = None,
        store: Path | None = None,
        clock: Clock | None = None,
        progress: Progress | None = None,
        warn: Callable[[str], None] = print,
        sharded: Sharded = False,
        apart: torch.device | None = None,
    ):
        self.method = method
        backbone = list(model.parameters())
        self.restart, self.joint = (order.restart, order.joint) if order else (False, False)
        self._until_read = order is not None and order.answers_until == "read"
        built = method.build(model, tasks, seed, self.restart)
        self.model = built if sharded else built.to(device)
        # By what they are: a method may call the backbone's own another name.
        self._backbone = {id(parameter): parameter for parameter in backbone}
        self.shards: Shards | None = None
        if sharded:
            own, added = [name for name, p in self.model.named_parameters() if id(p) in self._backbone], self.added
            self._backbone, backbone = {}, []  # or the weights as they were would stay beside their parts
            self.shards = Shards(self.model, added, device, sharded == "always")
            parameters = self.parameters()
            self._backbone = {id(parameters[name]): parameters[name] for name in own}
        self.family, self.measuring, self.tasks = family, measuring or family, tasks
        self.seed, self.device, self.precision = seed, device, precision
        self.measured = measured or Measured()
        self.cache, self.store = cache, store
        self.clock = clock or Clock()
        self.progress: Progress = progress or (lambda phase, done, total: None)
        self.warn = warn
        self.task: Task | None = None
        self.what = Trained()
        self.before: dict[str, Tensor] = {}
        self.terms: dict[str, float] = {}
        self.replayed = 0
        self.pass_size = 1
        self._held: Held | None = None
        self.evaluation = evaluation
        self.told: frozenset[Told] = frozenset()
        self.apart = apart

    # weights
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter of the model by name, whether it trains or not."""
        return dict(self.model.named_parameters())

    @property
    def added(self) -> frozenset[str]:
        """Names of parameters that the method brought along; the others are the backbone's."""
        return frozenset(name for name, p in self.model.named_parameters() if id(p) not in self._backbone)

    def params(self) -> dict[str, nn.Parameter]:
        """The parameters that train in the task under way, or some of whose entries do, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def measurable(self) -> list[str]:
        """Names of all parameters but those that the backbone freezes."""
        never = frozen(self.model)
        return [name for name in self.parameters() if name not in never]

    def weights(self) -> dict[str, Tensor]:
        """A copy of every parameter."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """The counterpart of `weights`."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])

    @property
    def selected(self) -> Mapping[str, Tensor]:
        """Flat positions by tensor name, if only some entries of the weights train in the task under way."""
        return self.what.selected

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer holds now, by the name of the tensor that each stands for."""
        return {} if self._held is None else self._held.parameters

    def chosen(self, name: str, full: Tensor) -> Tensor:
        """The entries of a tensor of `name`'s full size that train now: all, or a vector of the selected ones."""
        return full.view(-1)[self.selected[name].to(full.device)] if name in self.selected else full

    def part(self, name: str, full: Tensor) -> Tensor:
        """The same, to be kept beside what trains: of weights in parts each process has its own (`shards.local`)."""
        return self.chosen(name, whole(full)) if name in self.selected else self.in_parts(name, full)

    def rows_of(self, name: str) -> bool:
        """Whether each process trains its own rows of a tensor."""
        return self.shards is not None and name in self.shards and name not in self.selected

    def in_parts(self, name: str, full: Tensor) -> Tensor:
        """A tensor of `name`'s full size as the weights themselves lie: in parts, or whole."""
        return full if self.shards is None else self.shards.cut(name, full)

    # the task under way
    def grow(self, task: Task) -> None:
        """A task begins: parameters that exist from it on, where tasks follow on each other."""
        if task.index and not self.restart:
            self.method.grow(self.model, task.index, self.seed)

    def choose(self, task: Task, what: Trained | None) -> None:
        """A task begins, and this is what trains in it; None = all that may."""
        self.task, self.what = task, what or Trained()
        names = set(self.what.of(self.model))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)

    @torch.no_grad()
    def begin(self) -> None:
        """Remember what trains as it is now, and write what the method sets itself."""
        parameters = self.parameters()
        where = self.device if self.apart is None or self.selected or self.shards is not None else self.apart
        self.before = {n: self.part(n, p.detach()).to(where, copy=True) for n, p in self.params().items()}
        for name, values in self.what.written.items():
            self.before[name] = parameters[name].detach().clone()
            parameters[name].copy_(values)

    @torch.no_grad()
    def merge(self, values: Iterable[tuple[str, Tensor]]) -> None:
        """Set tensors of `what.merged` to what the task made of them, by name; `before` has what they were."""
        parameters = self.parameters()
        for name, value in values:
            assert name in self.what.merged, f"{name} was not said to be merged into"
            self.before[name] = parameters[name].detach().clone()
            parameters[name].copy_(value)

    @contextmanager
    def holding(self) -> Iterator[Held]:
        """Inside, an optimizer may hold what trains."""
        self._held = Held(self.model, self.selected, self.shards, self.apart)
        try:
            yield self._held
        finally:
            self._held.release()
            self._held = None
        if self.shards is not None:
            self.shards.gather()

    def collect(self) -> None:
        """A pass of training is done: gradients join what the optimizer holds."""
        if self._held is not None:
            self._held.collect()

    def finish(self) -> None:
        """The task is over: nothing trains until the next one begins."""
        self.task, self.what, self.before = None, Trained(), {}
        self.model.requires_grad_(False)

    # data
    def has_old_tasks(self, task: Task) -> bool:
        """Whether there is anything to forget: not in the base task, nor when tasks start from pretrained weights."""
        return task.index > 0 and not self.restart

    def scored_on(self, task: Task) -> Sequence[Example]:
        """The examples that evaluations of this run score a task on."""
        validation = self.evaluation is not None and self.evaluation.split == "validation"
        return task.validation if validation else task.test

    def old_tasks(self, task: Task) -> Sequence[Task]:
        """The tasks before one that can be forgotten."""
        return self.tasks[: task.index] if self.has_old_tasks(task) else []

    def old_examples(self, task: Task) -> Sequence[Example]:
        """All training data of the tasks before `task` (PE eq. 1: D)."""
        # Of a joint order the task before holds all of them.
        return self.tasks[task.index - 1].train if self.joint else Chained([t.train for t in self.tasks[: task.index]])

    def seed_of(self, *parts: object) -> int:
        """A seed for one purpose, derived from the run's seed."""
        return derive_seed(self.seed, *parts)

    def collate(self, examples: Sequence[Example], answers: bool = True) -> Batch:
        """The examples as a batch on the device."""
        return self.family.collate(examples, answers).to(self.device)

    def sorted_batches(self, examples: Sequence[Example], size: int) -> Iterator[Batch]:
        """All examples once, longest first."""
        for positions in self.by_length(examples, size):
            yield self.collate([examples[i] for i in positions])

    def by_length(self, examples: Sequence[Example], size: int, answers: bool = True) -> Iterator[list[int]]:
        """Positions of all examples in parts of `size`, longest first."""
        return longest_first(self.family.lengths(examples, answers), size)

    # passes
    def in_precision(self) -> torch.autocast:
        """Inside, passes compute in the run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def forward(self, batch: Batch) -> Output:
        """One forward pass at the current weights, in the run's precision."""
        with self.in_precision():
            return self.family.forward(self.model, self.method.before_forward(self, batch))

    def features(self, batch: Batch) -> Tensor:
        """A vector for each text [B, width] of a batch without answers, at the current weights (`Family.features`)."""
        with self.in_precision():
            return self.family.features(self.model, self.method.before_forward(self, batch))

    def answering(self, task: Task) -> Answering:
        """How the examples of a task are answered."""
        if self.evaluation is None:
            return Answering(task.max_new_tokens, labels=task.labels if "labels" in self.told else ())
        return Answering(
            max_new_tokens=self.evaluation.new_tokens(task.max_new_tokens),
            labels=task.labels if self.evaluation.labels == "likelihood" or "labels" in self.told else (),
            sampling=self.evaluation.sampling,
            slice_by=self.evaluation.answer_slice,
            text=self.evaluation.answer_text,
            until=reads_of(task.scored_by(self.evaluation.scoring)) if self._until_read else (),
        )

    @contextmanager
    def telling(self, what: Collection[Told]) -> Iterator[None]:
        """Inside, a method that routes goes by an example's true task, or answers are among its labels."""
        self.told = frozenset(what)
        try:
            yield
        finally:
            self.told = frozenset()

    def scores(self, task: Task, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """Percent of each answer to a task's examples, by the metric that fills the run's matrix."""
        options = self.evaluation
        name = task.scored_by("standard" if options is None else options.scoring)[0]
        return score(name, texts, examples, None if options is None else options.bertscore)

    def answer(self, batch: Batch, how: Answering) -> list[Prediction]:
        """The model's answers to a batch without answers, in the run's precision."""
        with self.in_precision():
            return self.family.answer(self.model, self.method.before_forward(self, batch), how)

    def gradient(
        self,
        examples: Sequence[Example],
        size: int,
        of: Callable[[Output], Tensor] | None = None,
        names: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """A gradient by what trains now, or between tasks by all that may; `.grad` stays what it is.

        Args:
            size: examples of a pass; changes memory and rounding only.
            of: a mean over a pass's targets, to be differentiated; None = the loss.
            names: of what the gradient is wanted between tasks, as far as it is there; None = of all that may train.

        Returns:
            That of the mean over all targets of `examples`: by name, in the shape of `part`.
        """
        values = self.trained
        if not values:
            parameters = self.parameters()
            values = {n: parameters[n] for n in self.measurable() if names is None or n in names}
        kept = {name: (value.requires_grad, value.grad) for name, value in values.items()}
        for value in values.values():
            value.requires_grad_(True)
            value.grad = None
        self.count_replayed(examples)
        weights = self.family.targets(examples)
        for start in range(0, len(examples), size):
            share = sum(weights[start : start + size]) / sum(weights)
            output = self.forward(self.collate(examples[start : start + size]))
            ((output.loss if of is None else of(output)) * share).backward()
        found = {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in values.items()}
        for name, (requires_grad, gradient) in kept.items():
            values[name].requires_grad_(requires_grad)
            values[name].grad = gradient
        return found

    @contextmanager
    def at(self, weights: Mapping[str, Tensor], positions: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """The model at other values of its parameters, such as an old task's: no second model is needed.

        Args:
            weights: whole tensors, or vectors of those that `positions` names.
            positions: flat, of the entries that a vector stands for; None = of those that train now.
        """
        now: dict[str, Tensor] = {}
        some = {n: index.to(self.device) for n, index in (self.selected if positions is None else positions).items()}
        if self.shards is not None and not self.shards.gathered:
            with self.shards.at(weights, some):
                yield
            return
        for name, parameter in self.parameters().items():
            if name in some and name in weights:
                index = some[name]
                now[name] = parameter.data.view(-1)[index].clone()
                parameter.data.view(-1)[index] = weights[name]
            elif name in weights:
                now[name], parameter.data = parameter.data, weights[name].to(parameter.device)
        try:
            yield
        finally:
            for name, parameter in self.parameters().items():
                if name in some and name in now:
                    parameter.data.view(-1)[some[name]] = now[name]
                elif name in now:
                    parameter.data = now[name]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Whatever happens inside to weights, their gradients and what trains is undone at the end, bit for bit."""
        parameters, values = self.parameters(), self.weights()
        flags = {name: (p.requires_grad, p.grad) for name, p in parameters.items()}
        for parameter in parameters.values():
            parameter.grad = None  # or what happens inside would add to it in place
        try:
            yield
        finally:
            self.put(values)
            for name, (requires_grad, gradient) in flags.items():
                parameters[name].requires_grad_(requires_grad)
                parameters[name].grad = gradient

    # logging
    def count_replayed(self, examples: Sequence[Example]) -> None:
        """Of examples that a step trains on or takes the gradient of, count those of earlier tasks."""
        if self.task is not None:
            self.replayed += sum(0 <= example.task < self.task.index for example in examples)

    def log(self, name: str, value: float) -> None:
        """A number of this step for metrics.jsonl, W&B and the console."""
        self.terms[name] = value
