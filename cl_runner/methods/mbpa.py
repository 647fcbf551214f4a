"""MbPA++: a memory, replayed sparsely, that adapts the weights to each question (de Masson d'Autume et al. 2019)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from cl_runner.batch import Batch, Part
from cl_runner.config import Count, Fraction, NonNegative, Positive, Whole
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Prediction
from cl_runner.learner import Learner
from cl_runner.methods.base import Method, Predict
from cl_runner.methods.memory import Place, kept_examples, own_examples, own_of, place_of, recall
from cl_runner.needs import Added, LocalSteps, Needs, Outline
from cl_runner.read_if import ReadIf
from cl_runner.retrieval.nearest import Nearest, check_search
from cl_runner.said import Said

#: Texts of one pass of the key network.
AT_ONCE = 64


@dataclass
class MbPA(Method):
    """Every example trained on may enter the memory; now and then a step is made on some of it (arXiv:1906.01076).

    A question is answered at W_i = argmin_W strength |W - W_0|^2 + (1/K) sum_k -log p(y_k | x_k; W) (eq. 2), by some
    steps from the weights W_0 of the run, on the K examples of the memory whose keys are nearest to its own. A key is
    what the backbone made of a text before it learned: the first token's last hidden state of a classifier, the mean
    over a text's tokens of a language model, whose -log p is the mean over all tokens of the answers, as in training.
    """

    share: Fraction
    every: Count
    batch_size: Count
    neighbours: Count
    local_steps: Whole
    optimizer: Literal["sgd", "adam"]
    local_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1), ReadIf("optimizer", ("sgd",))]
    strength: NonNegative
    pass_size: Count
    search: Literal["exact", "faiss"]

    state: ClassVar[tuple[str, ...]] = ("memory", "keys", "batches", "adapted")
    protects: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = (
        "{share} of the examples of each task, as numbers of rows, with a key of each: 4 bytes per number of a hidden "
        "state; the backbone as it was at the start, read anew and not stored: 4 bytes per weight of the model"
    )
    old_data: ClassVar[Said] = "learned"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.memory: list[list[Place]] = []  # of each task that began
        self.keys: list[Tensor] = []  # [places, width] of each task that is over
        self.batches = 0  # of all tasks
        self.adapted: list[str] = []  # parameters that local steps move: those that trained last
        self._entered: set[tuple[int, int]] = set()
        self._chosen: dict[int, set[int]] = {}  # rows of a task that enter the memory
        self._network: nn.Module | None = None
        self._nearest: Nearest | None = None
        self._spent, self._answered = 0.0, 0  # seconds, examples

    def check(self, skeleton: nn.Module, longest: int) -> None:
        check_search(self.search, f"method.{self.node}.search")

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        assert isinstance(skeleton, PreTrainedModel)
        width = skeleton.config.get_text_config().hidden_size

        def adds(earlier: Sequence[int], batches: int, examples: int) -> Added:
            return Added(batches // self.every * self.batch_size, batches // self.every)

        return Needs(
            weight_bytes=next(skeleton.parameters()).element_size(),
            example_bytes=math.ceil(4 * width * self.share),
            local=LocalSteps(
                self.neighbours,
                self.pass_size,
                self.local_steps,
                # What they began at, what they are now, their gradients, and the optimizer's one or two numbers.
                16 if self.optimizer == "sgd" else 20,
            ),
            adds=adds,
            largest_part=lambda batch: max(batch, self.batch_size),
        )

    # training
    def before_task(self, learner: Learner, task: Task) -> None:
        if learner.restart:
            self.memory, self.keys, self._entered, self._nearest = [], [], set(), None
        self.memory.append([])
        self.adapted = list(learner.params()) or self.adapted

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        self._enter(learner, own_of(steps[0][0].examples, task, learner.tasks))
        self.batches += 1
        if self.batches % self.every:
            return steps
        chance = random.Random(learner.seed_of("mbpa", task.index, step))
        places = [place for kept in self.memory for place in kept]
        drawn = recall(learner.tasks, chance.sample(places, min(len(places), self.batch_size)))
        return [*steps, [Part(drawn, kind="replay")]] if drawn else steps

    def _enter(self, learner: Learner, examples: Sequence[Example]) -> None:
        if not self._entered:
            self._entered = {(task, row) for kept in self.memory for task, row in kept}
        for example in examples:
            place = place_of(example)
            if tuple(place) not in self._entered and example.row in self._rows(learner, example.task):
                self._entered.add((example.task, example.row))
                self.memory[-1].append(place)

    def _rows(self, learner: Learner, index: int) -> set[int]:
        """Rows of a task that may enter: a share, drawn once."""
        if index not in self._chosen:
            task = learner.tasks[index]
            count = max(1, round(self.share * len(own_examples(task))))
            kept = kept_examples(task, count, "random", learner.seed_of("mbpa", index))
            self._chosen[index] = {example.row for example in kept}
        return self._chosen[index]

    def after_task(self, learner: Learner, task: Task) -> None:
        with learner.clock.phase("keys"):
            examples = recall(learner.tasks, self.memory[-1])
            rows: list[Tensor | None] = [None] * len(examples)
            for positions in learner.by_length(examples, AT_ONCE, answers=False):
                found = self._key(learner, learner.collate([examples[i] for i in positions], answers=False))
                for position, row in zip(positions, found, strict=True):
                    rows[position] = row
                learner.progress("keys", sum(row is not None for row in rows), len(examples))
            self.keys.append(torch.stack([r for r in rows if r is not None]) if rows else torch.empty(0, 0))
        self._nearest = None

    @torch.no_grad()
    def _key(self, learner: Learner, batch: Batch) -> Tensor:
        """[B, width], on the CPU."""
        if self._network is None:
            devices = [learner.device] if learner.device.type == "cuda" else []
            with torch.random.fork_rng(devices):  # building seeds the random numbers that answers are sampled by
                model, _ = learner.family.build(learner.seed)
            network: nn.Module = model
            self._network = network.to(learner.device).eval().requires_grad_(False)
        with learner.in_precision():
            return learner.family.features(self._network, batch).cpu()

    # inference
    def predict(self, learner: Learner, batch: Batch, inner: Predict) -> list[Prediction]:
        """One by one; while a task trains, and validates, the weights answer as they are."""
        if learner.task is not None or not self.local_steps or not any(len(keys) for keys in self.keys):
            return inner(batch)
        started = time.perf_counter()
        self._nearest = self._nearest or Nearest(torch.cat([keys for keys in self.keys if len(keys)]), self.search)
        places = [place for kept in self.memory[: len(self.keys)] for place in kept]
        found: list[Prediction] = []
        for row, positions in enumerate(self._nearest(self._key(learner, batch), self.neighbours).tolist()):
            with learner.restored():
                self.adapt(learner, recall(learner.tasks, [places[position] for position in positions]))
                found += inner(batch.rows(row, row + 1))
        self._spent, self._answered = self._spent + time.perf_counter() - started, self._answered + len(found)
        return found

    def adapt(self, learner: Learner, examples: Sequence[Example]) -> None:
        """Local steps on some examples, without dropout; what moves stays moved."""
        parameters = {name: p for name, p in learner.parameters().items() if name in self.adapted}
        start = {name: p.detach().float().clone() for name, p in parameters.items()}
        moving = {name: nn.Parameter(values.clone()) for name, values in start.items()}
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(moving.values(), lr=self.local_rate, momentum=self.momentum)
        else:
            optimizer = torch.optim.Adam(moving.values(), lr=self.local_rate, eps=1e-6)  # of transformers' AdamW
        learner.model.eval()
        for _ in range(self.local_steps):
            with torch.enable_grad():
                gradients = learner.gradient(examples, self.pass_size, names=self.adapted)
            with torch.no_grad():
                for name, gradient in gradients.items():
                    moving[name].grad = gradient.float() + 2 * self.strength * (moving[name] - start[name])
            optimizer.step()
            with torch.no_grad():
                for name, values in moving.items():
                    parameters[name].copy_(values)

    # afterwards
    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        """How much is kept, and what an answer cost since the last task."""
        found: dict[str, Any] = {"memory": sum(len(kept) for kept in self.memory)}
        if self._answered:
            found["milliseconds_per_example"] = 1000 * self._spent / self._answered
        self._spent, self._answered = 0.0, 0
        return found
