"""MbPA++: a memory, replayed sparsely, that adapts the weights to each question (de Masson d'Autume et al. 2019)."""

from __future__ import annotations

import hashlib
import math
import random
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
from cl_runner.retrieval.nearest import Nearest, has_faiss
from cl_runner.said import Said
from cl_runner.tensor_files import read_cached, write_tensors

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

    state: ClassVar[tuple[str, ...]] = ("memory", "batches", "adapted", "entries")
    protects: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = (
        "{share} of the examples of each task, as numbers of rows, with a key of each on disk: 4 bytes per number of a "
        "hidden state; the backbone as it was at the start, read anew and not stored: 4 bytes per weight of the model"
    )
    old_data: ClassVar[Said] = "learned"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.batches = 0  # of all tasks
        self.adapted: list[str] = []  # parameters that local steps move: those that trained last
        self.entries: dict[str, Tensor] = {}  # flat positions of those of which some entries trained
        self._places: list[list[Place]] = []  # of each task that began
        self._entered: set[tuple[int, int]] = set()
        self._chosen: dict[int, set[int]] = {}  # rows of a task that enter the memory
        self._network: nn.Module | None = None
        self._keys: dict[int, Tensor] = {}  # [places, width] of tasks that are over
        self._nearest: tuple[Nearest, list[Place]] | None = None

    @property
    def memory(self) -> list[Tensor]:
        """Task and row of each example, [n, 2], of each task that began."""
        return [torch.tensor(places, dtype=torch.int32).view(-1, 2) for places in self._places]

    @memory.setter
    def memory(self, kept: list[Tensor]) -> None:
        self._places = [places.tolist() for places in kept]
        self._entered, self._nearest = set(), None

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        assert isinstance(skeleton, PreTrainedModel)
        width = skeleton.config.get_text_config().hidden_size

        def adds(earlier: Sequence[int], batches: int, examples: int) -> Added:
            return Added(batches // self.every * self.batch_size, batches // self.every)

        return Needs(
            weight_bytes=next(skeleton.parameters()).element_size(),
            kept_example_bytes=math.ceil(4 * width * self.share),
            local=LocalSteps(
                self.neighbours,
                self.pass_size,
                self.local_steps,
                # What they began at, what they are now, the optimizer's gradients, and its one or two numbers.
                16 if self.optimizer == "sgd" else 20,
            ),
            adds=adds,
            largest_part=lambda batch: max(batch, self.batch_size),
        )

    # training
    def before_task(self, learner: Learner, task: Task) -> None:
        if learner.restart:
            self._places, self._keys, self._entered, self._nearest = [], {}, set(), None
        if self.search == "faiss" and not has_faiss() and task.index == 0:
            learner.warn(
                "Note: FAISS is not installed. The same neighbours are found without it, more slowly where there are "
                "many. For FAISS type: pip install faiss-cpu"
            )
        self._places.append([])
        if learner.params():
            self.adapted = list(learner.params())
            self.entries = {name: positions.cpu() for name, positions in learner.selected.items()}

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        self._enter(learner, own_of(steps[0][0].examples, task, learner.tasks))
        self.batches += 1
        if self.batches % self.every:
            return steps
        chance = random.Random(learner.seed_of("mbpa", task.index, step))
        places = [place for kept in self._places for place in kept]
        drawn = recall(learner.tasks, chance.sample(places, min(len(places), self.batch_size)))
        return [*steps, [Part(drawn, kind="replay")]] if drawn else steps

    def _enter(self, learner: Learner, examples: Sequence[Example]) -> None:
        if not self._entered:
            self._entered = {(task, row) for kept in self._places for task, row in kept}
        for example in examples:
            place = place_of(example)
            if tuple(place) not in self._entered and example.row in self._rows(learner, example.task):
                self._entered.add((example.task, example.row))
                self._places[-1].append(place)

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
            self._make_keys(learner, len(self._places) - 1)
        self._nearest = None

    def _make_keys(self, learner: Learner, number: int) -> None:
        """Of a task that is over, into a file where the run has a folder, from which they are read page by page."""
        examples = recall(learner.tasks, self._places[number])
        rows: list[Tensor] = [torch.empty(0)] * len(examples)
        done = 0
        for positions in learner.by_length(examples, AT_ONCE, answers=False):
            found = self._key(learner, learner.collate([examples[i] for i in positions], answers=False))
            for position, row in zip(positions, found, strict=True):
                rows[position] = row
            done += len(positions)
            learner.progress("keys", done, len(examples))
        self._keys[number] = torch.stack(rows) if rows else torch.empty(0, 0)
        if rows and learner.store is not None:
            write_tensors(self._file(learner.store, number), {"keys": self._keys.pop(number)}, self._said(number))

    def _file(self, store: Path, number: int) -> Path:
        return store / f"{self.node}_{number:02d}.safetensors"

    def _said(self, number: int) -> dict[str, str]:
        """Whose keys they are: a file of another memory is not this one's."""
        return {"places": hashlib.sha256(self.memory[number].numpy().tobytes()).hexdigest()}

    def _keys_of(self, learner: Learner, number: int) -> Tensor:
        """Made anew if what lies on disk is not what was written: the frozen backbone gives the same ones again."""
        if number not in self._keys and learner.store is not None and self._places[number]:
            path = self._file(learner.store, number)
            if not path.is_file():
                learner.warn(f"Note: {path} is gone. It is made anew from the examples")
            kept = read_cached(path, learner.warn)
            if kept is None or kept[1] != self._said(number):
                self._make_keys(learner, number)
                kept = read_cached(path, learner.warn)
            assert kept is not None, "it was written just now"
            self._keys[number] = kept[0]["keys"]
        elif number not in self._keys:  # in a process that goes on
            self._make_keys(learner, number)
        return self._keys[number]

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
        """One by one, each at weights of its own: those of the run are never written, whatever ends an answer.

        While a task trains, and validates, the weights answer as they are.
        """
        if learner.task is not None or not self.local_steps or not any(self._places):
            return inner(batch)
        if self._nearest is None:
            known = [number for number, places in enumerate(self._places) if places]
            keys = [self._keys_of(learner, number) for number in known]
            places = [place for number in known for place in self._places[number]]
            self._nearest = Nearest(keys, self.search), places
        nearest, places = self._nearest
        found: list[Prediction] = []
        for row, positions in enumerate(nearest(self._key(learner, batch), self.neighbours).tolist()):
            own = {name: p.detach().clone() for name, p in learner.parameters().items() if name in self.adapted}
            with learner.at(own):
                self.adapt(learner, recall(learner.tasks, [places[position] for position in positions]))
                found += inner(batch.rows(row, row + 1))
        return found

    def adapt(self, learner: Learner, examples: Sequence[Example]) -> None:
        """Local steps on some examples, without dropout; what moves stays moved."""
        parameters = {name: p for name, p in learner.parameters().items() if name in self.adapted}
        moving = {name: nn.Parameter(p.detach().float()) for name, p in parameters.items()}  # of fp32 the same numbers
        start = {name: p.detach().clone() for name, p in moving.items()}
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
                    if name in self.entries:
                        positions = self.entries[name].to(gradient.device)
                        some = gradient.view(-1)[positions]
                        gradient.zero_().view(-1)[positions] = some
                    moving[name].grad = gradient.float() + 2 * self.strength * (moving[name] - start[name])
            optimizer.step()
            with torch.no_grad():
                for name, values in moving.items():
                    if parameters[name].dtype != values.dtype:
                        parameters[name].copy_(values)

    # afterwards
    def restored(self, task: Task) -> bool:
        return False

    def goes_back_to(self, tasks: Sequence[Task], seed: int) -> Sequence[Example]:
        return recall(tasks, [place for kept in self._places for place in kept])

    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        """Examples in the memory."""
        return {"memory": sum(map(len, self._places))}
