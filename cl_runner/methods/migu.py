"""Magnitude-based gradient updating (Du et al. 2024, MIGU, arXiv:2406.17245), and what PIECE (arXiv:2511.15375) ran."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import Share
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said
from cl_runner.sparse.groups import blocks


@dataclass
class MIGU(Method):
    """From the second task on, only what answers the task's texts strongly learns them; the rest's gradient is 0.

    `outputs`: of each linear layer in a block the rows whose mean |output| over the batch's tokens is at least the
    quantile `threshold` of the layer's (section 3.2). Biases are not masked. `inputs`: of each block the channels of
    the largest mean |hidden state| at its input over the task's prompts, a share of 1 - `threshold`; what does not
    read the hidden state learns whole (PIECE's release, MIGU.py and process_mask.py).
    """

    form: Literal["outputs", "inputs"]
    threshold: Share

    state: ClassVar[tuple[str, ...]] = ("channels",)
    protects: ClassVar[bool] = True
    directs: ClassVar[bool] = True
    keeps_passes: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = {"form": {"inputs": "a mask of the channels of each block"}}
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.channels: dict[str, Tensor] = {}  # 1 for those of a block's input that learn, by the block's name
        self._watched: WeakSet[nn.Module] = WeakSet()
        self._task: Task | None = None
        self._sums: dict[str, Tensor] = {}  # of |output| or |hidden state|, by the layer's or block's name
        self._counts: dict[str, float] = {}
        self._masks: list[Tensor] = []  # of the tokens that are no padding: of texts, of answers a decoder reads
        self._counting = False
        self._training = False  # the pass under way, and not one for old outputs

    def acts_on(self, skeleton: nn.Module, trained: Collection[str]) -> bool:
        inside, modules = _inside(skeleton), dict(skeleton.named_modules())
        for name in trained:
            layer, _, kind = name.rpartition(".")
            linear = kind == "weight" and (isinstance(modules.get(layer), nn.Linear | Conv1D) or "lora_" in layer)
            if name.startswith(inside) and (linear or self.form == "inputs"):
                return True
        return False

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        return Needs()

    def _watch(self, model: nn.Module) -> None:
        """Count what layers and blocks answer and read, of all that are there now.

        Of an adapter, A is known by its own output, and B by that of the layer that it is added to.
        """
        inside = _inside(model)
        for name, module in model.named_modules():
            if module in self._watched:
                continue
            if self.form == "inputs" and f"{name}." in inside:
                module.register_forward_pre_hook(self._reads(name))
            linear = isinstance(module, nn.Linear | Conv1D) or hasattr(module, "lora_B")
            counts = linear and name.startswith(inside) and not re.search(r"\.(base_layer|lora_B\..*)$", name)
            if self.form == "outputs" and counts:
                module.register_forward_hook(self._answers(name))
            self._watched.add(module)

    def _reads(self, name: str) -> Any:
        return lambda module, given: self._count(name, given[0])

    def _answers(self, name: str) -> Any:
        return lambda module, given, answer: self._count(name, answer)

    @torch.no_grad()
    def _count(self, name: str, values: Tensor) -> None:
        if not self._counting or (self.form == "outputs" and not self._training):
            return
        # A decoder's layer whose text and answer are of one length reads the answer, but for keys and values.
        fitting = [mask for mask in self._masks if mask.shape == values.shape[:-1]]
        mask = fitting[-1 if "decoder" in name else 0] if fitting else values.new_ones(values.shape[:-1])
        size = (values.float().abs() * mask[..., None]).flatten(0, -2).sum(0)
        self._sums[name] = self._sums[name] + size if name in self._sums else size
        self._counts[name] = self._counts.get(name, 0.0) + float(mask.sum())

    def _clear(self) -> None:
        self._sums, self._counts, self._counting = {}, {}, False

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        self._training = torch.is_grad_enabled()
        if self._counting:
            answers = [batch["labels"] >= 0] if "decoder_input_ids" in batch else []
            self._masks = [batch["attention_mask"], *answers]
        return batch

    # inputs: once per task
    @torch.no_grad()
    def before_task(self, learner: Learner, task: Task) -> None:
        if self.form == "outputs" or not learner.has_old_tasks(task):
            return
        learner.model.eval()
        self._watch(learner.model)
        self._clear()
        self._counting = True
        for batch in learner.sorted_batches(task.train, 32):
            learner.forward(batch)
        for name, sums in self._sums.items():
            best = sums.topk(max(1, int((1 - self.threshold) * len(sums)))).indices
            self.channels[name] = torch.zeros_like(sums).index_fill_(0, best, 1.0)
        self._clear()

    # outputs: every step
    def prepare(self, learner: Learner, part: Part, batch: Batch) -> Batch:
        assert learner.task is not None
        if self._task is not learner.task:  # all that trains is there now
            self._watch(learner.model)
            self._task = learner.task
        self._counting = self.form == "outputs" and learner.has_old_tasks(learner.task)
        return batch

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> float:
        self._counting = False
        return 0.0

    def grads(self, learner: Learner) -> None:
        weights = learner.parameters()
        for name, values in learner.trained.items():
            mask = self._mask(learner, name, weights[name].shape)
            if mask is not None and values.grad is not None:
                values.grad.mul_(learner.part(name, mask.expand_as(weights[name]).contiguous()))
        self._clear()

    def _mask(self, learner: Learner, name: str, shape: torch.Size) -> Tensor | None:
        """1 where a tensor's gradient stays, to be broadcast; None = everywhere."""
        owner, _, kind = name.rpartition(".")
        inward = isinstance(learner.model.get_submodule(owner), Conv1D)  # [inputs, outputs], not [outputs, inputs]
        owner = owner.partition(".lora_B.")[0]
        if owner in self._sums and kind == "weight":
            strength = self._sums[owner] / self._counts[owner]
            rows = (strength >= strength.quantile(self.threshold)).float()
            return rows if inward else rows[:, None]
        block = next((block for block in self.channels if name.startswith(f"{block}.")), None)
        if block is None:
            return None
        channels = self.channels[block]
        if shape[0 if inward else -1] != len(channels):
            return None
        return channels[:, None] if inward and len(shape) > 1 else channels


def _inside(model: nn.Module) -> tuple[str, ...]:
    """How the names of what lies in a block begin."""
    names = [name for name, _ in model.named_parameters()]
    return tuple(f"{block}." for stack in blocks(names).values() for block in stack)
