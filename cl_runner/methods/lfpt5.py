"""LFPT5 (Qin & Joty, ICLR 2022, arXiv:2110.07298): one prompt solves all tasks, and writes examples of old ones."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import Count, OptimizerName, Share
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.language import LanguageModel
from cl_runner.learner import Learner
from cl_runner.methods.generates import Generates
from cl_runner.methods.prompt_tuning import PromptTuning
from cl_runner.methods.teacher import output_at
from cl_runner.needs import Asks, Needs, Outline
from cl_runner.said import Said
from cl_runner.trained import Trained

#: Ids with which a vocabulary begins: those of its commonest tokens, as trained tokenizers list them.
COMMON = 5000


@dataclass
class LFPT5(Generates, PromptTuning):
    """L = (1 - kl) (L_task + recital * L_lm) + kl * L_kl (section 4.3), of a prompt behind a text (decoders: before).

    L_kl = sum over tokens of old tasks' examples of KL(p_old || p_new), p_old at the prompt as it was before the task.
    Before a task that prompt writes examples of every old one; those with one of its labels are kept, `per_label` of
    each label to learn from and as many to select the best epoch by.

    As released (qcwthu/Lifelong-Fewshot-Language-Learning) but for: no more texts are written once each label has
    enough, of `tries` for each; texts that are empty are dropped; the prompt follows a text's last token, not the
    batch's padding, over which the release's L_kl goes as well; the start and `between` are spelled with tokens that
    are there; the old prompt computes without dropout; answers are greedy or by likelihood, not by four beams.
    """

    per_label: Count
    tries: Count
    kl: Share
    kl_examples: Count
    phrase: str
    optimizer: OptimizerName | None

    learns: ClassVar[Said] = "one prompt of {length} vectors"
    keeps: ClassVar[Said] = "examples that the model wrote, {per_label} of each old label and as many to select by"

    def __post_init__(self) -> None:
        Generates.__post_init__(self)
        PromptTuning.__post_init__(self)

    # structure
    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        model = super().build(model, tasks, seed, restart)
        self.before.behind = True
        return model

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        labels = [max(1, len(task.labels)) for task in outline.tasks]

        def epochs(earlier: Sequence[int], epochs: Sequence[int]) -> Sequence[int]:
            return [examples + self.per_label * sum(labels[: len(earlier)]) for examples in epochs]

        def texts(so_far: Sequence[int], following: int) -> Sequence[int]:
            return [self.tries * count for count in labels[: len(so_far)]]

        return dataclasses.replace(
            super().needs(skeleton, outline),
            epochs=epochs,
            adds=self.added,
            several_parts=bool(self.recital or self.kl),
            asks=Asks(texts, self.generation_batch_size, writes=self.max_new_tokens or 0),
            recites=bool(self.recital),
            teacher="logits" if self.kl else None,
            optimizer=self.optimizer,
        )

    # around a task
    def trains(self, learner: Learner, task: Task) -> Trained:
        trained = super().trains(learner, task)
        written = self._initial(learner, task) if self.begins(learner, task) else {}
        return dataclasses.replace(trained, written=written, optimizer=self.optimizer)

    def _initial(self, learner: Learner, task: Task) -> dict[str, Tensor]:
        """The mean embeddings of `phrase`, the task's name and each label, then embeddings of common tokens."""
        family = learner.family
        assert isinstance(family, LanguageModel)
        table = self.before.embedding.get_parameter("weight").detach().float()
        named = [ids for text in (self.phrase, task.name, *task.labels) if (ids := family.spelled(text))]
        rows = [table[ids].mean(0) for ids in named[: self.length]]
        common = [i for i in range(min(COMMON, len(table))) if i not in set(family.tokenizer.all_special_ids)]
        chance = random.Random(learner.seed_of("lfpt5", "prompt"))
        rest = self.length - len(rows)
        drawn = chance.sample(common, rest) if rest <= len(common) else chance.choices(common, k=rest)
        name = self.trained_name(task)
        return {f"prompts.values.{name}": torch.stack([*rows, *table[drawn]])}

    def generate(self, learner: Learner, task: Task) -> None:
        for old in learner.old_tasks(task):
            labels = old.labels or ("",)  # of a task whose answers are texts any will do
            found: Counter[str] = Counter()
            asked = 0
            for texts in self.written(learner, task, old, self.tries * len(labels)):
                asked += len(texts)
                for text in texts:
                    self._take(old, text, found)
                if all(found[label] >= 2 * self.per_label for label in labels):
                    break
            self.count(old, asked)

    def _take(self, old: Task, text: str, found: Counter[str]) -> None:
        """Keep what was written for an old task if it has a label of it, and that has not enough."""
        parts = self.part(text)
        if isinstance(parts, str):
            self.drop(old, parts, text)
            return
        prompt, answer = parts
        label = answer if old.labels else ""
        if old.labels and label not in old.labels:
            self.drop(old, "no label of the task", text)
        elif found[label] >= 2 * self.per_label:
            self.drop(old, "label has enough", text)
        else:
            # In turn: where a label has few, each use has some.
            self.keep(old, "validation" if found[label] % 2 else "train", prompt, answer)
            found[label] += 1

    def validation(self, learner: Learner, task: Task, tasks: list[Task]) -> list[Task]:
        tasks = super().validation(learner, task, tasks)
        written = [
            (int(i), str(text), str(answer)) for i, use, text, answer in self.made["kept"] if use == "validation"
        ]
        of_old: dict[int, list[Example]] = {}
        for index, text, answer in written:
            of_old.setdefault(index, []).append(Example(text, answer, task=index))
        old = [dataclasses.replace(learner.tasks[i], validation=tuple(each)) for i, each in of_old.items()]
        return [*tasks, *old]

    def export(self, model: nn.Module, tasks: Sequence[Task], folder: Path, base: str) -> str | None:
        assert isinstance(model, PreTrainedModel)
        if model.config.is_encoder_decoder:  # peft puts its prompts before a text
            return None
        return super().export(model, tasks, folder, base)

    # inside a step
    def parts(self, learner: Learner, task: Task, part: Part) -> list[Part]:
        found = super().parts(learner, task, part)
        if part.kind != "new":
            return found
        found = [dataclasses.replace(each, weight=each.weight * (1 - self.kl)) for each in found]
        written = set(self.examples(learner, task, "train"))
        old = [example for example in part.examples if example in written]
        if not old or not self.kl:
            return found
        # A sum over the tokens of a pass of `kl_examples`, of which a batch has so many: part losses are means.
        weight = self.kl * sum(learner.family.targets(old)) * self.kl_examples / len(part.examples)
        return [*found, Part(old, weight=part.weight * weight, kind="lfpt5_kl", labels=False)]

    def prepare(self, learner: Learner, part: Part, batch: Batch) -> Batch:
        batch = super().prepare(learner, part, batch)
        if part.kind != "lfpt5_kl":
            return batch
        return batch | {"lfpt5": output_at(learner, batch, learner.before).logits}

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        more = super().loss(learner, part, batch, output)
        if part.kind != "lfpt5_kl":
            return more
        new, old = output.logits.log_softmax(-1), batch["lfpt5"].log_softmax(-1)
        divergence = functional.kl_div(new, old, reduction="none", log_target=True).sum(-1).mean()
        learner.log("lfpt5_kl", float(divergence.detach()))
        return more + divergence
