"""Orthogonal subspace fine-tuning (OSF, "Sculpting Subspaces", ICLR 2026, arXiv:2504.07097), on peft's layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from cl_runner.config import Fraction, Positive
from cl_runner.data.task import Task
from cl_runner.layers.subspaces import Subspaces
from cl_runner.layers.targets import Target, linear_layers
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.low_rank import classifier_head, name_of, needs_of, save_unwrapped, sizes_beneath
from cl_runner.needs import Needs, Outline
from cl_runner.said import Said
from cl_runner.trained import Trained


@dataclass
class OSF(Method):
    """W = U S V^T before each task; the directions of the largest singular values stay, the rest learns beside them.

    The gradients of U_low and V_low are taken at right angles to the kept directions, as in paper and peft. AdamW does
    not keep the angle: with project=steps what it made of U_low and V_low is turned back after every step.
    """

    kept_share: Fraction | list[Fraction]
    project: Literal["gradients", "steps"]
    targets: list[Literal["query", "key", "value", "attention_output", "ffn_gate", "ffn_input", "ffn_output"]]
    learning_rate: Positive | None

    chooses: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    protects: ClassVar[bool] = True
    renews: ClassVar[bool] = True
    rebuilds: ClassVar[bool] = True
    learns: ClassVar[Said] = "the directions of the smaller singular values but {kept_share}, a classifier's head"
    keeps: ClassVar[Said] = ""
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def targeted(self, model: nn.Module) -> list[Target]:
        """The layers whose weights are cut."""
        return linear_layers(model, self.targets, f"method.{self.node}.targets")

    def check(self, skeleton: nn.Module, longest: int) -> None:
        other = [target.name for target in self.targeted(skeleton) if not isinstance(target.module, nn.Linear)]
        if other:
            raise ValueError(
                f"method={self.node}: {other[0]} is a Conv1D, and peft's OSF layers are there for nn.Linear alone. "
                "Type: method=o_lora"
            )

    def share(self, index: int) -> float:
        """Of the singular values that a task keeps."""
        return self.kept_share[index] if isinstance(self.kept_share, list) else self.kept_share

    def make(self, model: nn.Module) -> Subspaces:
        """The layers of a model, none of which is cut yet."""
        return Subspaces(model, [target.name for target in self.targeted(model)])

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        self.head = classifier_head(model)
        self.subspaces = self.make(model)
        return model

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        if isinstance(self.kept_share, list) and len(self.kept_share) != len(outline.tasks):
            raise ValueError(
                f"method.{self.node}.kept_share names {len(self.kept_share)} shares for {len(outline.tasks)} tasks. "
                f"Type: method.{self.node}.kept_share={next(iter(self.kept_share), 0.5)} (for all), or one for each"
            )
        smallest = min(self.kept_share) if isinstance(self.kept_share, list) else self.kept_share

        def cut(model: nn.Module) -> list[str]:
            subspaces = self.make(model)
            subspaces.cut(name_of(0), smallest)
            return subspaces.parameters(name_of(0))

        return dataclasses.replace(needs_of(skeleton, cut), merged=sizes_beneath(self.targeted(skeleton)))

    def trains(self, learner: Learner, task: Task) -> Trained:
        name = name_of(task.index)
        self.subspaces.cut(name, self.share(task.index))
        return Trained(
            names=[*self.subspaces.parameters(name), *self.head],
            merged=self.subspaces.beneath(),
            learning_rate=self.learning_rate,
        )

    @torch.no_grad()
    def after_step(self, learner: Learner) -> None:
        if self.project == "gradients":
            return
        assert learner.task is not None
        weights = learner.parameters()
        for name, turned in self.subspaces.turned(name_of(learner.task.index), learner.trained):
            learner.trained[name].copy_(turned)
            if weights[name] is not learner.trained[name]:
                weights[name].copy_(turned)

    def conclude(self, learner: Learner, task: Task) -> None:
        name = name_of(task.index)
        learner.merge(self.subspaces.merged(name))
        self.subspaces.remove(name)

    def export(self, model: nn.Module, tasks: Sequence[Task], folder: Path, base: str) -> str | None:
        return save_unwrapped(model, self.subspaces, folder)
