"""Scalable language model (Peng et al., ICLR 2024): a text's query retrieves low-rank increments of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from cl_runner.config import Count, Encoder, Positive, Whole
from cl_runner.data.example import Example
from cl_runner.data.task import Task, label_union
from cl_runner.families.base import Batch
from cl_runner.methods.base import Method
from cl_runner.retrieval.bank import Bank, Values
from cl_runner.retrieval.encoder import Queries, check_encoder
from cl_runner.retrieval.heads import Heads, find_head
from cl_runner.retrieval.increments import Increments
from cl_runner.retrieval.keys import new_keys, retrieve, similarities, train_keys
from cl_runner.retrieval.measures import accuracies, measure_time, write_keys
from cl_runner.retrieval.prompts import GatedPrefixes, Prompts, attention_layers
from cl_runner.retrieval.targets import all_projections, find_targets

if TYPE_CHECKING:
    from cl_runner.learner import Learner


@dataclass
class SLM(Method):
    """A task has `slots` keys, trained on its texts alone (DTKR), and a value for each, trained on its answers (JARe).

    A text is given the values of the keys nearest to its query, weighted. Nothing else of the model moves: neither the
    backbone, nor what earlier tasks stored.
    """

    encoder: Encoder
    groups: Count
    slots: Count
    top_k: Count
    key_mask: Annotated[float, Field(ge=0, lt=1)]
    key_epochs: Whole
    key_batch_size: Count
    key_learning_rate: Positive
    key_decay_every: Count
    key_clip: Positive
    scope: Literal["sample", "batch"]
    aggregate: Literal["mean_sim", "per_group"]
    weights: Literal["normalised_cos", "uniform", "softmax"]
    temperature: Positive
    pool: Literal["prefix", "current", "all"]
    task_identity: bool
    value: Literal["jare", "prompt", "adapter"]
    targets: Annotated[list[Literal["attention_output", "query", "key", "value"]], Field(min_length=1)]
    cross_attention: bool
    rank: Count
    prompt_length: Count
    head: Literal["shared", "by_num_labels", "per_task"]
    learning_rate: Positive | None

    state: ClassVar[tuple[str, ...]] = ("new_keys", "learned")
    families: ClassVar[tuple[str, ...]] = ("classifier", "causal", "seq2seq")
    chooses: ClassVar[bool] = True
    isolates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.new_keys: dict[str, Tensor] = {}  # of the task under way, by parameter
        self.learned = 0  # tasks
        self.training: int | None = None  # the task under way
        self.queries: Queries | None = None

    # structure
    def check(self, skeleton: nn.Module, longest: int) -> None:
        width = check_encoder(self.encoder)
        if width % self.groups:
            near = [g for g in range(1, width + 1) if width % g == 0]
            best = min(near, key=lambda g: abs(g - self.groups))
            raise ValueError(
                f"method.slm.groups={self.groups}: the encoder's {width} numbers cannot be cut into so many equal "
                f"groups. Type: method.slm.groups={best}"
            )
        if self.top_k > self.slots:
            raise ValueError(
                f"method.slm.top_k={self.top_k}, but the first task has {self.slots} slots only. "
                f"Type: method.slm.top_k={self.slots}"
            )
        if self.head == "per_task" and not self.task_identity and _classifies(skeleton):
            raise ValueError(
                "method.slm.head=per_task is told every example's task, so that retrieval may know it too. "
                "Type: method=slm_ti (or method.slm.head=shared)"
            )
        assert isinstance(skeleton, PreTrainedModel)
        self.make_values(skeleton)
        if self.value != "jare" and self.aggregate == "per_group":
            raise ValueError(
                f"method.slm.value={self.value} puts all that is retrieved side by side, without weights, and votes of "
                "groups retrieve up to groups x top_k slots. Type: method.slm.aggregate=mean_sim"
            )
        positions = getattr(skeleton.config, "max_position_embeddings", None)
        before = self.top_k * self.prompt_length if self.value == "prompt" else 0
        if positions is not None and before + longest > positions:
            raise ValueError(
                f"method.slm.value=prompt puts {self.top_k} x {self.prompt_length} vectors before a text, and the "
                f"backbone reads {positions} tokens, of which texts may take {longest}. "
                f"Type: backbone.max_length=N, with N smaller by {before + longest - positions}"
            )

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        assert isinstance(model, PreTrainedModel)
        # Which parameter holds a task. Its own name could mean something else: a full stop, or `norm` to weight decay.
        self.names = [f"{task.index:02d}" for task in tasks]
        generator = torch.Generator().manual_seed(seed)
        width = check_encoder(self.encoder) // self.groups
        keys = torch.cat([new_keys(self.groups, self.slots, width, generator) for _ in tasks], 1)
        self.values = self.make_values(model)
        rows = torch.cat([self.values.initial(self.slots, generator) for _ in tasks])
        self.heads = self.make_heads(model, tasks, restart)
        if self.heads is not None:
            model.set_submodule(find_head(model)[0], self.heads)
        self.values.attach(model)
        self.bank = Bank(self.names, keys, rows)
        model.add_module("slm", self.bank)
        return model

    def make_heads(self, model: nn.Module, tasks: Sequence[Task], restart: bool) -> Heads | None:
        """What answers in place of a classifier's last layer; None for language models."""
        if not _classifies(model):
            return None
        place = {label: row for row, label in enumerate(label_union(tasks))}
        labels = [[place[label] for label in task.labels] for task in tasks]
        return Heads(find_head(model)[1], labels, [f"{task.index:02d}" for task in tasks], self.head, restart)

    def make_values(self, model: PreTrainedModel) -> Values:
        """What a slot's value is, for this architecture.

        Raises:
            ValueError: the architecture has not the layers that it needs.
        """
        if self.value == "jare":
            return Increments(find_targets(model, self.targets, self.cross_attention), self.rank)
        if self.value == "prompt":
            pad = model.config.pad_token_id
            return Prompts(model, self.prompt_length, 0 if pad is None else pad, first=int(_classifies(model)))
        layers = attention_layers(all_projections(model, self.cross_attention))
        config: Any = model.config
        heads = config.num_attention_heads
        return GatedPrefixes(layers, heads, self.prompt_length, scaled=config.model_type not in ("t5", "mt5"))

    # around a task
    def before_task(self, learner: Learner, task: Task) -> None:
        self._remember(learner, task)
        wanted = [task]
        if self.pool == "all" and not learner.restart:  # as released: keys of all tasks are there from the beginning
            wanted = list(learner.tasks) if task.index == 0 else []
        with learner.clock.phase("keys"):
            self.new_keys = {self._key(one): self._train_keys(learner, one).to(learner.device) for one in wanted}

    def _key(self, task: Task) -> str:
        return f"slm.keys.{self.names[task.index]}"

    def _train_keys(self, learner: Learner, task: Task) -> Tensor:
        """The keys of a task, from its texts (3.2: the preparation stage)."""
        assert self.queries is not None
        return train_keys(
            learner.parameters()[self._key(task)].detach().cpu(),
            self.queries([example.prompt for example in task.train]),
            top_k=self.top_k,
            mask=self.key_mask,
            epochs=self.key_epochs,
            batch_size=self.key_batch_size,
            learning_rate=self.key_learning_rate,
            decay_every=self.key_decay_every,
            clip=self.key_clip,
            generator=torch.Generator().manual_seed(learner.seed_of("keys", task.index)),
            on_step=lambda done, total: learner.progress("train keys", done, total),
        )

    def _remember(self, learner: Learner, task: Task) -> None:
        """Queries of the task's texts and, once, of all that tests will ask: each set at once, or from disk."""
        if self.queries is None:
            cache = learner.cache / "queries" if learner.cache else None
            self.queries = Queries(self.encoder, learner.device, cache, learner.progress)
            task_index, learner.clock.current = learner.clock.current, -1  # what tests cost is no task's time
            with learner.clock.phase("queries"):
                for one in learner.tasks:
                    self.queries.remember([example.prompt for example in learner.scored_on(one)])
            learner.clock.current = task_index
        with learner.clock.phase("queries"):
            wanted = {example.prompt for example in task.train}
            for one in learner.tasks if self.pool == "all" else learner.tasks[: task.index + 1]:
                texts = [example.prompt for example in one.train]
                # After a resume a text that two tasks share must have the vector of the first one, as before.
                if self.pool == "all" or one.index == task.index or not wanted.isdisjoint(texts):
                    self.queries.remember(texts)

    @torch.no_grad()
    def activate(self, learner: Learner, task: Task) -> None:
        self._remember(learner, task)
        parameters = learner.parameters()
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        for name, keys in self.new_keys.items():
            learner.written[name] = parameters[name].detach().clone()
            parameters[name].copy_(keys)
        self.bank.values[self.names[task.index]].requires_grad_(True)
        if self.heads is not None:
            self.heads.latest = task.index
            for own in self.heads.trained_by(task.index):
                own.requires_grad_(True)
        self.bank.renew()
        self.training = task.index

    def peak_learning_rate(self, task: Task, rate: float) -> float:
        return rate if self.learning_rate is None else self.learning_rate

    def after_task(self, learner: Learner, task: Task) -> None:
        for parameter in learner.params().values():
            parameter.requires_grad_(False)
        self.training, self.new_keys, self.learned = None, {}, task.index + 1

    # every pass of the model
    def inputs(self, learner: Learner, examples: Sequence[Example]) -> Batch:
        tasks = torch.tensor([learner.task_of(example) for example in examples])
        if not self._visible(learner)[1]:
            return {"true_task": tasks}
        assert self.queries is not None
        return {"query": self.queries([example.prompt for example in examples]), "true_task": tasks}

    def for_texts(self, learner: Learner, texts: Sequence[str]) -> Batch:
        found = {"true_task": torch.full((len(texts),), -1)}
        if self._visible(learner)[1]:
            assert self.queries is not None
            found["query"] = self.queries(texts)
        return {name: tensor.to(learner.device) for name, tensor in found.items()}

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        if self.heads is not None:
            self.heads.tasks = batch["true_task"]
        first, end = self._visible(learner)
        if first == end:
            self.values.stop()
            return batch
        if "query" not in batch:  # a batch that was not made of examples: its text says where it belongs
            texts = learner.family.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
            batch = {**batch, **self.for_texts(learner, texts)}
        cosines = similarities(batch["query"], self.bank.units(first, end))
        found = retrieve(
            cosines,
            self.top_k,
            aggregate=self.aggregate,
            weighting=self.weights,
            temperature=self.temperature,
            whole_batch=self.scope == "batch",
            visible=self._of_own_task(batch["true_task"], first, end) if self.task_identity else None,
        )
        return self.values.use(self.bank.rows(found.slots + first * self.slots), found, batch)

    def _visible(self, learner: Learner) -> tuple[int, int]:
        """Tasks whose slots can be retrieved now, from the first up to, not including, the second."""
        if self.training is None:
            first = max(0, self.learned - 1) if learner.restart else 0
            end = len(self.names) if self.pool == "all" and self.learned and not learner.restart else self.learned
            return first, end
        if self.pool == "current" or learner.restart:
            return self.training, self.training + 1
        return 0, len(self.names) if self.pool == "all" else self.training + 1

    def _of_own_task(self, true_task: Tensor, first: int, end: int) -> Tensor:
        """[B, N]: the slots of each text's own task; all of them for texts of no task, or of one still to come."""
        owner = torch.arange(first, end, device=true_task.device).repeat_interleave(self.slots)
        own = owner == true_task[:, None]
        return own | ~own.any(1, keepdim=True)

    # afterwards
    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        """Retrieval accuracy (eq. 13) of the texts of all tasks so far; at the end how long retrieval takes.

        There is no such accuracy where the task is given, or where it is the only one.
        """
        assert self.queries is not None
        first, end = self._visible(learner)
        found = {}
        if not self.task_identity and not learner.restart:
            texts = {one.name: learner.scored_on(one) for one in learner.tasks[first : task.index + 1]}
            found = accuracies(self.queries, self.bank.units(first, end).cpu(), texts, self.top_k, self.slots)
        described: dict[str, Any] = {"retrieval_accuracy": found}
        if found:
            described["metrics"] = {"retrieval_accuracy/slm": sum(found.values()) / len(found)}
        write_keys(folder, {learner.tasks[i].name: self.bank.keys[self.names[i]] for i in range(first, end)})
        if task.index == len(learner.tasks) - 1:
            described["timing"] = measure_time(learner, self.queries, learner.tasks)
        return described


def _classifies(model: nn.Module) -> bool:
    return type(model).__name__.endswith("ForSequenceClassification")
