"""Selection of the weights that learn a task: PE (2022.naacl-industry.35, 3.1), PIECE (arXiv:2511.15375), controls.

Which paper it is stands in the YAML: scores, the data they are computed on, smallest or largest, scope and share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cl_runner.config import Fraction, NonNegative, Positive, Score, Sharded
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.freezing import frozen
from cl_runner.importance import importance
from cl_runner.learner import Learner
from cl_runner.methods.base import Chain, Method
from cl_runner.needs import Needs, Outline
from cl_runner.patterns import match, module_types
from cl_runner.read_if import ReadIf
from cl_runner.said import Said
from cl_runner.sparse.groups import group_sizes, layer_groups
from cl_runner.sparse.importance import OnDevice
from cl_runner.sparse.scores import NEEDS_GRADIENT, NEEDS_MEAN, NEEDS_PASS, scores
from cl_runner.sparse.selection import random_selection, select
from cl_runner.trained import Trained
from cl_runner.zero_gradient import Kept, counts, kept_sizes, whole_positions, zero_gradient


@dataclass
class Selector(Method):
    """Offline: score the weights, select a share of them. Online: the optimizer knows the selected entries only.

    Positions are selected anew for every task.
    """

    score: Score
    damping: Annotated[NonNegative, ReadIf("score", ("second_order",))]
    score_data: Annotated[Literal["old_tasks", "new_task"], ReadIf("score", ("random", "magnitude"), unless=True)]
    keep: Annotated[Literal["smallest", "largest"], ReadIf("score", ("random",), unless=True)]
    scope: Literal["layer", "tensor", "global"]
    fraction: Fraction
    include: list[str]
    exclude: list[str]
    exclude_modules: list[str]
    exclude_zero_gradient: bool
    first_task: Literal["whole", "selected"]
    learning_rate: Positive | None
    compat: list[Literal["missing_mask", "bf16_accumulation", "count_excluded"]]

    sharded: ClassVar[Sharded] = "always"
    state: ClassVar[tuple[str, ...]] = ("indices", "left_out", "zeros")
    chooses: ClassVar[bool] = True
    learns: ClassVar[Said] = {
        "first_task": {
            "whole": "all weights in the first task, then {fraction} of them",
            "selected": "{fraction} of the weights",
        },
        "scope": {"layer": "of each layer", "tensor": "of each tensor"},
        "keep": {"smallest": "the smallest by {score}", "largest": "the largest by {score}"},
        "score": {"random": "drawn anew for each task"},
    }
    keeps: ClassVar[Said] = "the positions of what trains"
    old_data: ClassVar[Said] = {"score_data": {"old_tasks": "importance"}}
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.indices: dict[str, Tensor] = {}  # flat positions of the selected entries by tensor name
        self.left_out: dict[str, int] = {}  # entries that were not selected from, as they have no gradient
        self.zeros: dict[str, int] = {}  # selected entries without a gradient, by reason

    def plain_at_first(self) -> bool:
        return True

    def check(self, skeleton: nn.Module, longest: int) -> None:
        sizes = self.candidates(skeleton)
        entries = sum(sizes.values())
        if self.fraction * entries < 1:
            raise ValueError(
                f"method.{self.node}.fraction={self.fraction:g} of {entries} weights selects not one; "
                f"the least is {1 / entries:.1g}. Type: method.{self.node}.fraction={1 / entries:.1g}"
            )
        if self.first_task == "selected" and self.score_data == "old_tasks" and self.score in NEEDS_PASS:
            raise ValueError(
                f"method.{self.node}.first_task=selected: before the first task there are no old tasks to compute "
                f"scores on. Type: method.{self.node}.score_data=new_task (or method.{self.node}.first_task=whole)"
            )

        if self.exclude_zero_gradient and "missing_mask" in self.compat:
            raise ValueError(
                f"method.{self.node}.exclude_zero_gradient=true leaves whole tensors without selected entries, and "
                f"compat=[missing_mask] trains such tensors as a whole. Type: method.{self.node}.exclude_zero_gradient="
                "false (or compat without missing_mask)"
            )

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        candidates, fraction = self.candidates(skeleton), self.fraction
        if "count_excluded" in self.compat:
            fraction *= sum(counted(skeleton).values()) / sum(candidates.values())
        selectable = self._selectable(skeleton)
        whole = sum(selectable.values()) - sum(candidates.values())
        share = (min(1.0, fraction) * sum(candidates.values()) + whole) / sum(selectable.values())
        return Needs(
            first="selected" if self.first_task == "selected" else "all",
            later="selected",
            candidates=selectable,
            fraction=share if whole else min(1.0, fraction),
            clustered=self.keep == "largest" and self.score not in ("random", "magnitude"),
            measures=frozenset({self.score_data}) if self.score in NEEDS_PASS else frozenset(),
            measured=None if self.score in NEEDS_MEAN else candidates,
            sums=2 if self.score in NEEDS_GRADIENT else 1,
            sum_item=2 if "bf16_accumulation" in self.compat else 4,
        )

    def select(self, learner: Learner, task: Task) -> None:
        if learner.has_old_tasks(task) or self.first_task == "selected":
            self.indices = self._select(learner, task)

    def trains(self, learner: Learner, task: Task) -> Trained:
        if not self.indices:
            return Trained()
        sizes = self._selectable(learner.model)
        left = {name: size - self.left_out.get(name, 0) for name, size in sizes.items()}
        selectable = {name: size for name, size in left.items() if size}
        return Trained(selected=self.indices, selectable=selectable, learning_rate=self.learning_rate)

    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        """How many of the selected entries cannot learn from the task's texts, by reason."""
        if not self.indices:
            return {}
        return {
            "zero_gradient": {
                "selected": sum(self.zeros.values()),
                **self.zeros,
                "left_out": sum(self.left_out.values()),
            }
        }

    def candidates(self, model: nn.Module) -> dict[str, int]:
        """Entries of every tensor of a model that may be selected from, by name."""
        sizes = {name: p.numel() for name, p in model.named_parameters() if name not in frozen(model)}
        names = match(list(sizes), self.include, self.exclude, self.exclude_modules, module_types(model))
        return {name: sizes[name] for name in names}

    def _selectable(self, model: nn.Module) -> dict[str, int]:
        """The candidates; under missing_mask what else trains: of a model that sees, all that is not frozen.

        PIECE's release froze the input embeddings of language models alone: of models that see, the table had no mask
        file either and trained as a whole.
        """
        if "missing_mask" not in self.compat or not hasattr(getattr(model, "config", None), "vision_config"):
            return self.candidates(model)
        return {name: p.numel() for name, p in model.named_parameters() if name not in frozen(model)}

    def _select(self, learner: Learner, task: Task) -> dict[str, Tensor]:
        everything = counted(learner.model)
        sizes = self.candidates(learner.model)
        groups = layer_groups(list(everything), self.scope)
        shared = group_sizes(everything, groups) if "count_excluded" in self.compat else None
        measured = None
        if self.score in NEEDS_PASS:
            data = learner.old_examples(task) if self.score_data == "old_tasks" else task.train
            learner.measured.on_new_data = self.score_data == "new_task"
            kind = torch.bfloat16 if "bf16_accumulation" in self.compat else torch.float32
            # Two of the release's scores have the mean over all weights in them.
            names = None if self.score in NEEDS_MEAN else sizes
            found = importance(learner, data, gradient=self.score in NEEDS_GRADIENT, dtype=kind, names=names)
            measured = found.on(learner.device)  # sums may lie in main memory, where ranking them takes minutes
        weights = OnDevice(learner.parameters(), learner.device)
        seed = learner.seed_of("selection", task.index)  # PE-rand draws anew for each task
        with learner.clock.phase("selection"):
            zeros = zero_gradient(learner, self._trained_on(learner, task), sizes)
            without = zeros if self.exclude_zero_gradient else {}
            kept = kept_sizes(sizes, without)
            self.left_out = {name: size - kept.get(name, 0) for name, size in sizes.items() if name in without}
            if self.score == "random":
                selection = random_selection(kept, groups, self.fraction, seed, shared)
            else:
                computed = Kept(scores(self.score, measured, weights, damping=self.damping), without)
                selection = select(computed, kept, groups, self.fraction, self.keep, seed, counted=shared)
            indices = whole_positions(selection.indices, sizes, without)
        if "missing_mask" in self.compat:
            # As released with PIECE: a tensor without a mask file trained as a whole.
            every = self._selectable(learner.model)
            indices = {name: indices.get(name, torch.arange(size)) for name, size in every.items()}
        self.zeros = counts(indices, sizes, zeros)
        self._say_zeros(learner, task, sum(index.numel() for index in indices.values()))
        return indices

    def _trained_on(self, learner: Learner, task: Task) -> Sequence[Example]:
        """What the task trains on: its own texts, and old ones where a method of the chain brings some back."""
        methods = learner.method.methods.values() if isinstance(learner.method, Chain) else ()
        replays = any(type(m).data is not Method.data or type(m).steps is not Method.steps for m in methods)
        return [*learner.old_examples(task), *task.train] if replays and task.index else task.train

    def _say_zeros(self, learner: Learner, task: Task, selected: int) -> None:
        """Of the selected entries those that have no gradient."""
        idle = sum(self.zeros.values())
        if idle:
            learner.warn(
                f"Note: {idle} of {selected} weights selected for {task.name} cannot learn, as their gradient is 0 by "
                f"construction: {self.zeros['key_biases']} in biases of keys, {self.zeros['unread_rows']} in rows of "
                f"embeddings that its texts do not read. For others type method.{self.node}.exclude_zero_gradient=true"
            )


def counted(model: nn.Module) -> dict[str, int]:
    """Entries by name that a share is taken of where what may not be selected counts: all but frozen ones.

    Of the input embeddings always: PIECE's release measured them as well, and froze them only while it trained.
    """
    table = model.get_input_embeddings().weight if isinstance(model, PreTrainedModel) else None
    never = frozen(model)
    return {name: p.numel() for name, p in model.named_parameters() if name not in never or p is table}
