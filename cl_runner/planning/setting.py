"""What a plan is made of: a run in numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from cl_runner.planning.imitation import Device
from cl_runner.planning.retrieval import Retrieval

#: All weights; selected entries; some tensors as a whole; values that texts retrieve; none.
Trains = Literal["all", "selected", "listed", "retrieved", "nothing"]


@dataclass(frozen=True)
class TaskNumbers:
    """One task in numbers."""

    name: str
    stage: str  # base | incremental
    examples: int  # trained on
    steps: int  # optimizer steps
    trains: Trains
    measured: int  # examples of the importance pass; 0 = none


@dataclass(frozen=True)
class Memory:
    """What the methods of a chain hold, and what they train."""

    fraction: float = 0.0  # of `candidates` that is selected where a task trains "selected"
    candidates: Mapping[str, int] = dataclasses.field(default_factory=dict)  # entries by parameter name
    listed: Mapping[str, int] = dataclasses.field(default_factory=dict)  # the same of what "listed" trains
    clustered: bool = False  # the largest scores lie in few input columns; others scatter
    measured: Mapping[str, int] | None = None  # entries of what importance is measured of; None = of all weights
    sums: int = 1  # numbers per weight that the importance pass fills: Fisher, or gradient and Fisher
    sum_item: int = 4  # bytes of each
    mean_bytes: int = 0  # per weight, of the mean that a method takes of those sums
    entry_bytes: int = 0  # held per trained entry while a task after the first trains, such as an anchor
    weight_bytes: int = 0  # held per weight from the first task on
    example_bytes: int = 0  # held per training example while a task after the first trains
    teacher: Literal["logits", "probabilities"] | None = None  # outputs of the old weights, computed for every batch
    retrieval: Retrieval | None = None  # of what trains "retrieved"


@dataclass(frozen=True)
class Answers:
    """What language models write, and read with their prompts, in tokens.

    Attributes:
        max_length, mean_length: of an answer in training, its end included.
        max_whole, mean_whole: of a prompt with its answer; the mean with its padding.
        generated, mean_generated: the most that a generated answer may have, of any task and on average.
        labels, label_length: how many labels the examples of `by_label` are answered by likelihood with, and how long
            they may be.
        by_label: evaluated examples that are answered so, not by generation.
    """

    max_length: int
    mean_length: float
    max_whole: int
    mean_whole: float
    generated: int
    mean_generated: float
    labels: int = 0
    label_length: int = 0
    by_label: int = 0


@dataclass(frozen=True)
class Setting:
    """What a run asks for, in numbers; options that change memory have the configuration's names."""

    device: Device
    precision: Literal["fp32", "bf16"]
    dtype: torch.dtype  # of the weights
    gradient_checkpointing: bool
    max_length: int  # tokens of the longest text or prompt
    mean_length: float  # tokens of a text or prompt in its padded batch
    batch_size: Mapping[str, int]
    micro_batch: Mapping[str, int]
    importance_batch: int
    importance_micro_batch: int  # 1 = every example's gradient by itself
    accumulate: Literal["device", "cpu"]
    passes: int
    evaluation_batch: int
    evaluated: int  # examples of all evaluations of the run
    tasks: tuple[TaskNumbers, ...]
    memory: Memory
    restart: bool  # every task starts from the first weights, which are kept
    snapshots: Literal["all", "sparse", "none"]
    cache_bytes: int  # room for importance that runs share
    family: Literal["classifier", "causal", "seq2seq", "image_text"] = "classifier"
    answers: Answers | None = None  # of language models
    encoded: int = 0  # texts whose vectors retrieval asks for
    encoder_length: int = 0  # tokens of the longest of them, as its encoder reads it

    @property
    def per_example(self) -> bool:
        """Whether one importance pass over a batch gives every example's own gradient; else it is one micro-batch."""
        return self.importance_micro_batch == 1 and self.memory.sum_item == 4

    @property
    def max_whole(self) -> int:
        """Tokens of the longest example in training, its answer included."""
        if self.answers is None:
            return self.max_length
        return min(self.answers.max_whole, self.max_length + self.answers.max_length)

    @property
    def mean_whole(self) -> float:
        """Tokens of an example in its padded batch in training, its answer included."""
        return self.mean_length if self.answers is None else min(self.answers.mean_whole, self.max_whole)

    def at_mean(self) -> Setting:
        """The same run if every example had the mean length."""
        answers = self.answers
        if answers is not None:
            length = max(1, round(answers.mean_length))
            answers = dataclasses.replace(answers, max_length=length, max_whole=max(length + 1, round(self.mean_whole)))
        return dataclasses.replace(self, max_length=max(1, round(self.mean_length)), answers=answers)
