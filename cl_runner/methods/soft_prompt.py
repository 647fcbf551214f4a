"""What methods with prompts of tasks share: options, prompts as parameters, what each text is given of them."""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cl_runner.batch import Batch
from cl_runner.config import Count, Positive
from cl_runner.data.task import Task
from cl_runner.layers.before import Before, Imitated, most_positions, takes_positions
from cl_runner.layers.heads import classifies
from cl_runner.layers.peft_folder import write_prompt
from cl_runner.layers.soft_prompts import SoftPrompts, network
from cl_runner.learner import Learner, derive_seed
from cl_runner.methods.base import Method
from cl_runner.methods.low_rank import classifier_head, loading, needs_of, task_type
from cl_runner.needs import Needs, Outline
from cl_runner.read_if import ReadIf
from cl_runner.said import Said
from cl_runner.trained import Trained


@dataclass
class SoftPrompt(Method):
    """Vectors before each text, in place of embeddings (Lester et al. 2021, arXiv:2104.08691); the backbone is fixed.

    A prompt begins with the embeddings of tokens drawn at random. In front of a classifier's texts the first vector of
    the newest prompt takes the place of [CLS], begins with its embedding, and is what the head reads.
    """

    length: Count
    mlp: Literal["none", "mlp1", "mlp2"]
    bottleneck: Annotated[int, Field(ge=2), ReadIf("mlp", ("none",), unless=True)]
    layer_norm: Annotated[bool, ReadIf("mlp", ("mlp1",))]
    learning_rate: Positive | None
    mlp_learning_rate: Annotated[Positive | None, ReadIf("mlp", ("none",), unless=True)]
    head_learning_rate: Annotated[Positive | None, ReadIf("backbone.family", ("classifier",))]

    families: ClassVar[tuple[str, ...]] = ("classifier", "causal", "seq2seq")
    chooses: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    keeps: ClassVar[Said] = ""
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.longest: int | None = None  # tokens of a text, once it is known

    @abstractmethod
    def given(self, task: int) -> list[str]:
        """Names of the prompts that an example of a task is given, from the first to the last that its model reads."""

    @abstractmethod
    def trained_name(self, task: Task) -> str:
        """The prompt that a task trains."""

    def counts(self, outline: Outline) -> tuple[int, int]:
        """Prompts that there are in the end, and those that a text is given, at most."""
        return 1, 1

    # structure
    def check(self, skeleton: nn.Module, longest: int) -> None:
        assert isinstance(skeleton, PreTrainedModel)
        self.longest = longest
        if classifies(skeleton) and not takes_positions(skeleton):
            raise ValueError(
                f"method.{self.node} tells a classifier the position of every vector, and {skeleton.config.model_type} "
                "takes none. Type: backbone=bert_base (or method=slm_prompt)"
            )

    def build(self, model: nn.Module, tasks: Sequence[Task], seed: int, restart: bool) -> nn.Module:
        assert isinstance(model, PreTrainedModel)
        self.restart = restart
        self.head = classifier_head(model)
        self.before = Before(model)
        self.before.attach(model)
        self.prompts = SoftPrompts()
        model.add_module("prompts", self.prompts)
        self.add(0, seed)
        return model

    def add(self, index: int, seed: int) -> None:
        """The prompt of a task, at values that depend on the run's seed and the task alone."""
        name = name_of(index)
        if name in self.prompts.values:
            return
        generator = torch.Generator().manual_seed(derive_seed(seed, "prompt", index))
        values = self.before.random_rows(self.length, generator)
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        with torch.random.fork_rng(devices):
            torch.manual_seed(derive_seed(seed, "prompt network", index))
            through = self.make_network(self.before.columns)
        device = self.before.embedding.get_parameter("weight").device
        self.prompts.add(name, values.to(device), None if through is None else through.to(device))

    def make_network(self, columns: int) -> nn.Module | None:
        """An untrained one."""
        return network(self.mlp, columns, self.bottleneck, self.layer_norm)

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        assert isinstance(skeleton, PreTrainedModel)
        count, given = self.counts(outline)
        check_positions(self.node, skeleton, self.longest, given, self.length)
        adapt = functools.partial(self._imitate, count=count, given=given)
        grows = self.length if given > 1 else 0
        return dataclasses.replace(needs_of(skeleton, adapt), room=given * self.length, room_grows=grows)

    def _imitate(self, model: nn.Module, count: int, given: int) -> list[str]:
        """What trains in the last task."""
        assert isinstance(model, PreTrainedModel)
        prompts, table = SoftPrompts(), model.get_input_embeddings().get_parameter("weight")
        for index in range(count):
            with torch.device(table.device):
                values, through = torch.empty(self.length, table.shape[1]), self.make_network(table.shape[1])
            prompts.add(name_of(index), values, through)
        model.add_module("prompts", prompts)
        Imitated(model, functools.partial(prompts.all, [name_of(index) for index in range(count - given, count)]))
        return [f"prompts.{name}" for name in prompts.parameters_of(name_of(count - 1))]

    # around a task
    def trains(self, learner: Learner, task: Task) -> Trained:
        name = self.trained_name(task)
        names = [f"prompts.{one}" for one in self.prompts.parameters_of(name)]
        heads = self.heads_of(learner, task)
        rates = {"prompts.networks.*": self.mlp_learning_rate, **dict.fromkeys(heads, self.head_learning_rate)}
        return Trained(
            names=[*names, *heads],
            written=self._class_vector(learner, name) if self.begins(learner, task) else {},
            learning_rate=self.learning_rate,
            rates={pattern: rate for pattern, rate in rates.items() if rate is not None},
        )

    def begins(self, learner: Learner, task: Task) -> bool:
        """Whether a task's prompt has not been trained before."""
        return True

    def heads_of(self, learner: Learner, task: Task) -> list[str]:
        """Names of what a task trains of a classifier's head."""
        return self.head

    def _class_vector(self, learner: Learner, name: str) -> dict[str, Tensor]:
        """A classifier's prompt with the embedding of [CLS] in its first place."""
        token = learner.family.tokenizer.cls_token_id
        if not self.head or token is None:
            return {}
        values = self.prompts.values[name].detach().clone()
        values[0] = self.before.embedding.get_parameter("weight").detach()[token].float()
        return {f"prompts.values.{name}": values}

    def export(self, model: nn.Module, tasks: Sequence[Task], folder: Path, base: str) -> str | None:
        if self.head:  # peft leaves [CLS] where it is, and tells no vector its position
            return None
        apart = self.isolates and not self.restart
        places = {int(name): folder / tasks[int(name)].name if apart else folder for name in self.prompts.values}
        for index, place in places.items():
            write_prompt(place, self.prompts.all(self.given(index)), base=base, task_type=task_type(model))
        others = f" and so on for each of {len(places)} tasks" if apart else ""
        return f"{loading(model, base, places[0])}{others}"

    # every pass of the model
    def before_forward(self, learner: Learner, batch: Batch) -> Batch:
        tasks = batch.tasks
        names = {task: self.given(task) for task in dict.fromkeys(tasks)}
        if not any(names.values()):
            self.before.stop()
            return batch
        made = {name: self.prompts.of(name) for name in dict.fromkeys(n for some in names.values() for n in some)}
        room = max(map(len, names.values())) * self.length
        device = batch["input_ids"].device
        empty = torch.zeros(0, self.before.columns, device=device)
        rows = {task: torch.cat([empty, *(made[name] for name in some)]) for task, some in names.items()}
        padded = {task: functional.pad(some, (0, 0, 0, room - len(some))) for task, some in rows.items()}
        counts = torch.tensor([len(names[task]) * self.length for task in tasks], device=device)
        positions = None
        if self.head:
            numbers = {task: self._positions(learner, some, room) for task, some in names.items()}
            positions = torch.tensor([numbers[task] for task in tasks], device=device)
        return self.before.put(batch, torch.stack([padded[task] for task in tasks]), counts, positions)

    def _positions(self, learner: Learner, names: Sequence[str], room: int) -> list[int]:
        """Of a classifier's vectors: each prompt's first stands where [CLS] does, the others behind all texts."""
        behind = learner.family.backbone.max_length
        found = []
        for name in names:
            start = behind + self.place(name) * (self.length - 1)
            found += [0, *range(start, start + self.length - 1)]
        return found + [0] * (room - len(found))

    def place(self, name: str) -> int:
        """How many prompts' vectors have positions before this one's."""
        return int(name)


def name_of(index: int) -> str:
    """The prompt of a task, by its number."""
    return f"{index:02d}"


def check_positions(node: str, skeleton: PreTrainedModel, longest: int | None, count: int, length: int) -> None:
    """Texts of so many tokens have room for prompts, or a ValueError says what to type."""
    positions = most_positions(skeleton)
    if positions is None or longest is None or longest + count * length <= positions:
        return
    fitting = (positions - longest) // count
    shorter = f"backbone.max_length=N, with N smaller by {longest + count * length - positions}"
    raise ValueError(
        f"method.{node} puts {count} x {length} vectors before a text, and the backbone reads {positions} tokens, of "
        f"which texts may take {longest}. Type: "
        + (f"method.{node}.length={fitting} (or {shorter})" if fitting > 0 else shorter)
    )
