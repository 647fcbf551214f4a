"""IDBR: what a text has in common with all tasks and what is its task's own are told apart (arXiv:2104.05489)."""

from __future__ import annotations

import importlib.util
import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import Count, Fraction, NonNegative, Positive
from cl_runner.data.task import Task
from cl_runner.layers.before import most_positions
from cl_runner.layers.spaces import Spaces, content, in_halves
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.memory import Place, kept_examples, own_examples, place_of, recall
from cl_runner.methods.teacher import output_at
from cl_runner.needs import Added, Needs, Outline
from cl_runner.said import Said
from cl_runner.trained import Trained

#: Kinds of parts whose texts are read twice, as they are and with their halves swapped.
READ_TWICE = ("new", "idbr")
#: Texts of one pass of the encoder.
AT_ONCE = 64


def nearest_to_centres(vectors: np.ndarray, clusters: int, seed: int) -> list[int]:
    """Of each cluster of k-means the row of [N, width] nearest to its centre, in order; none of an empty one."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different texts than clusters
        found = KMeans(n_clusters=clusters, random_state=seed % 2**32).fit(vectors)
    distances = np.linalg.norm(vectors - found.cluster_centers_[found.labels_], axis=1)
    members = [np.flatnonzero(found.labels_ == cluster) for cluster in range(clusters)]
    return sorted(int(rows[distances[rows].argmin()]) for rows in members if len(rows))


@dataclass
class IDBR(Method):
    """L = CE + order_strength L_order + c (specific_strength |S - S_old|^2 + general_strength |G - G_old|^2) / size.

    A text is read twice, cut at a random place: with its halves as they are, and swapped; CE and L_order (from G, which
    of the two it is) are means over both. S_old and G_old are of the model as it was before the task. Every so many
    batches the batch is shuffled with one of each old task's memory, and as many optimizer steps are made, with another
    c and task_strength L_task, which old or new task a text is of, from S. An answer's text is cut in its middle.
    """

    share: Fraction
    kept: Literal["kmeans", "random"]
    every: Count
    batch_size: Count
    size: Count
    order_strength: NonNegative
    task_strength: NonNegative
    current_strength: NonNegative
    replay_strength: NonNegative
    general_strength: NonNegative
    specific_strength: NonNegative
    task_rate: Positive

    state: ClassVar[tuple[str, ...]] = ("memory",)
    families: ClassVar[tuple[str, ...]] = ("classifier",)
    chooses: ClassVar[bool] = True
    protects: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    learns: ClassVar[Said] = "the encoder, and two spaces of {size} numbers between it and the labels"
    keeps: ClassVar[Said] = "{share} of the examples of each task, as numbers of rows"
    old_data: ClassVar[Said] = "learned"
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.memory: list[list[Place]] = []  # of each task that is over
        self._step, self._replays = 0, False  # of the batch under way

    # structure
    def check(self, skeleton: nn.Module, longest: int) -> None:
        node = f"method.{self.node}"
        if self.kept == "kmeans" and importlib.util.find_spec("sklearn") is None:
            raise ValueError(
                f"{node}.kept=kmeans clusters by scikit-learn, which is not installed. Type: pip install scikit-learn "
                f"(or {node}.kept=random)"
            )
        assert isinstance(skeleton, PreTrainedModel)
        positions = most_positions(skeleton)
        if positions is not None and longest + 1 > positions:
            raise ValueError(
                f"method {self.node} puts a separator between the halves of a text, and the backbone reads {positions} "
                f"tokens, which backbone.max_length={longest} takes. Type: backbone.max_length={longest - 1}"
            )

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        assert isinstance(model, PreTrainedModel)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config: Any = model.config
            self.spaces = Spaces(config.hidden_size, self.size, config.num_labels, len(tasks))
        self.head = self.spaces.attach(model)
        return model

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        def adds(earlier: Sequence[int], batches: int, examples: int) -> Added:
            steps = batches // self.every * len(earlier)
            return Added(examples + 2 * steps * self.batch_size, steps)

        return Needs(
            first="all", later="all", teacher="logits", adds=adds, largest_part=lambda n: 2 * max(n, self.batch_size)
        )

    # around a task
    def trains(self, learner: Learner, task: Task) -> Trained:
        return Trained(names=self.spaces.names, rates={f"{self.head}.tasks.*": self.task_rate})

    def after_task(self, learner: Learner, task: Task) -> None:
        if learner.restart:
            return
        own = own_examples(task)
        count = max(1, int(self.share * len(own)))
        seed = learner.seed_of("idbr", task.index)
        with learner.clock.phase("keys"):
            if self.kept == "random":
                kept = kept_examples(task, count, "random", seed)
            else:
                vectors = np.empty((len(own), self.spaces.general.in_features), np.float32)
                learner.model.eval()
                for rows in learner.by_length(own, AT_ONCE, answers=False):
                    with torch.no_grad():
                        batch = learner.collate([own[row] for row in rows], answers=False)
                        vectors[rows] = learner.features(batch).cpu().numpy()
                kept = [own[row] for row in nearest_to_centres(vectors, count, seed)]
        self.memory.append([place_of(example) for example in kept])

    # inside a step
    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        self._step, self._replays = step, bool(self.memory) and (step + 1) % self.every == 0
        if not self._replays:
            return steps
        new, *more = steps[0]
        chance = random.Random(learner.seed_of("idbr", task.index, step))
        mixed = [(example, True) for example in new.examples]
        for kept in self.memory:
            places = chance.sample(kept, min(len(kept), self.batch_size))
            mixed += [(example, False) for example in recall(learner.tasks, places)]
        chance.shuffle(mixed)
        size = math.ceil(len(mixed) / (len(self.memory) + 1))
        made = [self._parts(mixed[start : start + size], new) for start in range(0, len(mixed), size)]
        made.sort(key=lambda parts: parts[0].kind != "new")  # the batch's loss is told by its first step
        made[0] += more
        return [*made, *steps[1:]]

    @staticmethod
    def _parts(mixed: Sequence[tuple[Any, bool]], new: Part) -> list[Part]:
        """New and old examples of a step, whose loss is the mean over both."""
        found = []
        for is_new, kind in ((True, new.kind), (False, "idbr")):
            examples = [example for example, one in mixed if one == is_new]
            if examples:
                found.append(Part(examples, new.weight * len(examples) / len(mixed), kind, new.labels))
        return found

    def prepare(self, learner: Learner, part: Part, batch: Batch) -> Batch:
        if part.kind not in READ_TWICE:
            return batch
        assert learner.task is not None
        more = {}
        if learner.has_old_tasks(learner.task):
            output_at(learner, batch, learner.before)
            assert self.spaces.found is not None
            more = {"idbr_general": self.spaces.found.general, "idbr_specific": self.spaces.found.specific}
        lengths = content(batch["attention_mask"])
        seeds = [learner.seed_of("idbr", learner.task.index, self._step, e.task, e.row) for e in batch.examples]
        cuts = [[self._cut(n, random.Random(f"{s}/{k}")) for n, s in zip(lengths, seeds, strict=True)] for k in (0, 1)]
        halves = [self._halves(learner, batch, cuts[swapped], bool(swapped)) for swapped in (0, 1)]
        read = {name: torch.cat([one[name] for one in halves]) for name in halves[0]}
        order = torch.arange(2, device=learner.device).repeat_interleave(len(lengths))
        return (batch | more).twice() | {**read, "idbr_order": order}

    @staticmethod
    def _cut(tokens: int, chance: random.Random) -> int:
        return chance.randrange(1, tokens) if tokens > 1 else tokens

    @staticmethod
    def _halves(learner: Learner, batch: Batch, cuts: list[int], swapped: bool) -> dict[str, Tensor]:
        pad = learner.family.tokenizer.pad_token_id
        found = in_halves(batch["input_ids"], batch["attention_mask"], cuts, swapped, pad)
        return dict(zip(("input_ids", "attention_mask", "idbr_types"), found, strict=True))

    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        if "idbr_types" not in batch:
            middle = [tokens // 2 for tokens in content(batch["attention_mask"])]
            batch = batch | self._halves(learner, batch, middle, False)
        self.spaces.types = batch["idbr_types"]
        return batch

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        if "idbr_order" not in batch:
            return 0.0
        assert self.spaces.found is not None and learner.task is not None
        found, texts = self.spaces.found, len(batch["idbr_order"]) // 2
        terms = {"order": self.order_strength * functional.cross_entropy(found.order, batch["idbr_order"])}
        if "idbr_general" in batch:
            general, specific = (
                functional.mse_loss(now[:texts], batch[name][:texts])
                for now, name in ((found.general, "idbr_general"), (found.specific, "idbr_specific"))
            )
            weight = self.replay_strength if self._replays else self.current_strength
            terms["old"] = weight * (self.specific_strength * specific + self.general_strength * general)
            if self._replays:
                tasks = torch.tensor([example.task for example in batch.examples], device=learner.device)
                logits = found.tasks[:, : learner.task.index + 1]
                terms["task"] = self.task_strength * functional.cross_entropy(logits, tasks)
        for name, term in terms.items():
            learner.log(f"idbr/{name}", float(term.detach()))
        loss = torch.stack(list(terms.values())).sum()
        # As in the release the optimizer goes on with the layer of tasks where nothing is replayed.
        return loss if "idbr_general" not in batch else loss + 0.0 * found.tasks.sum()

    # afterwards
    def describe(self, learner: Learner, task: Task, folder: Path) -> dict[str, Any]:
        """Examples in the memory."""
        return {"memory": sum(len(kept) for kept in self.memory)}
