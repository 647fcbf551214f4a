"""From a configuration to the numbers that its plan is made of. Needs no tokenizer, no weights and no network."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn
from transformers import PreTrainedModel

from cl_runner.build import build_family, build_method, build_probes
from cl_runner.config import Backbone, Config
from cl_runner.data.order import listed_place
from cl_runner.data.prompts import label_names
from cl_runner.data.task import Task, build_tasks, label_union
from cl_runner.families.base import Family
from cl_runner.families.freezing import freeze
from cl_runner.families.loading import from_sizes
from cl_runner.metrics.base import reads_of
from cl_runner.needs import Needs, Writes
from cl_runner.parts import family_kind
from cl_runner.planning.imitation import Device
from cl_runner.planning.optimizers import OptimizerNumbers
from cl_runner.planning.retrieval import encoder_of
from cl_runner.planning.setting import Answers, Setting, TaskNumbers
from cl_runner.planning.tasks import Counts, ask, task_numbers
from cl_runner.pretrained.described import MODELS

#: Texts of each split of a task whose length is looked at.
LOOKED_AT = 1000


@dataclass(frozen=True)
class Lengths:
    """Tokens of texts or prompts, of answers, and of both together; the answers of classifiers have none.

    Attributes:
        by_task: of the answers, task by task; empty if that is not known.
    """

    prompts: Sequence[int]
    answers: Sequence[int]
    whole: Sequence[int]
    by_task: Sequence[Sequence[int]] = ()


def counts_of(config: Config, tasks: Sequence[Task] | None) -> list[Counts]:
    """Examples of each task, from its data or, where a hub holds them, from what the task order asks for.

    Raises:
        ValueError: the data lie on a hub and the task order takes all there are.
    """
    split, selects = config.evaluation.split, config.training.select == "best_validation"
    if tasks is not None:
        return [
            Counts(t.name, len(t.train), len(t.test if split == "test" else t.validation), len(t.validation))
            for t in tasks
        ]
    found = []
    for number, task in enumerate(config.task_order.tasks):
        part = "incremental" if number else "base"
        counts = task.counts or getattr(config.task_order, part)
        for key in ("train", split, *(["validation"] if selects else [])):
            if getattr(counts, key) is None:
                listed = listed_place(config.task_order, number)
                place = f"task_order.{part}" if task.counts is None else f"task_order.tasks[{listed}].counts"
                raise ValueError(
                    f"the data of task {task.name} lie on a hub, and a plan does not fetch them. "
                    f"Say how many examples to plan for: {place}.{key}=1000"
                )
        found.append(Counts(task.name, counts.train or 0, getattr(counts, split) or 0, counts.validation or 0))
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


def skeleton(backbone: Backbone, labels: int) -> PreTrainedModel:
    """The architecture on the meta device, from its sizes where the configuration holds them.

    Raises:
        ValueError: its checkpoint is to be read and cannot be.
    """
    if backbone.architecture is None or backbone.pretrained is None or backbone.local:
        return build_family(backbone, [str(i) for i in range(labels)]).skeleton()
    named = {"num_labels": labels} if family_kind(backbone.family) == "classifier" else {}
    configuration = from_sizes(backbone, pad_token_id=0, **named)
    with torch.device("meta"):
        model: PreTrainedModel = MODELS[family_kind(backbone.family)].from_config(
            configuration, attn_implementation=backbone.attention
        )
    freeze(model, backbone.frozen)
    return model


def text_lengths(family: Family | None, tasks: Sequence[Task] | None) -> Lengths | None:
    """Tokens of the texts, up to 1,000 of each split of a task; None without a tokenizer or without data."""
    if family is None or tasks is None:
        return None
    by_task = [task.train[:LOOKED_AT] for task in tasks]
    trained = list(itertools.chain.from_iterable(by_task))
    evaluated = [example for task in tasks for example in (task.test or task.validation)[:LOOKED_AT]]
    prompts = family.lengths([*trained, *evaluated], answers=False)
    if family.one_target:
        return Lengths(prompts, [], prompts)
    answers = [family.targets(examples) for examples in by_task]
    return Lengths(prompts, list(itertools.chain.from_iterable(answers)), family.lengths(trained), answers)


def local_family(backbone: Backbone, tasks: Sequence[Task] | None) -> Family | None:
    """The family with its tokenizer where both are on this machine: generated, in a package or in a folder."""
    if tasks is None or not (backbone.pretrained is None or backbone.package is not None or backbone.local):
        return None
    return build_family(backbone, label_union(tasks))


def setting_of(
    config: Config,
    counts: Sequence[Counts],
    model: nn.Module,
    device: Device,
    lengths: Lengths | None,
    processes: int = 1,
) -> Setting:
    """The run's numbers.

    Args:
        counts: examples of each task.
        model: the architecture; only names, types and shapes are read.
        lengths: None = every text has the backbone's greatest length.
        processes: that compute the run.

    Raises:
        ValueError: the method that decides what trains does not say it.
    """
    order, training, importance = config.task_order, config.training, config.importance
    if lengths is None:
        answer = config.backbone.max_answer_length or 0
        longest = config.backbone.max_length
        lengths = Lengths([longest], [answer], [config.backbone.longest_in_training])
    method = build_method(config.method)
    needs = ask(method, config, model, max(lengths.answers, default=0))
    if needs.first is None:
        raise ValueError(
            f"method {method.chooser} does not say what it needs (Method.needs), so this run cannot be planned; "
            "the run itself is not concerned"
        )
    tasks = task_numbers(config, needs, counts)
    encoder, encoder_length, room = None, 0, needs.room
    if needs.retrieves is not None:
        encoder = encoder_of(needs.retrieves)
        longest = max(lengths.prompts)
        # Of a text that is cut for the backbone the encoder reads more.
        encoder_length = encoder.tokens if longest >= config.backbone.max_length else min(encoder.tokens, longest)
        room += needs.retrieves.room
    if room:
        lengths = dataclasses.replace(
            lengths, prompts=[n + room for n in lengths.prompts], whole=[n + room for n in lengths.whole]
        )
    if needs.shots:  # examples of the question's task, as far as they fit
        limit, shot = config.backbone.max_length, fmean(lengths.whole)
        fitting = [n + shot * min(needs.shots, max(0, (limit - n) // shot)) for n in lengths.prompts]
        most = max(min(limit, n + needs.shots * max(lengths.whole)) for n in lengths.prompts)
        lengths = dataclasses.replace(lengths, prompts=[*(round(n) for n in fitting), most])
    batch = 0 if training.group_by_length else training.incremental.batch_size
    seen = config.evaluation.tasks == "seen"
    evaluated = [each.evaluated * (len(tasks) - i if seen else len(tasks) + 1) for i, each in enumerate(counts)]
    adapted = [each.evaluated * (len(tasks) - (i if seen else 0)) for i, each in enumerate(counts)]
    learned = [each.evaluated * (1 if order.restart else len(tasks) - i) for i, each in enumerate(counts)]
    for number, task in enumerate(tasks):  # evaluations between epochs, of the tasks so far
        for i in range(number if order.restart else 0, number + 1):
            more = task.curve[0] * counts[i].evaluated
            evaluated[i], adapted[i], learned[i] = evaluated[i] + more, adapted[i] + more, learned[i] + more
    after = asked_after(config, needs, counts)
    asked = [sum(of_task) for of_task in itertools.zip_longest(*after, fillvalue=0)]
    asked += [0] * (len(counts) - len(asked))
    probes = build_probes(config.probe)
    said = {name: probe.passes([each.evaluated for each in counts]) for name, probe in probes.items()}
    classifies = family_kind(config.backbone.family) == "classifier"
    measured = [importance.changed(task.importance) for task in order.tasks]
    return Setting(
        device=device,
        precision=config.hardware.precision,
        dtype=getattr(torch, config.backbone.dtype),
        gradient_checkpointing=config.hardware.gradient_checkpointing,
        shards=processes if config.hardware.shard else 1,
        always=config.hardware.shard == "always" and processes > 1,
        offload=config.hardware.offload == "optimizer" and device == "cuda",
        offloads=all(each.offloads for each in method.methods.values()),
        max_length=max(lengths.prompts),
        # Batches of prompts to answer are sorted by length.
        mean_length=_padded(lengths.prompts, batch if classifies else 0),
        micro_batch=_micro_batches(config, tasks),
        importance_batch=max(each.batch_size for each in measured),
        importance_micro_batch=max(each.micro_batch for each in measured),
        importance_max_length=importance.max_length,
        accumulate=importance.accumulate,
        passes=importance.passes,
        evaluation_batch=config.evaluation.batch_size,
        evaluated=sum(evaluated),
        evaluations=len(tasks) + (not seen) + sum(task.curve[0] for task in tasks),
        tasks=tasks,
        needs=needs,
        optimizer=OptimizerNumbers(
            needs.optimizer or training.optimizer, training.momentum > 0, training.weight_decay > 0
        ),
        selects_epoch=training.select == "best_validation",
        restart=order.restart,
        snapshots=config.snapshots.save,
        cache_bytes=int(importance.cache_gb * 1e9),
        family=family_kind(config.backbone.family),
        answers=None if classifies else _answers(config, evaluated, learned, lengths, batch),
        kept_examples=max(each.train for each in counts) if order.restart else sum(each.train for each in counts),
        adapted=sum(adapted) if needs.local is not None else 0,
        written=0 if needs.writes is None or classifies else _written(config, needs.writes),
        asked=sum(asked),
        asked_at_once=max((max(texts) for texts in after if texts), default=0),
        asked_answers=None if classifies else _asked_answers(config, needs, asked, lengths, batch),
        encoder=encoder,
        encoded=sum(each.train + each.evaluated for each in counts) if encoder else 0,
        encoder_length=encoder_length,
        probes=tuple(each for passes in said.values() for each in passes or ()),
        unsaid=(
            *(f"method {name}" for name in needs.unsaid),
            *(f"probe {name}" for name, passes in said.items() if passes is None),
        ),
    )


#: Tokens of an answer that ends when its metrics have read what they read, of a task that was learned: a letter or a
#: number, and what shows that it has ended.
READ = 8


def asked_after(config: Config, needs: Needs, counts: Sequence[Counts]) -> list[Sequence[int]]:
    """Prompts of each task so far that a method lets the model answer after each task; none after the last one."""
    if needs.asks is None or config.task_order.restart:
        return [()] * len(counts)
    trained = [each.train for each in counts]
    return [*(needs.asks.texts(trained[:number], trained[number]) for number in range(1, len(counts))), ()]


def _written(config: Config, writes: Writes) -> int:
    """Tokens of the longest answer that the model writes itself while it trains."""
    order = config.task_order
    names = {task.task or order.task for task in order.tasks}
    allowed = max(config.evaluation.new_tokens(config.task[name].max_new_tokens) for name in names)
    return min(allowed, writes.tokens or allowed)


def _micro_batches(config: Config, tasks: Sequence[TaskNumbers]) -> dict[str, int]:
    """Examples of a pass, by stage; where nothing cuts the parts of a step, those of the largest one."""
    training, changes = config.training, [task.training for task in config.task_order.tasks]
    stages = {"base": training.base.micro_batch, "incremental": training.incremental.micro_batch}
    stages |= {
        f"tasks.{listed_place(config.task_order, i)}": change.micro_batch
        for i, change in enumerate(changes)
        if change and change.micro_batch
    }
    found = {}
    for stage, size in stages.items():
        largest = max((task.largest_part for task in tasks if task.stage == stage), default=1)
        found[stage] = min(size or largest, largest)
    return found


def _answers(config: Config, evaluated: Sequence[int], learned: Sequence[int], lengths: Lengths, batch: int) -> Answers:
    """What a language model writes: of a task that was learned as much as its data's answers, before all it may.

    Args:
        evaluated: examples of each task in all evaluations.
        learned: of them, those that are answered when the task was learned.
        batch: examples of a batch that is drawn at random; 0 = batches hold answers of similar length.
    """
    order = config.task_order
    definitions = [config.task[task.task or order.task] for task in order.tasks]
    likely = [config.evaluation.labels == "likelihood" and task.labels is not None for task in definitions]
    tokens = [
        0 if by_label else config.evaluation.new_tokens(task.max_new_tokens)
        for task, by_label in zip(definitions, likely, strict=True)
    ]
    known = [label_names(task) for task, by_label in zip(definitions, likely, strict=True) if by_label]
    # A batch is done with its longest answer.
    expected = [
        min(most, _padded(answers, config.evaluation.batch_size)) if answers else most
        for most, answers in zip(tokens, lengths.by_task or [()] * len(tokens), strict=True)
    ]
    if order.answers_until == "read":
        scored = [task.released_metrics.get(config.evaluation.scoring, task.metrics) for task in definitions]
        expected = [min(few, READ) if reads_of(names) else few for few, names in zip(expected, scored, strict=True)]
    writing = zip(tokens, expected, evaluated, learned, strict=True)
    # A token has a byte at least.
    longest = max((len(label.encode()) + 1 for labels in known for label in labels), default=0)
    return Answers(
        max_length=max(lengths.answers),
        mean_length=fmean(lengths.answers),
        max_whole=max(lengths.whole),
        beyond=max(0, max(lengths.whole) - max(lengths.prompts) - max(lengths.answers)),
        mean_whole=_padded(lengths.whole, batch),
        generated=max((n for n, number in zip(tokens, evaluated, strict=True) if number), default=0),
        mean_generated=sum(n * of_all + (few - n) * of_learned for n, few, of_all, of_learned in writing)
        / max(1, sum(evaluated)),
        labels=max((len(labels) for labels in known), default=0),
        label_length=min(longest, config.backbone.max_answer_length or longest),
        by_label=sum(number for by_label, number in zip(likely, evaluated, strict=True) if by_label),
    )


def _asked_answers(config: Config, needs: Needs, asked: Sequence[int], lengths: Lengths, batch: int) -> Answers:
    """What it writes where a method asks it: answers, or examples as long as those in training, as far as they may."""
    found = _answers(config, asked, asked, lengths, batch)
    if needs.asks is None or needs.asks.writes is None:
        return found
    most = needs.asks.writes or config.backbone.max_length + (config.backbone.max_answer_length or 0)
    # A batch is done with its longest example.
    expected = min(most, _padded(lengths.whole, needs.asks.batch_size) - needs.room)
    return dataclasses.replace(found, generated=most, mean_generated=expected, labels=0, by_label=0)


def _padded(lengths: Sequence[int], batch: int) -> float:
    """Tokens of a text with its padding in a batch drawn at random: about the quantile B / (B + 1).

    Args:
        batch: examples in it; 0 = it holds texts of similar length, so that there is little padding.
    """
    if not batch:
        return fmean(lengths)
    ordered = sorted(lengths)
    return ordered[min(len(ordered) - 1, len(ordered) * batch // (batch + 1))]
