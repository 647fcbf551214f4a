"""What a plan is made of: a run in numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from cl_runner.needs import Needs, ProbePass, Trains
from cl_runner.planning.imitation import Device
from cl_runner.planning.optimizers import OptimizerNumbers
from cl_runner.planning.retrieval import EncoderNumbers

#: Tokens after which an example is written as a whole, and those between its text and its answer.
START = 16


@dataclass(frozen=True)
class TaskNumbers:
    """One task in numbers.

    Attributes:
        stage: whose micro_batch cuts it: base, incremental, or tasks.INDEX where the task has one of its own.
        largest_part: examples of a step that share a loss, before a micro_batch cuts them.
        several_parts: whether its steps have several parts.
        examples: of its own training data.
        passed: examples that go through training, with all that methods add.
        steps: of the optimizer.
        measured: examples of the importance pass; 0 = none.
        later: whether there are old tasks.
        validated: examples of the evaluations that select its best epoch.
        curve: evaluations between its epochs, and the examples of them all.
    """

    name: str
    stage: str
    largest_part: int
    examples: int
    passed: int
    steps: int
    trains: Trains
    measured: int = 0
    later: bool = False
    validated: int = 0
    curve: tuple[int, int] = (0, 0)
    several_parts: bool = False


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
        beyond: tokens that an example in training may have beyond the longest prompt to answer and the longest answer.
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
    beyond: int = 0


Kind = Literal["classifier", "causal", "seq2seq", "image_text"]


@dataclass(frozen=True)
class Setting:
    """What a run asks for, in numbers; options that change memory have the configuration's names."""

    device: Device
    precision: Literal["fp32", "bf16"]
    dtype: torch.dtype  # of the weights
    gradient_checkpointing: bool
    max_length: int  # tokens of the longest text or prompt
    mean_length: float  # tokens of a text or prompt in its padded batch
    micro_batch: Mapping[str, int]  # by stage: examples of a pass of training, at most
    importance_batch: int
    importance_micro_batch: int  # 1 = every example's gradient by itself
    accumulate: Literal["device", "cpu"]
    passes: int
    evaluation_batch: int
    evaluated: int  # examples of all evaluations of the run
    tasks: tuple[TaskNumbers, ...]
    needs: Needs  # of the methods
    optimizer: OptimizerNumbers
    selects_epoch: bool  # the best weights so far are kept
    restart: bool  # every task starts from the first weights, which are kept
    snapshots: Literal["all", "sparse", "none"]
    cache_bytes: int  # room for importance that runs share
    family: Kind = "classifier"
    answers: Answers | None = None  # of language models
    encoder: EncoderNumbers | None = None  # of the texts, where values are retrieved
    encoded: int = 0  # texts whose vectors retrieval asks for
    encoder_length: int = 0  # tokens of the longest of them, as its encoder reads it
    importance_max_length: int | None = None  # tokens of a text, and of its answer, in the importance pass

    shards: int = 1  # processes that each hold a part of the weights while they train
    always: bool = False  # and between trainings
    offload: bool = False  # what the optimizer holds of weights that train whole lies in main memory
    offloads: bool = False  # whether it may, by the methods
    evaluations: int = 0  # of the run, each with batches of its own; 0 = one of many batches
    kept_examples: int = 0  # training examples that a method may keep: of all tasks, or of one that starts anew
    adapted: int = 0  # of those evaluated, such that local steps come before their answers
    written: int = 0  # tokens of an answer that the model writes itself in training, in place of the data's; 0 = none
    asked: int = 0  # prompts that a method lets the model answer between tasks
    asked_at_once: int = 0  # at most: those of one old task
    asked_answers: Answers | None = None  # of language models, to these
    probes: tuple[ProbePass, ...] = ()  # of one measurement
    unsaid: tuple[str, ...] = ()  # methods and probes that do not say what they need

    def batches(self, examples: int) -> float:
        """Into how many batches so many of the evaluated examples are cut; each evaluation ends with a smaller one."""
        if not self.evaluations:
            return examples / self.evaluation_batch
        return self.evaluations * math.ceil(examples / self.evaluations / self.evaluation_batch)

    @property
    def per_example(self) -> bool:
        """Whether one importance pass over a batch gives every example's own gradient; else it is one micro-batch."""
        exact = self.importance_micro_batch == 1 and self.needs.sum_item == 4 and not self.needs.one_by_one
        return exact and self.importance_batch > 1  # a single example's is the batch's own

    @property
    def importance_pass(self) -> int:
        """Examples of an importance pass."""
        if self.needs.one_by_one:
            return 1
        most = max((task.measured for task in self.tasks), default=0)
        return min(self.importance_batch if self.per_example else self.importance_micro_batch, max(1, most))

    @property
    def stored(self) -> int:
        """Entries of the keys and values of all tasks, which are there from the beginning; 0 if none are retrieved."""
        r = self.needs.retrieves
        if r is None or self.encoder is None:
            return 0
        return len(self.tasks) * r.slots * (r.width + self.encoder.query)

    @property
    def memory_bytes(self) -> int:
        """Held for a memory of examples, which may be fewer than fit into it."""
        seen = sum(task.passed for task in self.tasks)
        of_levers = sum(lever.memory_bytes for lever in self.needs.levers)
        filled = sum(lever.memory_bytes * min(lever.value, seen) // lever.value for lever in self.needs.levers)
        return self.needs.memory_bytes - of_levers + filled

    def adapting(self) -> tuple[Setting, TaskNumbers] | None:
        """What local steps before answers train, as if it were a task; None if there are none."""
        local = self.needs.local
        training = [task for task in self.tasks if task.trains != "nothing"]
        if local is None or not local.steps or not training:
            return None
        task = dataclasses.replace(training[-1], largest_part=local.examples, several_parts=False)
        tasks = tuple(task if each is training[-1] else each for each in self.tasks)
        needs = dataclasses.replace(self.needs, teacher=None)
        sizes = dict.fromkeys(self.micro_batch, local.pass_size)
        return dataclasses.replace(self, tasks=tasks, micro_batch=sizes, needs=needs), task

    def pass_size(self, task: TaskNumbers) -> int:
        """Examples of the largest pass of training a task."""
        return min(self.micro_batch[task.stage], task.largest_part)

    def accumulates(self, task: TaskNumbers) -> bool:
        """Whether a step has several passes."""
        return task.several_parts or self.pass_size(task) < task.largest_part

    @property
    def max_whole(self) -> int:
        """Tokens of the longest example in training, its answer included."""
        if self.answers is None:
            return self.max_length
        return min(self.answers.max_whole, self.max_length + self.answers.max_length + self.answers.beyond)

    @property
    def mean_whole(self) -> float:
        """Tokens of an example in its padded batch in training, its answer included."""
        return self.mean_length if self.answers is None else min(self.answers.mean_whole, self.max_whole)

    def measuring(self) -> Setting:
        """The same run if every text were as short as the importance pass makes it."""
        limit, answers = self.importance_max_length, self.answers
        if limit is None:
            return self
        if answers is not None:
            answers = dataclasses.replace(
                answers,
                max_length=min(answers.max_length, limit),
                max_whole=min(answers.max_whole, 2 * limit),
                mean_whole=min(answers.mean_whole, 2 * limit),
            )
        return dataclasses.replace(
            self, max_length=min(self.max_length, limit), mean_length=min(self.mean_length, limit), answers=answers
        )

    def asking(self) -> Setting:
        """The same run if its evaluations were of the prompts that a method lets the model answer between tasks."""
        asks = self.needs.asks
        assert asks is not None
        s = self if asks.writes is None else self._started()
        return dataclasses.replace(
            s,
            evaluated=self.asked,
            evaluations=0,
            evaluation_batch=min(asks.batch_size, self.asked_at_once),
            answers=self.asked_answers,
        )

    def learning(self) -> Setting:
        """The same run if the data's answers were as long as those that are learned in their place."""
        if not self.written:
            return self
        assert self.answers is not None
        said = dataclasses.replace(
            self.answers,
            max_length=self.written,
            mean_length=self.written,
            max_whole=self.max_length + self.written,
            mean_whole=self.mean_length + self.written,
            beyond=0,
        )
        return dataclasses.replace(self, answers=said)

    def teaching(self) -> Setting:
        """The same run if every prompt were as long as a teacher reads it."""
        if self.needs.writes is None or self.answers is None:
            return self
        more = self.needs.writes.shown
        said = dataclasses.replace(
            self.answers, max_whole=self.answers.max_whole + more, mean_whole=self.answers.mean_whole + more
        )
        return dataclasses.replace(
            self, max_length=self.max_length + more, mean_length=self.mean_length + more, answers=said
        )

    def writing(self) -> Setting:
        """The same run if its evaluations were of the prompts that the model answers itself in every batch."""
        assert self.needs.writes is not None and self.answers is not None
        said = dataclasses.replace(self.answers, generated=self.written, mean_generated=self.written, by_label=0)
        passed = sum(task.passed for task in self.tasks if task.trains != "nothing")
        largest = max((task.largest_part for task in self.tasks), default=1)
        at_once = min(self.needs.writes.batch_size, largest)
        return dataclasses.replace(self, evaluated=passed, evaluations=0, evaluation_batch=at_once, answers=said)

    def _started(self) -> Setting:
        """The same run if what is read were the start of an example that is written as a whole."""
        length = self.needs.room + START
        return dataclasses.replace(self, max_length=length, mean_length=length)

    def reciting(self) -> Setting:
        """The same run if every example's text were a part of its answer."""
        assert self.answers is not None
        said = dataclasses.replace(
            self.answers,
            max_length=self.max_whole - self.needs.room,
            mean_length=self.mean_whole - self.needs.room,
            max_whole=self.max_whole + START,
            mean_whole=self.mean_whole + START,
        )
        return dataclasses.replace(self._started(), answers=said)

    def probing(self, probe: ProbePass, at_mean: bool = False) -> Setting:
        """The same run if all its examples were what a probe reads, or completes."""
        if self.answers is None:
            return self.at_mean() if at_mean else self
        if probe.generated:
            assert probe.tokens is not None
            said = dataclasses.replace(
                self.answers, generated=probe.generated, mean_generated=probe.generated, by_label=0
            )
            return dataclasses.replace(self, max_length=probe.tokens, answers=said, evaluation_batch=probe.batch_size)
        if probe.tokens is None:
            return self.at_mean() if at_mean else self
        whole = 1 + probe.tokens
        said = dataclasses.replace(self.answers, max_length=probe.tokens, max_whole=whole)
        # A decoder has a logit for every token, and an encoder-decoder reads the first half.
        length = probe.tokens // 2 if self.family == "seq2seq" else 1
        family: Kind = "causal" if self.family == "image_text" else self.family  # no pictures come with texts
        return dataclasses.replace(self, max_length=max(1, length), answers=said, family=family)

    def within(self, task: TaskNumbers) -> Setting:
        """The same run as the texts of a task are read, whose prompts are fewer than in the last one."""
        if not self.needs.room_grows:
            return self
        fewer = self.needs.room_grows * (len(self.tasks) - 1 - self.tasks.index(task))
        answers = self.answers
        if answers is not None:
            answers = dataclasses.replace(answers, max_whole=answers.max_whole - fewer)
        return dataclasses.replace(self, max_length=self.max_length - fewer, answers=answers)

    def at_mean(self) -> Setting:
        """The same run if every example had the mean length."""
        answers = self.answers
        if answers is not None:
            length = max(1, round(answers.mean_length))
            answers = dataclasses.replace(answers, max_length=length, max_whole=max(length + 1, round(self.mean_whole)))
        return dataclasses.replace(self, max_length=max(1, round(self.mean_length)), answers=answers)
