"""Scalable language model (Peng et al., ICLR 2024): a text's query retrieves low-rank increments of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from cl_runner.batch import Batch
from cl_runner.config import Count, Encoder, Positive, Whole
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import Prediction
from cl_runner.layers.heads import classifies, find_head, make_heads
from cl_runner.layers.increments import Increments
from cl_runner.layers.prefixes import GatedPrefixes, attention_layers
from cl_runner.layers.prompts import Prompts
from cl_runner.layers.targets import all_projections, find_targets
from cl_runner.layers.values import Values
from cl_runner.learner import Learner
from cl_runner.methods.base import Method, Predict
from cl_runner.needs import Needs, Outline, Retrieves
from cl_runner.read_if import ReadIf
from cl_runner.retrieval.bank import Bank
from cl_runner.retrieval.encoder import GENERIC, Queries, check_encoder
from cl_runner.retrieval.keys import key_schedule, new_keys, own_weight, retrieve, similarities, train_keys, unmoved
from cl_runner.retrieval.measures import (
    SHOWN,
    Served,
    accuracies,
    measure_time,
    retrieval_said,
    write_keys,
    write_queries,
)
from cl_runner.retrieval.notes import say_cut, say_head, say_unmoved
from cl_runner.said import Said
from cl_runner.trained import Trained

#: The parameter that queries are taken relative to.
CENTER = "slm.center"


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
    key_steps: Whole
    key_batch_size: Count
    key_learning_rate: Positive
    key_decay_every: Count
    key_clip: Positive
    center: Literal["none", "first_task", "generic"]
    scope: Literal["sample", "batch"]
    aggregate: Literal["mean_sim", "per_group"]
    weights: Literal["normalised_cos", "uniform", "softmax"]
    temperature: Annotated[Positive, ReadIf("weights", ("softmax",))]
    pool: Literal["prefix", "current", "all"]
    task_identity: bool
    value: Literal["jare", "prompt", "adapter"]
    targets: Annotated[
        list[Literal["attention_output", "query", "key", "value"]], Field(min_length=1), ReadIf("value", ("jare",))
    ]
    cross_attention: Annotated[bool, ReadIf("backbone.family", ("seq2seq",))]
    rank: Annotated[Count, ReadIf("value", ("jare",))]
    prompt_length: Annotated[Count, ReadIf("value", ("prompt", "adapter"))]
    head: Annotated[Literal["shared", "by_num_labels", "per_task"], ReadIf("backbone.family", ("classifier",))]
    learning_rate: Positive | None

    state: ClassVar[tuple[str, ...]] = ("new_keys", "learned", "noted")
    families: ClassVar[tuple[str, ...]] = ("classifier", "causal", "seq2seq")
    chooses: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    isolates: ClassVar[bool] = True
    routes: ClassVar[bool] = True
    learns: ClassVar[Said] = "keys, and values that a text retrieves ({value})"
    keeps: ClassVar[Said] = (
        "{slots} keys and values of each task: 4 bytes per number of a query and a value; rows of the head"
    )
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = {
        "task_identity": {True: "task"},
        "head": {"by_num_labels": "labels"},
        "scope": {"batch": "batch"},
    }

    def __post_init__(self) -> None:
        self.new_keys: dict[str, Tensor] = {}  # of the task under way, and what queries are centered by, by parameter
        self.learned = 0  # tasks
        self.noted: dict[str, Any] = {}  # of the task under way: what did not go as it looks
        self.queries: Queries | None = None
        self.served = Served()
        self.serving = False  # whether an evaluation is answered

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
        if self.head == "per_task" and not self.task_identity and classifies(skeleton):
            raise ValueError(
                "method.slm.head=per_task is told every example's task, so that retrieval may know it too. "
                "Type: method=slm_ti (or method.slm.head=shared)"
            )
        assert isinstance(skeleton, PreTrainedModel)
        values = self.make_values(skeleton)
        if isinstance(values, Increments) and self.rank > values.greatest_rank:
            raise ValueError(
                f"method.slm.rank={self.rank}: the narrowest of the layers that increments are added to has "
                f"{values.greatest_rank} numbers, and a higher rank adds nothing. "
                f"Type: method.slm.rank={values.greatest_rank}"
            )
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
        self.heads = make_heads(model, tasks, self.head, restart)
        if self.heads is not None:
            model.set_submodule(find_head(model)[0], self.heads)
        self.values.attach(model)
        self.bank = Bank(self.names, keys, rows, centered=self.center != "none")
        model.add_module("slm", self.bank)
        return model

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        assert isinstance(skeleton, PreTrainedModel)
        tasks, restart = outline.tasks, outline.restart
        width, heads = self.make_values(skeleton).width, make_heads(skeleton, tasks, self.head, restart)
        of_head = [sum(p.numel() for p in heads.trained_by(task.index)) if heads else 0 for task in tasks]
        nearest = self.top_k * (self.groups if self.aggregate == "per_group" else 1)
        given = min(nearest, self.slots * (1 if self.task_identity or restart else len(tasks)))
        retrieves = Retrieves(
            make=self.make_values,
            width=width,
            slots=self.slots,
            given=given,
            foreign=self.pool != "current" and not self.task_identity and not restart,
            room=given * self.prompt_length if self.value == "prompt" else 0,
            trained={task.name: self.slots * width + own for task, own in zip(tasks, of_head, strict=True)},
            encoder=self.encoder,
            groups=self.groups,
            top_k=self.top_k,
            key_epochs=lambda texts: self._schedule(texts)[0],
            key_batch_size=self.key_batch_size,
        )
        return Needs(first="retrieved", later="retrieved", retrieves=retrieves)

    def make_values(self, model: PreTrainedModel) -> Values:
        """What a slot's value is, for this architecture.

        Raises:
            ValueError: the architecture has not the layers that it needs.
        """
        if self.value == "jare":
            targets = find_targets(model, self.targets, self.cross_attention, option="method.slm.targets")
            return Increments(targets, self.rank)
        if self.value == "prompt":
            return Prompts(model, self.prompt_length, first=int(classifies(model)))
        layers = attention_layers(
            all_projections(model, self.cross_attention),
            option="method.slm.value=adapter",
            instead="method.slm.value=jare",
        )
        config: Any = model.config
        heads = config.num_attention_heads
        return GatedPrefixes(layers, heads, self.prompt_length, scaled=config.model_type not in ("t5", "mt5"))

    # around a task
    def select(self, learner: Learner, task: Task) -> None:
        self._remember(learner, task)
        wanted = [task]
        if self.pool == "all" and not learner.restart:  # as released: keys of all tasks are there from the beginning
            wanted = list(learner.tasks) if task.index == 0 else []
        with learner.clock.phase("keys"):
            center = self._new_center(learner, task)
            trained = [(one, *self._train_keys(learner, one, center)) for one in wanted]
            self.new_keys = {f"slm.keys.{self.names[one.index]}": keys.to(learner.device) for one, keys, _ in trained}
            if center is not None and not learner.has_old_tasks(task):
                self.new_keys[CENTER] = center
        self._note(learner, task, {one.name: still for one, _, still in trained})

    def _train_keys(self, learner: Learner, task: Task, center: Tensor | None) -> tuple[Tensor, int]:
        """The keys of a task, from its texts (3.2: the preparation stage), and how many of them did not move."""
        queries = self._queries(learner)([example.prompt for example in task.train])
        before = learner.parameters()[f"slm.keys.{self.names[task.index]}"].detach().cpu()
        epochs, decay_every = self._schedule(len(queries))
        keys = train_keys(
            before,
            queries if center is None else queries - center.cpu(),
            top_k=self.top_k,
            mask=self.key_mask,
            epochs=epochs,
            batch_size=self.key_batch_size,
            learning_rate=self.key_learning_rate,
            decay_every=decay_every,
            clip=self.key_clip,
            generator=torch.Generator().manual_seed(learner.seed_of("keys", task.index)),
            on_step=lambda done, total: learner.progress("train keys", done, total),
        )
        return keys, unmoved(before, keys)

    def _schedule(self, texts: int) -> tuple[int, int]:
        """Epochs of the keys of a task with so many texts, and those after which the rate falls."""
        return key_schedule(texts, self.key_batch_size, self.key_epochs, self.key_decay_every, self.key_steps)

    def _new_center(self, learner: Learner, task: Task) -> Tensor | None:
        """What every query is taken relative to, [width]; fixed when the first task begins."""
        if self.center == "none":
            return None
        if learner.has_old_tasks(task):
            return self.bank.center
        texts = GENERIC if self.center == "generic" else [example.prompt for example in task.train]
        return self._queries(learner)(texts).mean(0).to(learner.device)

    def _note(self, learner: Learner, task: Task, still: Mapping[str, int]) -> None:
        """What did not go as it looks, for the console and for summary.json."""
        if self.key_epochs:
            say_unmoved(still, self.groups * self.slots, learner.warn)
        self.noted = {
            "keys": self.groups * self.slots,
            "keys_unmoved": {**self.noted.get("keys_unmoved", {}), **still},
            "cut_by_encoder": say_cut(self._queries(learner), task, learner.scored_on(task), learner.warn),
        }
        if self.heads is not None:
            self.noted["head_rows"] = sum(len(p) for p in self.heads.trained_by(task.index)[:1])
            say_head(task, self.noted["head_rows"], learner.warn)

    def _queries(self, learner: Learner) -> Queries:
        """The encoder, which at first reads all that tests will ask: each set at once, or from disk."""
        if self.queries is None:
            cache = learner.cache / "queries" if learner.cache else None
            self.queries = Queries(self.encoder, learner.device, cache, learner.progress, learner.warn)
            task_index, learner.clock.current = learner.clock.current, -1  # what tests cost is no task's time
            with learner.clock.phase("queries"):
                for one in learner.tasks:
                    self.queries.remember([example.prompt for example in learner.scored_on(one)])
            learner.clock.current = task_index
        return self.queries

    def _remember(self, learner: Learner, task: Task) -> None:
        """Queries of the task's texts, a set at once, or from disk."""
        queries = self._queries(learner)
        with learner.clock.phase("queries"):
            wanted = {example.prompt for example in task.train}
            for one in learner.tasks if self.pool == "all" else learner.tasks[: task.index + 1]:
                texts = [example.prompt for example in one.train]
                # After a resume a text that two tasks share must have the vector of the first one, as before.
                if self.pool == "all" or one.index == task.index or not wanted.isdisjoint(texts):
                    queries.remember(texts)

    def trains(self, learner: Learner, task: Task) -> Trained:
        self._remember(learner, task)
        head = [] if self.heads is None else self.heads.names_in(learner.model, task.index)
        names = [f"slm.values.{self.names[task.index]}", *head]
        return Trained(names=names, written=self.new_keys, learning_rate=self.learning_rate)

    def after_task(self, learner: Learner, task: Task) -> None:
        self.restored(task)
        self.served.forget()

    def restored(self, task: Task) -> bool:
        self.new_keys, self.learned = {}, task.index + 1
        return True

    # every pass of the model
    def predict(self, learner: Learner, batch: Batch, inner: Predict) -> list[Prediction]:
        self.serving = learner.task is None and not learner.told
        try:
            return inner(batch)
        finally:
            self.serving = False

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        tasks = torch.tensor(batch.tasks, device=learner.device)
        if self.heads is not None:
            self.heads.tasks = tasks
            self.heads.latest = max(0, self.learned - 1) if learner.task is None else learner.task.index
        first, end = self._visible(learner)
        if first == end:
            self.values.stop()
            return batch
        cosines = similarities(self._queries_of(learner, batch), self.bank.units(first, end))
        found = retrieve(
            cosines,
            self.top_k,
            aggregate=self.aggregate,
            weighting=self.weights,
            temperature=self.temperature,
            whole_batch=self.scope == "batch",
            visible=self._of_own_task(tasks, first, end) if self.task_identity or "task" in learner.told else None,
        )
        if self.serving:
            start = (tasks - first) * self.slots
            self.served.add(tasks, own_weight(found, start, start + self.slots))
        return self.values.use(self.bank.rows(found.slots + first * self.slots), found, batch)

    def _queries_of(self, learner: Learner, batch: Batch) -> Tensor:
        """[B, width]; of a batch that was not made of examples, its text says where it belongs."""
        texts = [example.prompt for example in batch.examples]
        if not texts:
            texts = learner.family.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        return self._ask(learner, texts).to(learner.device)

    def _ask(self, learner: Learner, texts: Sequence[str]) -> Tensor:
        """[texts, width], relative to the center, if there is one; on the CPU."""
        found = self._queries(learner)(texts)
        return found if self.bank.center is None else found - self.bank.center.cpu()

    def _visible(self, learner: Learner) -> tuple[int, int]:
        """Tasks whose slots can be retrieved now, from the first up to, not including, the second."""
        if learner.task is None:
            first = max(0, self.learned - 1) if learner.restart else 0
            end = len(self.names) if self.pool == "all" and self.learned and not learner.restart else self.learned
            return first, end
        if self.pool == "current" or learner.restart:
            return learner.task.index, learner.task.index + 1
        return 0, len(self.names) if self.pool == "all" else learner.task.index + 1

    def _of_own_task(self, true_task: Tensor, first: int, end: int) -> Tensor:
        """[B, N]: the slots of each text's own task; all of them for texts of no task, or of one still to come."""
        owner = torch.arange(first, end, device=true_task.device).repeat_interleave(self.slots)
        own = owner == true_task[:, None]
        return own | ~own.any(1, keepdim=True)

    def ahead(self, learner: Learner, examples: Sequence[Example]) -> float:
        return 0.0 if self.queries is None else self.queries.seconds([example.prompt for example in examples])

    # afterwards
    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        """What the texts of all tasks so far were given, and eq. 13; at the end how long retrieval takes.

        There is none of it where the task is given, or where it is the only one.
        """
        first, end = self._visible(learner)
        described: dict[str, Any] = {"retrieval_accuracy": {}, **self.noted}
        if self.noted:
            described["keys_unmoved"] = self.noted["keys_unmoved"].get(task.name, 0)
        if not self.task_identity and not learner.restart:
            names = [one.name for one in learner.tasks[: task.index + 1]]
            texts = {one.name: learner.scored_on(one) for one in learner.tasks[first : task.index + 1]}
            found = accuracies(
                partial(self._ask, learner), self.bank.units(first, end).cpu(), texts, self.top_k, self.slots
            )
            described |= retrieval_said(self.served.by_task(names), found)
            said = ", ".join(f"{name} {value:.1f} %" for name, value in described["metrics"].items())
            learner.warn(f"retrieval after {task.name}: {said}")
        write_keys(folder, {learner.tasks[i].name: self.bank.keys[self.names[i]] for i in range(first, end)})
        shown = {one.name: learner.scored_on(one)[:SHOWN] for one in learner.tasks[first:end]}
        asked = {name: self._ask(learner, [example.prompt for example in texts]) for name, texts in shown.items()}
        write_queries(folder, asked, self.groups)
        if task.index == len(learner.tasks) - 1:
            described["timing"] = measure_time(learner, self._queries(learner), learner.tasks)
        return described
