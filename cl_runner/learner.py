"""What a method may ask of the running system: weights, forward passes, importance, batches, logging."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cl_runner.config import Evaluation, TaskOrder
from cl_runner.config import Importance as ImportanceOptions
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Answering, Batch, Family, Output, Prediction
from cl_runner.families.freezing import frozen
from cl_runner.methods.base import Method
from cl_runner.sparse import importance_cache
from cl_runner.sparse.bits import weights_hash
from cl_runner.sparse.importance import Batch as ImportanceBatch
from cl_runner.sparse.importance import Importance, cap, draw_labels, measure
from cl_runner.sparse.importance_cache import named
from cl_runner.tracking.clock import Clock

#: Called with a phase's name, the number of items done and the number of items in all; may raise to interrupt.
Progress = Callable[[str, int, int], None]


#: PE eq. 1: every example, its own label, the exact Fisher.
EXACT = ImportanceOptions(
    micro_batch=1,
    batch_size=16,
    max_examples=None,
    labels="data",
    answer_tokens="mean",
    accumulate="device",
    passes=1,
    cache_gb=0,
)


def derive_seed(*parts: object) -> int:
    """A seed that depends on `parts` only: the same on every machine and after every resume."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Learner:
    """The model being trained and the operations a method may ask of it.

    Attributes:
        selected: flat positions by tensor name, if only some entries of the weights train; set by the method that
            selects them.
        selectable: entries of every tensor that they were selected from, by name.
        trained: what the optimizer holds now, by the name of the tensor it belongs to; set by the training loop.
        written: what the method itself set when the task began, as it was before, by name; apart from what trains.
        added: names of parameters that the method brought along; the others are the backbone's.
        terms: what methods logged in the current step.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        tasks: Sequence[Task],
        seed: int,
        device: torch.device,
        precision: str = "fp32",
        order: TaskOrder | None = None,
        clock: Clock | None = None,
        progress: Progress | None = None,
        importance: ImportanceOptions | None = None,
        cache: Path | None = None,
        warn: Callable[[str], None] = print,
        method: Method | None = None,
        evaluation: Evaluation | None = None,
    ):
        self.method = method or Method()
        backbone = {name for name, _ in model.named_parameters()}
        self.restart = order is not None and order.restart
        self.model = self.method.build(model, tasks, seed, self.restart).to(device)
        self.added = frozenset(name for name, _ in self.model.named_parameters() if name not in backbone)
        self.family = family
        self.tasks = tasks
        self.seed = seed
        self.device = device
        self.joint = order is not None and order.joint
        self.clock = clock or Clock()
        self.progress: Progress = progress or (lambda phase, done, total: None)
        self.trained: dict[str, nn.Parameter] = {}
        self.selected: dict[str, Tensor] = {}
        self.selectable: dict[str, int] = {}
        self.written: dict[str, Tensor] = {}
        self.terms: dict[str, float] = {}
        self.measured: dict[str, Importance] = {}  # of the current task, by everything it depends on
        self.measured_on_new_data = False  # whether importance of the current task needed its own data
        self.importance_cached = False  # whether it came from disk
        self.precision = precision
        self.cache = cache
        self._evaluation = evaluation
        self._importance = importance
        self._warn = warn
        self._task_of = {
            example: task.index
            for task in reversed(tasks)  # of a joint order's examples each belongs to the first task that has it
            for example in (*task.train, *task.validation, *task.test)
        }

    # weights
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter of the model by name, whether it trains or not."""
        return dict(self.model.named_parameters())

    def params(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def train_all(self, trains: bool) -> None:
        """Let all weights train but those that the backbone freezes, or none."""
        never = frozen(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(trains and name not in never)

    def weights(self) -> dict[str, Tensor]:
        """A copy of every parameter."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def part(self, name: str, full: Tensor) -> Tensor:
        """The entries of a tensor of `name`'s full size that train now: all, or a vector of the selected ones."""
        return full.view(-1)[self.selected[name].to(full.device)] if name in self.selected else full

    # data
    def has_old_tasks(self, task: Task) -> bool:
        """Whether there is anything to forget: not in the base task, nor when tasks start from pretrained weights."""
        return task.index > 0 and not self.restart

    def scored_on(self, task: Task) -> tuple[Example, ...]:
        """The examples that evaluations of this run score a task on."""
        validation = self._evaluation is not None and self._evaluation.split == "validation"
        return task.validation if validation else task.test

    def old_examples(self, task: Task) -> list[Example]:
        """All training data of the tasks before `task` (PE eq. 1: D)."""
        if self.joint:  # the task before holds all of them
            return list(self.tasks[task.index - 1].train)
        return [example for old in self.tasks[: task.index] for example in old.train]

    def task_of(self, example: Example) -> int:
        """Index of the task that an example belongs to; -1 for one that is in none, such as a probe's."""
        return self._task_of.get(example, -1)

    def seed_of(self, *parts: object) -> int:
        """A seed for one purpose, derived from the run's seed."""
        return derive_seed(self.seed, *parts)

    def collate(self, examples: Sequence[Example], positions: Sequence[int], answers: bool = True) -> Batch:
        """The examples at `positions` as a batch on the device; `index` holds the positions."""
        chosen = [examples[i] for i in positions]
        batch = self.family.collate(chosen, answers) | self.method.inputs(self, chosen)
        batch["index"] = torch.tensor(list(positions))
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def sorted_batches(self, examples: Sequence[Example], size: int) -> Iterator[Batch]:
        """All examples once, longest first, so that padding is small and memory peaks at once."""
        for positions in self.by_length(examples, size):
            yield self.collate(examples, positions)

    def by_length(self, examples: Sequence[Example], size: int, answers: bool = True) -> Iterator[list[int]]:
        """Positions of all examples in parts of `size`, longest first."""
        lengths = self.family.lengths(examples, answers)
        order = sorted(range(len(examples)), key=lambda i: (-lengths[i], i))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    # passes
    def _in_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def forward(self, batch: Batch) -> Output:
        """One forward pass at the current weights, in the run's precision."""
        with self._in_precision():
            return self.family.forward(self.model, self.method.before_forward(self, batch))

    def answering(self, task: Task) -> Answering:
        """How the examples of a task are answered."""
        if self._evaluation is None:
            return Answering(task.max_new_tokens)
        return Answering(
            max_new_tokens=task.max_new_tokens,
            labels=task.labels if self._evaluation.labels == "likelihood" else (),
            sampling=self._evaluation.sampling,
            slice_by=self._evaluation.answer_slice,
        )

    def answer(self, batch: Batch, how: Answering) -> list[Prediction]:
        """The model's answers to a batch without answers, in the run's precision."""
        with self._in_precision():
            return self.family.answer(self.model, self.method.before_forward(self, batch), how)

    @contextmanager
    def at(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The model at other values of what trains, such as an old task's: no second model is needed.

        Args:
            weights: by name, in the shape of `part`.
        """
        now = {}
        for name, parameter in self.parameters().items():
            if name in self.selected and name in weights:
                index = self.selected[name].to(self.device)
                now[name] = parameter.data.view(-1)[index].clone()
                parameter.data.view(-1)[index] = weights[name]
            elif name in weights:
                now[name], parameter.data = parameter.data, weights[name]
        try:
            yield
        finally:
            for name, parameter in self.parameters().items():
                if name in self.selected and name in now:
                    parameter.data.view(-1)[self.selected[name].to(self.device)] = now[name]
                elif name in now:
                    parameter.data = now[name]

    @torch.no_grad()
    def record_logits(self, examples: Sequence[Example]) -> Tensor:
        """Logits [examples, V] at the current weights, without dropout."""
        self.model.eval()
        rows: list[Tensor | None] = [None] * len(examples)
        for batch in self.sorted_batches(examples, 64):
            for position, row in zip(batch["index"].tolist(), self.forward(batch).logits, strict=True):
                rows[position] = row
            self.progress("record outputs", int(sum(row is not None for row in rows)), len(examples))
        return torch.stack([row for row in rows if row is not None])

    def fisher(self, examples: Sequence[Example], names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The diagonal Fisher of these parameters at the current weights, fp32, mean over the data (PE eq. 1)."""
        return self.importance(examples, names=names).mean_fisher()

    def importance(
        self,
        examples: Sequence[Example],
        gradient: bool = False,
        dtype: torch.dtype = torch.float32,
        names: Collection[str] | None = None,
    ) -> Importance:
        """Sums of gradients and of squared gradients of parameters at the current weights. Offline time.

        Computed once per task and data, however many methods of a chain ask for it, and kept on disk for other runs
        that come to the same weights and data.

        Args:
            gradient: whether the sum of gradients is needed as well.
            dtype: of the sums.
            names: of the parameters to measure; None = all but frozen ones. What was measured of more of them serves
                as well.
        """
        options, cache = self._importance or EXACT, self.cache / "importance" if self.cache else None
        never = frozen(self.model)
        wanted = [name for name in self.parameters() if name not in never and (names is None or name in names)]
        with self.clock.phase("importance"):
            chosen = cap(examples, options.max_examples, self.seed_of("importance", "examples"))
            weights = weights_hash(self.parameters())
            # What was computed with the sum of gradients serves without it as well.
            keys = {both: self._importance_key(chosen, both, dtype, options, weights) for both in {gradient, True}}
            for key in keys.values():
                if key in self.measured and self.measured[key].fisher.keys() >= set(wanted):
                    return self.measured[key]
            self.measured = {}  # of other data: as large as the model, and not needed any more
            for key in keys.values():
                kept = importance_cache.load(cache, named(key, wanted)) if cache else None
                if kept is not None:
                    whole = options.accumulate == "device" and options.passes == 1
                    self.measured[key] = kept.to(self.device) if whole else kept
                    self.importance_cached = True
                    return self.measured[key]
            found = self._measure(chosen, gradient, dtype, options, wanted)
            self.measured[keys[gradient]] = found
            if cache:
                limit = int(options.cache_gb * 1e9)
                importance_cache.store(cache, named(keys[gradient], wanted), found, limit, self._warn)
        return found

    def _measure(
        self,
        examples: Sequence[Example],
        gradient: bool,
        dtype: torch.dtype,
        options: ImportanceOptions,
        names: Sequence[str],
    ) -> Importance:
        exact = options.micro_batch == 1 and dtype == torch.float32
        size = options.batch_size if options.micro_batch == 1 else options.micro_batch

        def batches() -> Iterator[Batch]:
            if exact:
                yield from self.sorted_batches(examples, size)
            else:  # which examples share a unit matters: the data's own order
                for start in range(0, len(examples), size):
                    yield self.collate(examples, range(start, min(start + size, len(examples))))

        def loss(model: nn.Module, batch: ImportanceBatch) -> Tensor:
            with self._in_precision():
                given = self.method.before_forward(self, dict(batch))
                if options.micro_batch == 1:
                    return self.family.loss_sum(model, given, options.answer_tokens)
                return self.family.forward(model, given).loss

        def draw(batch: ImportanceBatch, generator: torch.Generator) -> ImportanceBatch:
            output = self.forward(dict(batch))
            return self.family.relabel(dict(batch), draw_labels(output.logits, generator))

        return measure(
            self.model,
            batches,
            loss,
            names,
            micro_batch=options.micro_batch,
            gradient=gradient,
            dtype=dtype,
            accumulate=options.accumulate,
            passes=options.passes,
            draw=draw if options.labels == "model" else None,
            seed=self.seed_of("importance", "labels"),
            on_batch=lambda done: self.progress("importance", done, options.passes * len(examples)),
        )

    def _importance_key(
        self,
        examples: Sequence[Example],
        gradient: bool,
        dtype: torch.dtype,
        options: ImportanceOptions,
        weights: str,
    ) -> str:
        """Everything the bits of the result depend on: weights, data, how they enter the model, options, machine."""
        kind = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        texts = hashlib.sha256(json.dumps([e.content() for e in examples]).encode()).hexdigest()
        return importance_cache.key(
            weights=weights,
            data={
                "examples": texts,
                "family": self.family.identity(),
                "batch_size": options.batch_size,
                "answer_tokens": options.answer_tokens,
            },
            micro_batch=options.micro_batch,
            gradient=gradient,
            labels=options.labels,
            seed=self.seed if options.labels == "model" else None,
            max_examples=options.max_examples,
            dtype=dtype,
            precision=self.precision,
            # Another kind of device, or number of threads, may differ in the last bits; sums in main memory as well.
            device=f"{kind}/{torch.get_num_threads()} threads/{options.accumulate}",
        )

    # logging
    def log(self, name: str, value: float) -> None:
        """A number of this step for metrics.jsonl, W&B and the console."""
        self.terms[name] = value
