"""Methods that keep no old data: the model writes examples of old tasks itself before it learns a new one.

As LAMOL (Sun, Ho & Lee, ICLR 2020, arXiv:1909.03329) and LFPT5 (Qin & Joty, ICLR 2022, arXiv:2110.07298) do it: the
model learns to answer each text, and to write text and answer after a start of its task.
"""

from __future__ import annotations

import dataclasses
import json
import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cl_runner import digests
from cl_runner.batch import Batch, Output, Part
from cl_runner.config import Count, NonNegative, Positive, Sampling
from cl_runner.data.example import Example, Recital
from cl_runner.data.task import Task
from cl_runner.families.base import Answering
from cl_runner.families.language import LanguageModel
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.needs import Added
from cl_runner.said import Said

#: Texts that were dropped, of each old task, of which the run's folder keeps the first ones.
SHOWN = 5
#: The folder of a run in which the examples lie.
FOLDER = "generated"


@dataclass
class Generates(Method):
    """What such methods share: the loss of whole examples, generation, what is noted of it.

    The start and what stands between text and answer are written with tokens that the vocabulary has; the releases add
    tokens of their own.
    """

    start: Annotated[str, Field(min_length=1)]
    between: Annotated[str, Field(min_length=1)]
    recital: NonNegative
    between_weight: Positive
    top_k: Count | None
    temperature: Positive
    repetition_penalty: Positive
    max_new_tokens: Count | None
    generation_batch_size: Count

    state: ClassVar[tuple[str, ...]] = ("made",)
    reads_chats: ClassVar[bool] = False  # what is written as a whole is one text and its answer
    families: ClassVar[tuple[str, ...]] = ("causal", "seq2seq")
    protects: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    old_data: ClassVar[Said] = "generated"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        #: of the task under way: `asked` examples by old task, `kept` [task, use, text, answer], `dropped`
        #: [task, reason, text] and how many by task and reason
        self.made: dict[str, Any] = {"asked": {}, "kept": [], "dropped": [], "reasons": {}}
        self.used: dict[str, list[Example]] = {}  # the same as examples, by use
        self.known = -1  # of which task those are

    @abstractmethod
    def generate(self, learner: Learner, task: Task) -> None:
        """Let the model as it stands write examples of the old tasks, and note them."""

    # structure
    def check(self, skeleton: nn.Module, longest: int) -> None:
        super().check(skeleton, longest)
        node = f"method.{self.node}"
        try:
            named = [name for _, name, _, _ in string.Formatter().parse(self.start) if name is not None]
            started = self.start.format(task="task") if set(named) <= {"task"} else ""
        except (ValueError, IndexError, KeyError):
            started = ""
        if not started.strip():
            raise ValueError(
                f"{node}.start={self.start!r}: a text in which only {{task}} stands for something, the task's name. "
                f"Type: '{node}.start=\"__{{task}}__\"' (or {node}.start=__gen__, the same for all tasks)"
            )
        if not self.between.strip():
            raise ValueError(f"{node}.between is white space, which texts hold as well. Type: {node}.between=__ans__")

    # what an example is recited after
    def start_of(self, learner: Learner, index: int) -> str:
        """What the model reads before it writes an example of a task."""
        return self.start.format(task=learner.tasks[index].name if index >= 0 else "")

    @property
    def recital_kind(self) -> str:
        """Of the parts that are written as a whole."""
        return f"{self.node}_recital"

    @property
    def tells_tasks(self) -> bool:
        """Whether a start is one task's alone."""
        return "{task}" in self.start

    def recited(self, learner: Learner, example: Example, task: Task) -> Example:
        """The example as one that is written as a whole."""
        index = example.task if example.task >= 0 else task.index
        return dataclasses.replace(example, recital=Recital(self.start_of(learner, index), self.between))

    # around a task
    def before_task(self, learner: Learner, task: Task) -> None:
        super().before_task(learner, task)
        self.made = {"asked": {}, "kept": [], "dropped": [], "reasons": {}}
        self.known = -1
        if learner.has_old_tasks(task):
            learner.model.eval()
            with learner.clock.phase("answers"):
                self.generate(learner, task)
            for old in learner.tasks[: task.index]:
                if str(old.index) in self.made["asked"]:
                    learner.warn(self._line(old))

    def examples(self, learner: Learner, task: Task, use: str) -> list[Example]:
        """Those that were kept for a use: "train" or "validation"."""
        if self.known != task.index:
            self.used = {}
            for index, kind, prompt, answer in self.made["kept"]:
                old = int(index) if self.tells_tasks else -1
                domain = learner.tasks[old].name if old >= 0 else ""
                self.used.setdefault(str(kind), []).append(Example(str(prompt), str(answer), domain, task=old))
            self.known = task.index
        return self.used.get(use, [])

    def data(self, learner: Learner, task: Task, epochs: list[Sequence[Example]]) -> list[Sequence[Example]]:
        written = self.examples(learner, task, "train")
        return [[*epoch, *written] for epoch in super().data(learner, task, epochs)]

    # inside a step
    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        steps = super().steps(learner, task, step, steps)
        return [[each for part in parts for each in self.parts(learner, task, part)] for parts in steps]

    def parts(self, learner: Learner, task: Task, part: Part) -> list[Part]:
        """The batch that the loop drew, and the same examples written as a whole."""
        if part.kind != "new" or not self.recital:
            return [part]
        examples = [self.recited(learner, example, task) for example in part.examples]
        count = sum(learner.family.targets(examples))
        marked = len(self._between(learner)) * len(examples) * (self.between_weight - 1)
        # The mean over weights: sum w l / sum w is the mean over tokens of w l, times tokens / sum w.
        weight = part.weight * self.recital * count / (count + marked)
        return [part, Part(examples, weight=weight, kind=self.recital_kind, labels=False)]

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        more = super().loss(learner, part, batch, output)
        if part.kind != self.recital_kind:
            return more
        losses = functional.cross_entropy(output.logits, output.targets, reduction="none")
        if self.between_weight != 1:
            losses = losses * self._weights(learner, batch, output.rows)
        mean = losses.mean()
        learner.log(self.recital_kind, float(mean.detach()))
        return more + mean

    def _weights(self, learner: Learner, batch: Batch, rows: Tensor) -> Tensor:
        """[N], of each token that is written: those between text and answer weigh more."""
        plain = [dataclasses.replace(example, recital=None) for example in batch.examples]
        answers = torch.tensor(learner.family.targets(plain), device=rows.device)
        counts = torch.bincount(rows, minlength=len(plain))
        # Places from the end, in which the answer's come first.
        places = counts.cumsum(0)[rows] - 1 - torch.arange(len(rows), device=rows.device)
        marked = (places >= answers[rows]) & (places < answers[rows] + len(self._between(learner)))
        return torch.where(marked, self.between_weight, 1.0).to(torch.float32)

    def _between(self, learner: Learner) -> list[int]:
        assert isinstance(learner.family, LanguageModel)
        return learner.family.spelled(self.between)

    # generation
    def written(self, learner: Learner, task: Task, old: Task, count: int) -> Iterator[list[str]]:
        """Texts that the model writes for an old task, batch after batch: what was drawn before does not count."""
        longest = learner.family.backbone.max_length + (learner.family.backbone.max_answer_length or 0)
        how = Answering(
            self.max_new_tokens or longest,
            sampling=Sampling(temperature=self.temperature, top_k=self.top_k, top_p=None),
            repetition_penalty=self.repetition_penalty,
            raw=True,
        )
        start = Example(self.start_of(learner, old.index), "", task=old.index if self.tells_tasks else -1)
        for done in range(0, count, self.generation_batch_size):
            size = min(self.generation_batch_size, count - done)
            torch.manual_seed(learner.seed_of(self.node, "written", task.index, old.index, done))
            with torch.no_grad():
                answers = learner.answer(learner.collate([start] * size, answers=False), how)
            learner.progress(f"write examples of {old.name}", done + size, count)
            yield [answer.text for answer in answers]

    def part(self, text: str) -> tuple[str, str] | str:
        """Text and answer of what was written, or why it is no example."""
        halves = text.split(self.between)
        if len(halves) != 2:
            return f"no {self.between}" if len(halves) < 2 else f"{self.between} more than once"
        prompt, answer = (half.strip() for half in halves)
        if not prompt:
            return "no text"
        return (prompt, answer) if answer else "no answer"

    def keep(self, old: Task, use: str, prompt: str, answer: str) -> None:
        """Note an example that is used."""
        self.made["kept"].append([old.index, use, prompt, answer])

    def drop(self, old: Task, reason: str, text: str) -> None:
        """Note a text that is not."""
        reasons = self.made["reasons"].setdefault(str(old.index), {})
        reasons[reason] = reasons.get(reason, 0) + 1
        if sum(reasons.values()) <= SHOWN:
            self.made["dropped"].append([old.index, reason, text])

    def count(self, old: Task, asked: int) -> None:
        """Note how many texts the model wrote."""
        self.made["asked"][str(old.index)] = asked

    # what is noted of it
    def _line(self, old: Task) -> str:
        said = self._account(old)
        dropped = ", ".join(f"{reason}: {count}" for reason, count in said["dropped"].items())
        kept = sum(said["kept"].values())
        none = "" if kept else f". Nothing stands for {old.name} in this task"
        return f"{self.node}: {said['asked']} texts written for {old.name}, {kept} kept" + (
            f" (dropped: {dropped}){none}" if dropped else none
        )

    def _account(self, old: Task) -> dict[str, Any]:
        """How many texts of an old task were asked for, kept by their use, and dropped by the reason."""
        kept = Counter(use for index, use, _, _ in self.made["kept"] if index == old.index)
        reasons = self.made["reasons"].get(str(old.index), {})
        return {"asked": self.made["asked"][str(old.index)], "kept": dict(kept), "dropped": dict(reasons)}

    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        """generated/<task>.jsonl: for each old task an account, then what was kept, and some of what was dropped."""
        found = super().describe(learner, task, folder)
        accounts = {
            old.name: self._account(old) for old in learner.tasks[: task.index] if str(old.index) in self.made["asked"]
        }
        if not accounts:
            return found
        names = [each.name for each in learner.tasks]
        lines = [
            *({"kind": "account", "before": task.name, "task": name, **account} for name, account in accounts.items()),
            *(
                {"kind": "kept", "task": names[int(index)], "use": use, "text": text, "answer": answer}
                for index, use, text, answer in self.made["kept"]
            ),
            *(
                {"kind": "dropped", "task": names[int(index)], "reason": reason, "text": text}
                for index, reason, text in self.made["dropped"]
            ),
        ]
        content = "\n".join([*(json.dumps(line, ensure_ascii=False) for line in lines), ""]).encode("utf-8", "replace")
        place = folder / FOLDER / f"{task.index:02d}_{task.name}_{self.node}.jsonl"
        place.parent.mkdir(exist_ok=True)
        digests.write(place, content)
        name = place.relative_to(folder).as_posix()
        return {**found, "generated": {"file": name, "sha256": digests.digest_of(content), "tasks": accounts}}

    def added(self, earlier: Sequence[int], batches: int, examples: int) -> Added:
        """For a plan: every example is passed once more."""
        return Added(examples if self.recital else 0)
