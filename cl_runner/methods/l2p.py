"""Learning to Prompt (L2P, Wang et al., CVPR 2022, arXiv:2112.08654): texts choose prompts of a pool by their keys."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import Count, NonNegative, Positive
from cl_runner.data.task import Task
from cl_runner.layers.before import Before, Imitated
from cl_runner.layers.pool import Pool
from cl_runner.learner import Learner, derive_seed
from cl_runner.methods.base import Method
from cl_runner.methods.low_rank import classifier_head, needs_of
from cl_runner.methods.soft_prompt import check_positions
from cl_runner.methods.teacher import without_dropout
from cl_runner.needs import Needs, Outline
from cl_runner.read_if import ReadIf
from cl_runner.said import Said
from cl_runner.trained import Trained


@dataclass
class L2P(Method):
    """L = L_t - pull * mean over texts of sum over its chosen keys of cos(q(x), k), of eq. 5 what is no constant.

    A text is given the `top_n` prompts whose keys are nearest to its query, the nearest first; a classifier behind its
    [CLS]. With `diversify` a key's distance counts times how often earlier tasks chose it (section 4.2), in training.
    """

    pool: Count
    length: Count
    top_n: Count
    query: Literal["model", "embedding"]
    key: Literal["learned", "prompt_means"]
    pull: Annotated[NonNegative, ReadIf("key", ("learned",))]
    diversify: bool
    learning_rate: Positive | None
    head_learning_rate: Annotated[Positive | None, ReadIf("backbone.family", ("classifier",))]

    state: ClassVar[tuple[str, ...]] = ("used", "earlier")
    families: ClassVar[tuple[str, ...]] = ("classifier", "causal", "seq2seq")
    chooses: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    learns: ClassVar[Said] = "a pool of {pool} prompts of {length} vectors, their keys, and a classifier's head"
    keeps: ClassVar[Said] = "how often each prompt was chosen"
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.used = [0] * self.pool  # how often training chose each prompt
        self.earlier = [0] * self.pool  # the same, before the task under way
        self.longest: int | None = None  # tokens of a text, once it is known
        self.chosen = torch.empty(0, dtype=torch.long)  # of the latest pass, [B, N]
        self.cosines = torch.empty(0)  # of their keys, [B, N]

    # structure
    def check(self, skeleton: nn.Module, longest: int) -> None:
        self.longest = longest
        if self.top_n > self.pool:
            raise ValueError(
                f"method.{self.node}.top_n={self.top_n}, but the pool has {self.pool} prompts. "
                f"Type: method.{self.node}.top_n={self.pool}"
            )
        if self.key == "prompt_means" and self.query == "model":
            raise ValueError(
                f"method.{self.node}.key=prompt_means are means of embeddings, which the model's states lie nowhere "
                f"near. Type: method.{self.node}.query=embedding"
            )

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        assert isinstance(model, PreTrainedModel)
        self.head = classifier_head(model)
        self.before = Before(model, first=int(bool(self.head)))
        self.before.attach(model)
        generator = torch.Generator().manual_seed(derive_seed(seed, "prompt pool"))
        values = self.before.random_rows(self.pool * self.length, generator).view(self.pool, self.length, -1)
        keys = values.mean(1)
        if self.key == "learned":
            keys = torch.empty(self.pool, self._query_width(model)).uniform_(-1, 1, generator=generator)
        self.prompts = Pool(values, keys)
        model.add_module("prompts", self.prompts)
        return model

    def _query_width(self, model: PreTrainedModel) -> int:
        if self.query == "embedding":
            return int(model.get_input_embeddings().get_parameter("weight").shape[1])
        return int(model.config.get_text_config().hidden_size)

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        assert isinstance(skeleton, PreTrainedModel)
        check_positions(self.node, skeleton, self.longest, self.top_n, self.length)
        room, asks = self.top_n * self.length, self.query == "model"
        return dataclasses.replace(needs_of(skeleton, self._imitate), room=room, queries=asks)

    def _learned(self) -> list[str]:
        return ["prompts.values", *(["prompts.keys"] if self.key == "learned" else [])]

    def _imitate(self, model: nn.Module) -> list[str]:
        assert isinstance(model, PreTrainedModel)
        table = model.get_input_embeddings().get_parameter("weight")
        width = self._query_width(model)
        with torch.device(table.device):
            pool = Pool(torch.empty(self.pool, self.length, table.shape[1]), torch.empty(self.pool, width))
        model.add_module("prompts", pool)
        Imitated(model, functools.partial(pool.first, self.top_n))
        return self._learned()

    # around a task
    def trains(self, learner: Learner, task: Task) -> Trained:
        rate = self.head_learning_rate
        return Trained(
            names=[*self._learned(), *self.head],
            learning_rate=self.learning_rate,
            rates={} if rate is None else dict.fromkeys(self.head, rate),
        )

    def before_task(self, learner: Learner, task: Task) -> None:
        if not learner.has_old_tasks(task):
            self.used = [0] * self.pool
        self.earlier = list(self.used)

    # every pass of the model
    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        queries = functional.normalize(self._queries(learner, batch), dim=-1)
        cosines = queries @ functional.normalize(self.prompts.keys, dim=-1).T
        self.chosen = self.choose(cosines.detach(), learner.model.training)
        self.cosines = cosines.gather(1, self.chosen)
        return self.before.put(batch, self.prompts.values[self.chosen].flatten(1, 2))

    def choose(self, cosines: Tensor, training: bool) -> Tensor:
        """[B, N]: which prompts a text is given, by the cosines [B, M] of their keys."""
        distances = 1 - cosines
        if self.diversify and training and any(self.earlier):
            counts = torch.tensor(self.earlier, dtype=distances.dtype, device=distances.device)
            # Of prompts that nothing chose yet the nearest comes first.
            distances = distances * (counts / counts.sum()).clamp_min(1e-6)
        return distances.topk(self.top_n, largest=False).indices

    @torch.no_grad()
    def _queries(self, learner: Learner, batch: Batch) -> Tensor:
        """[B, width] of the texts without their answers, as the model reads them that no prompt stands before."""
        self.before.stop()
        asked = learner.collate(batch.examples, answers=False) if batch.examples else batch
        if self.query == "embedding":
            states = self.before.embedding(asked["input_ids"]).float()
            counts = asked["attention_mask"][..., None].float()
            return (states * counts).sum(1) / counts.sum(1)
        with without_dropout(learner.model):
            return learner.family.features(learner.model, asked)

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        for number in self.chosen.flatten().tolist():
            self.used[number] += 1
        if self.key != "learned" or not self.pull:
            return 0.0
        # The mean over the part's texts, of which this pass's loss counts by its targets.
        targets = learner.family.targets
        share = sum(targets(batch.examples)) / sum(targets(part.examples))
        pulled = self.cosines.sum() / len(part.examples) / share
        learner.log("l2p", float(pulled.detach()))
        return -self.pull * pulled

    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        return {"chosen_in_training": list(self.used)}
