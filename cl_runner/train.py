"""The only training loop."""

from __future__ import annotations

import bisect
import itertools
import math
import random
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner import distributed
from cl_runner.batch import Part
from cl_runner.budget import asked, course_of
from cl_runner.config import Stage, Training
from cl_runner.data.task import Task
from cl_runner.learner import Learner, derive_seed
from cl_runner.methods.base import Method
from cl_runner.optimizer import build_optimizer, step
from cl_runner.passes import Passes, Step, backward
from cl_runner.shards import Shards
from cl_runner.stored import Stored
from cl_runner.tracking.clock import OFFLINE, ONLINE
from cl_runner.trained import Held

#: Called when an epoch ends, for the score of the task under way on its validation split, in percent.
Validate = Callable[[], float]
#: Called when an epoch ends, with its number, from 1.
OnEpoch = Callable[[int], None]


@dataclass
class Best:
    """The weights of the best epoch so far, if the training selects one."""

    score: float = -math.inf
    step: int = 0
    held: dict[str, Tensor] = field(default_factory=dict)
    evaluations: int = 0


@dataclass
class Progress:
    """Where training stands inside a task, and the optimizer: what a checkpoint needs besides the method's state."""

    step: int  # batches done in this task
    steps: int  # of the whole task; where a budget ends it, as far as is known
    held: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    best: Best
    tokens: int = 0  # that these steps read
    done: bool = False
    shards: Shards | None = None  # in which some of it lies
    shared: str = ""  # under which name what comes of the task is kept for other runs; empty = it is not

    def state_dict(self) -> dict[str, Any]:
        """A tree of tensors and numbers; after the last step without the optimizer, which makes no other one."""
        shards = self.shards
        joined = dict if shards is None else shards.joined
        best = {"score": self.best.score, "step": self.best.step, "held": joined(self.best.held)}
        return {
            "step": self.step,
            "tokens": self.tokens,
            "held": joined(self.held),
            "optimizer": self._optimizer_state(joined) if self.step < self.steps else None,
            "best": {**best, "evaluations": self.best.evaluations},
            "shared": self.shared,
        }

    def _optimizer_state(self, each: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Any]:
        return by_parameter(self.optimizer.state_dict(), self._order(), each)

    def _order(self) -> list[str]:
        """The names of what the optimizer holds, as its state counts them."""
        names = {id(p): name for name, p in self.held.items()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        self.step, self.tokens = state["step"], state.get("tokens", 0)
        split = dict if self.shards is None else self.shards.split
        self.shared = state.get("shared", "")
        for name, values in split(state["held"]).items():
            self.held[name].copy_(values)
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(by_parameter(state["optimizer"], self._order(), split))
        self.best = Best(**{**state["best"], "held": split(state["best"]["held"])})


def by_parameter(
    state: dict[str, Any], names: Sequence[str], each: Callable[[dict[str, Any]], dict[str, Tensor]]
) -> dict[str, Any]:
    """An optimizer's state with other tensors in it.

    Args:
        names: of the parameters, in the order of their numbers in the state.
        each: makes them of tensors by the name of their parameter.
    """
    held = {
        number: {
            key: each({names[number]: value})[names[number]] if isinstance(value, (Tensor, Stored)) else value
            for key, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": held}


def stage_of(training: Training, task: Task) -> Stage:
    """How a task is trained: by its stage, and what the order says of it alone."""
    stage = training.incremental if task.index else training.base
    given = {} if task.training is None else task.training.model_dump(exclude_none=True)
    return stage.model_copy(update=given)


def batches_of(epochs: Sequence[int], batch_size: int) -> list[int]:
    """Batches of each epoch, its last, smaller one included.

    Args:
        epochs: examples of each.
    """
    return [math.ceil(examples / batch_size) for examples in epochs]


def number_of_steps(epochs: Sequence[int], stage: Stage, max_steps: int | None) -> int:
    """Batches of a task, whose epochs have so many examples."""
    steps = sum(batches_of(epochs, stage.batch_size))
    return steps if max_steps is None else min(steps, max_steps)


def learning_rate_factor(step: float, steps: float, schedule: str, warmup: float) -> float:
    """Share of the peak learning rate at `step` (0-based) of `steps`; `warmup` is their share or number that rises."""
    rising = warmup * steps if warmup <= 1 else min(warmup, steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (steps - step) / max(1.0, steps - rising) if schedule == "linear" else 1.0


def epoch_order(
    seed: int, task: int, epoch: int, examples: int, lengths: Sequence[int] | None = None, batch: int = 1
) -> Sequence[int]:
    """The order of examples in an epoch: a function of its arguments only, so that it survives a resume.

    Args:
        lengths: of the examples, to put such of similar length into one batch: the shuffled order is cut into
            stretches of 50 batches, each is sorted by length, and the batches are shuffled again.
        batch: examples of one step.
    """
    generator = random.Random(derive_seed(seed, "order", task, epoch))
    order = array("q", range(examples))
    generator.shuffle(order)
    if lengths is None:
        return order
    batches: list[list[int]] = []
    for start in range(0, examples, 50 * batch):
        stretch = sorted(order[start : start + 50 * batch], key=lambda i: -lengths[i])
        batches += [stretch[i : i + batch] for i in range(0, len(stretch), batch)]
    whole, rest = batches[: examples // batch], batches[examples // batch :]
    generator.shuffle(whole)  # the smaller batch stays last, where an unsorted epoch has it
    return [i for part in [*whole, *rest] for i in part]


def train_task(
    learner: Learner,
    method: Method,
    task: Task,
    stage: Stage,
    training: Training,
    resume: dict[str, Any] | None,
    on_step: Callable[[Progress, dict[str, float]], None],
    validate: Validate | None = None,
    flops_per_token: float | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[int, Best]:
    """Train one task, of which the learner knows what trains.

    Args:
        resume: of a checkpoint inside this task (`Progress.state_dict`), or None.
        on_step: called after every batch with the progress and the batch's numbers; may raise to stop.
        validate: needed where `training.select` is "best_validation".
        flops_per_token: needed where `training.budget` counts flops.
        on_epoch: called at every epoch's end, but for the last one of a task that ends with its weights.

    Returns:
        The number of entries that trained, and the epoch that they are of, if one was selected.

    Raises:
        FloatingPointError: a loss or a gradient is not finite.
    """
    with learner.holding() as held:
        if not held.parameters:
            return 0, Best()
        what = learner.what
        peak = stage.learning_rate if what.learning_rate is None else what.learning_rate
        optimizer = build_optimizer(held.parameters, training, peak, what.rates, what.optimizer)
        epochs = method.data(learner, task, [task.train] * stage.epochs)
        sizes = [len(examples) for examples in epochs]
        batches = batches_of(sizes, stage.batch_size)
        starts = [0, *itertools.accumulate(batches)]
        steps = number_of_steps(sizes, stage, training.max_steps)
        tokens = sum(sum(learner.family.lengths(examples)) for examples in epochs) if asked(training.budget) else 0
        course = course_of(training.budget, steps, tokens, flops_per_token)
        progress = Progress(0, course.shown(0, 0.0), held.parameters, optimizer, Best(), shards=learner.shards)
        if resume is not None:
            progress.load_state_dict(resume)
            resume.clear()  # or all of it would be there twice while the task trains
            held.write_through()

        def spent() -> float:
            seconds = 0.0
            if course.kind == "seconds":
                seconds = distributed.shared(learner.clock.spent((*OFFLINE, *ONLINE)))
            return course.spent(progress.step, progress.tokens, seconds)

        learner.model.train()
        learner.pass_size = stage.micro_batch or stage.batch_size
        order: Sequence[int] | None = None
        cost = spent()
        progress.done = course.over(cost)
        while not progress.done:
            number, started = progress.step, time.perf_counter()
            turn, place = divmod(number, starts[-1])  # under a budget the epochs come again
            epoch = bisect.bisect_right(starts, place) - 1
            within, examples = place - starts[epoch], epochs[epoch]
            epoch_number = turn * len(epochs) + epoch
            if within == 0 or order is None:
                lengths = learner.family.lengths(examples) if training.group_by_length else None
                order = epoch_order(learner.seed, task.index, epoch_number, len(examples), lengths, stage.batch_size)
            chosen = [examples[i] for i in order[within * stage.batch_size : (within + 1) * stage.batch_size]]
            # Every batch has its own seed, so that dropout after a resume is the same without saving random states.
            torch.manual_seed(derive_seed(learner.seed, "step", task.index, number))
            factor = learning_rate_factor(course.place(cost), course.steps, training.schedule, training.warmup)
            seed = (learner.seed, "step", task.index, number)
            passes = Passes(seed, method.keeps_passes, together=learner.shards is not None)
            found: list[Step] = []
            replayed = learner.replayed
            for parts in method.steps(learner, task, number, [[Part(chosen)]]):
                found.append(backward(learner, method, parts, stage.micro_batch, passes))
                if passes.dealt:
                    held.add_gradients()
                    found[-1].add()
                passes.over()
                method.grads(learner)
                found[-1].norm = held.clip(math.inf if training.clip is None else training.clip)
                found[-1].check(number, task, peak)
                step(optimizer, factor)
                held.write_through()
                method.after_step(learner)
            tokens = sum(one.tokens for one in found)
            progress.step, progress.tokens = number + 1, progress.tokens + tokens
            cost = spent()
            progress.done, progress.steps = course.over(cost), course.shown(progress.step, cost)
            ended = place + 1 == starts[epoch + 1]
            if validate is not None and ((ended and epoch_number >= training.select_after) or progress.done):
                with _asked(learner):
                    score = validate()
                _keep_best(progress, score)
            if on_epoch is not None and ended and (validate is not None or not progress.done):
                with _asked(learner):
                    on_epoch(epoch_number + 1)
            on_step(
                progress,
                {
                    "epoch": epoch_number + (within + 1) / batches[epoch],
                    "loss": found[0].loss,
                    "learning_rate": peak * factor,
                    "gradient_norm": found[0].norm,
                    **found[0].by_turn(),
                    **{name: value for one in found for name, value in one.terms.items()},
                    "examples": sum(one.examples for one in found),
                    "replayed_examples": learner.replayed - replayed,
                    "optimizer_steps": len(found),
                    "tokens": tokens,
                    "padding_share": 1 - tokens / sum(one.padded for one in found),
                    "tokens_per_second": tokens / (time.perf_counter() - started),
                    **({} if course.kind is None else {"budget_spent": cost}),
                },
            )
        _take_best(progress, held)
        return held.entries, progress.best


@contextmanager
def _asked(learner: Learner) -> Iterator[None]:
    """Inside, the model under training may be asked: it is whole in every process."""
    with nullcontext() if learner.shards is None else learner.shards.whole():
        yield
    learner.model.train()


@torch.no_grad()
def _take_best(progress: Progress, held: Held) -> None:
    """The values of the best epoch, if there is one."""
    if progress.best.held:
        for name, values in progress.best.held.items():
            held.parameters[name].copy_(values)
        held.write_through()


def _keep_best(progress: Progress, score: float) -> None:
    """Of equal epochs the first one stays."""
    best = progress.best
    best.evaluations += 1
    if score > best.score:
        best.score, best.step = score, progress.step
        best.held = {name: p.detach().clone() for name, p in progress.held.items()}
