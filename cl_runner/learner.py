"""What a method may ask of the running system: weights, forward passes, importance, batches, logging."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from cl_runner.config import TaskOrder
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Batch, Family, Output
from cl_runner.sparse.importance import exact_fisher
from cl_runner.tracking.clock import Clock

#: Examples of one forward and backward pass of the offline phase; the result does not depend on it.
IMPORTANCE_BATCH = 16

#: Called with a phase's name, the number of items done and the number of items in all; may raise to interrupt.
Progress = Callable[[str, int, int], None]


def derive_seed(*parts: object) -> int:
    """A seed that depends on `parts` only: the same on every machine and after every resume."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Learner:
    """The model being trained and the operations a method may ask of it.

    Attributes:
        trained: what the optimizer holds now, by the name of the tensor it belongs to; set by the training loop.
        selected: flat positions by tensor name where `trained` holds compact values instead of the whole tensor.
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
    ):
        self.model = model.to(device)
        self.family = family
        self.tasks = tasks
        self.seed = seed
        self.device = device
        self.restart = order is not None and order.restart
        self.joint = order is not None and order.joint
        self.clock = clock or Clock()
        self.progress: Progress = progress or (lambda phase, done, total: None)
        self.trained: dict[str, nn.Parameter] = {}
        self.selected: dict[str, Tensor] = {}
        self.terms: dict[str, float] = {}
        self.fishers: dict[int, dict[str, Tensor]] = {}  # of the current task, by the data they were computed on
        self._half = precision == "bf16"

    # weights
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter of the model by name, whether it trains or not."""
        return dict(self.model.named_parameters())

    def params(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def train_all(self, trains: bool) -> None:
        """Let all weights train, or none."""
        self.model.requires_grad_(trains)

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

    def old_examples(self, task: Task) -> list[Example]:
        """All training data of the tasks before `task` (PE eq. 1: D)."""
        if self.joint:  # the task before holds all of them
            return list(self.tasks[task.index - 1].train)
        return [example for old in self.tasks[: task.index] for example in old.train]

    def seed_of(self, *parts: object) -> int:
        """A seed for one purpose, derived from the run's seed."""
        return derive_seed(self.seed, *parts)

    def collate(self, examples: Sequence[Example], positions: Sequence[int]) -> Batch:
        """The examples at `positions` as a batch on the device; `index` holds the positions."""
        batch = self.family.collate([examples[i] for i in positions])
        batch["index"] = torch.tensor(list(positions))
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def sorted_batches(self, examples: Sequence[Example], size: int) -> Iterator[Batch]:
        """All examples once, longest first, so that padding is small and memory peaks at once."""
        lengths = self.family.lengths(examples)
        order = sorted(range(len(examples)), key=lambda i: (-lengths[i], i))
        for start in range(0, len(order), size):
            yield self.collate(examples, order[start : start + size])

    # passes
    def forward(self, batch: Batch) -> Output:
        """One forward pass at the current weights, in the run's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            return self.family.forward(self.model, batch)

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

    def fisher(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The exact diagonal Fisher of every parameter at the current weights, fp32 (PE eq. 1).

        Computed once per task and data, however many methods of a chain ask for it. Offline time.
        """
        key = hash(tuple(examples))
        if key not in self.fishers:
            with self.clock.phase("importance"):
                self.fishers[key] = exact_fisher(
                    self.model,
                    self.sorted_batches(examples, IMPORTANCE_BATCH),
                    self.family.loss_sum,
                    list(self.parameters()),
                    on_batch=lambda done: self.progress("importance", done, len(examples)),
                )
        return self.fishers[key]

    # logging
    def log(self, name: str, value: float) -> None:
        """A number of this step for metrics.jsonl, W&B and the console."""
        self.terms[name] = value
