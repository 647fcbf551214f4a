"""From a configuration to the numbers that its plan is made of. Needs no tokenizer, no weights and no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from cl_runner.build import FAMILIES, build_method
from cl_runner.config import Backbone, Config
from cl_runner.data.task import Task, build_tasks, label_union
from cl_runner.families.base import Family
from cl_runner.methods.ewc import EWC
from cl_runner.methods.frozen import Frozen
from cl_runner.methods.lwf import LwF
from cl_runner.methods.selector import Selector
from cl_runner.planning.imitation import Device
from cl_runner.planning.planner import Memory, Setting, TaskNumbers, Trains
from cl_runner.sparse.scores import NEEDS_GRADIENT, NEEDS_PASS
from cl_runner.train import number_of_steps

#: Examples of each task: name, trained on, evaluated.
Counts = Sequence[tuple[str, int, int]]


def counts_of(config: Config, tasks: Sequence[Task] | None) -> Counts:
    """Examples of each task, from its data or, where a hub holds them, from what the task order asks for.

    Raises:
        ValueError: the data lie on a hub and the task order takes all there are.
    """
    split: Literal["test", "validation"] = config.evaluation.split
    if tasks is not None:
        return [(t.name, len(t.train), len(t.test if split == "test" else t.validation)) for t in tasks]
    found = []
    for number, task in enumerate(config.task_order.tasks):
        part = "incremental" if number else "base"
        counts = getattr(config.task_order, part)
        for key, value in (("train", counts.train), (split, getattr(counts, split))):
            if value is None:
                raise ValueError(
                    f"the data of task {task.name} lie on a hub, and a plan does not fetch them. "
                    f"Say how many examples to plan for: task_order.{part}.{key}=1000"
                )
        found.append((task.name, counts.train, getattr(counts, split)))
    return found


def local_tasks(config: Config) -> list[Task] | None:
    """The tasks with their data, or None if some lie on a hub.

    Raises:
        ValueError: a mistake in the order or in local data.
    """
    names = {task.task or config.task_order.task for task in config.task_order.tasks}
    if any(name in config.task and config.task[name].source == "hub" for name in names):
        return None
    return build_tasks(config.task_order, config.task)


def label_count(config: Config, tasks: Sequence[Task] | None) -> int:
    """Classes of the shared head."""
    if tasks is not None:
        return len(label_union(tasks))
    names = dict.fromkeys(task.task or config.task_order.task for task in config.task_order.tasks)
    return len({label for name in names for label in (config.task[name].labels or {}).values() if label is not None})


def skeleton(backbone: Backbone, labels: int) -> PreTrainedModel:
    """The architecture on the meta device, from its sizes where the configuration holds them.

    Raises:
        ValueError: its checkpoint is to be read and cannot be.
    """
    if backbone.architecture is None or backbone.checkpoint is None:
        return FAMILIES[backbone.family](backbone, [str(i) for i in range(labels)]).skeleton()
    sizes = dict(backbone.architecture)
    configuration = AutoConfig.for_model(str(sizes.pop("model_type")), **sizes, num_labels=labels, pad_token_id=0)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            configuration, attn_implementation=backbone.attention
        )
    return model


def text_lengths(family: Family | None, tasks: Sequence[Task] | None) -> list[int]:
    """Tokens of the texts, up to 2,000 of each task; empty without a tokenizer or without data."""
    if family is None or tasks is None:
        return []
    return [length for task in tasks for length in family.lengths([*task.train, *task.test][:2000])]


def local_family(backbone: Backbone, tasks: Sequence[Task] | None) -> Family | None:
    """The family with its tokenizer where both are on this machine: generated, in a package or in a folder."""
    in_folder = backbone.checkpoint is not None and backbone.checkpoint.startswith((".", "/", "~"))
    if tasks is None or not (backbone.checkpoint is None or backbone.package is not None or in_folder):
        return None
    return FAMILIES[backbone.family](backbone, label_union(tasks))


def setting_of(
    config: Config, counts: Counts, labels: int, model: nn.Module, device: Device, lengths: Sequence[int]
) -> Setting:
    """The run's numbers.

    Args:
        counts: examples of each task.
        labels: classes of the head.
        model: the architecture; only names, types and shapes are read.
        lengths: tokens of texts; empty = every text has the backbone's greatest length.
    """
    order, training, importance = config.task_order, config.training, config.importance
    longest = max(lengths, default=config.backbone.max_length)
    memory, selects_first, frozen, measures = _demands(config, model, labels)
    tasks, before = [], 0
    for number, (name, own, _) in enumerate(counts):
        stage = training.incremental if number else training.base
        examples = before + own if order.joint else own
        old = number > 0 and not order.restart
        selects = memory.fraction > 0 and (old or selects_first)
        trains: Trains = "nothing" if frozen and old else "selected" if selects else "all"
        measured = max(
            before if "old_tasks" in measures and old else 0,
            examples if "new_task" in measures and selects else 0,
            examples if "last_task" in measures else 0,
        )
        if importance.max_examples is not None:
            measured = min(measured, importance.max_examples)
        steps = number_of_steps(examples, stage, training.max_steps)
        tasks.append(TaskNumbers(name, "incremental" if number else "base", examples, steps, trains, measured))
        before += own
    stages = {"base": training.base, "incremental": training.incremental}
    return Setting(
        device=device,
        precision=config.hardware.precision,
        dtype=getattr(torch, config.backbone.dtype),
        gradient_checkpointing=config.hardware.gradient_checkpointing,
        max_length=longest,
        mean_length=_padded(lengths, training.incremental.batch_size) if lengths else longest,
        batch_size={name: stage.batch_size for name, stage in stages.items()},
        micro_batch={
            name: min(stage.micro_batch or stage.batch_size, stage.batch_size) for name, stage in stages.items()
        },
        importance_batch=importance.batch_size,
        importance_micro_batch=importance.micro_batch,
        accumulate=importance.accumulate,
        passes=importance.passes,
        evaluation_batch=config.evaluation.batch_size,
        evaluated=sum(evaluated for _, _, evaluated in counts),
        tasks=tuple(tasks),
        memory=memory,
        restart=order.restart,
        snapshots=config.snapshots.save,
        cache_bytes=int(importance.cache_gb * 1e9),
    )


def _padded(lengths: Sequence[int], batch: int) -> float:
    """Tokens of a text with its padding in a batch drawn at random: about the quantile B / (B + 1)."""
    ordered = sorted(lengths)
    return ordered[min(len(ordered) - 1, len(ordered) * batch // (batch + 1))]


def _demands(config: Config, model: nn.Module, labels: int) -> tuple[Memory, bool, bool, set[str]]:
    """What the methods hold, whether they select in the first task, whether they freeze, what they measure on."""
    values: dict[str, Any] = {}
    measures: set[str] = set()
    selects_first = False
    methods = build_method(config.method).methods.values()
    for method in methods:
        if isinstance(method, Selector):
            values["candidates"] = sizes = method.candidates(model)
            values["fraction"] = method.fraction
            if "count_excluded" in method.compat:
                entries = sum(p.numel() for p in model.parameters())
                values["fraction"] = min(1.0, method.fraction * entries / sum(sizes.values()))
            values["clustered"] = method.keep == "largest" and method.score not in ("random", "magnitude")
            selects_first = method.first_task == "selected"
            if method.score in NEEDS_PASS:
                measures.add(method.score_data)
                values["sums"] = 2 if method.score in NEEDS_GRADIENT else 1
                values["sum_item"] = 2 if "bf16_accumulation" in method.compat else 4
        elif isinstance(method, EWC):
            measures.add(method.fisher_data)
            values["entry_bytes"] = 8  # Fisher and anchor of what trains
            values["mean_bytes"] = 4
            if method.fisher_data == "last_task":
                values["weight_bytes"] = 4  # the Fisher of all weights
        elif isinstance(method, LwF):
            values["example_bytes"] = 4 * labels
    return Memory(**values), selects_first, any(isinstance(method, Frozen) for method in methods), measures
