"""Tasks: what the steps of a task order train and test on, drawn once, before any model is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cl_runner.config import ImportanceChange, OrderedTask, StageChange, TaskDefinition, TaskOrder
from cl_runner.data import prompts, reviews, sources
from cl_runner.data.example import Example
from cl_runner.data.pictures import find_picture

Split = Literal["train", "validation", "test"]
#: The order in which splits that share one source are drawn from it.
DRAWN: tuple[Split, ...] = ("test", "validation", "train")


@dataclass(frozen=True, slots=True)
class Task:
    """One step of a task order with all its examples."""

    index: int
    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]  # this task's label names, in the order of its definition; empty: any text is an answer
    metrics: dict[str, tuple[str, ...]]  # "standard" or a release -> metrics, of which the first is the task's score
    max_new_tokens: int  # of a generated answer
    training: StageChange | None = None  # how it is trained otherwise than its stage says
    importance: ImportanceChange | None = None  # how its importance is measured otherwise than the run's

    def scored_by(self, scoring: str) -> tuple[str, ...]:
        """The metrics of `evaluation.scoring`; a definition without that release is scored as usual."""
        return self.metrics.get(scoring, self.metrics["standard"])


def build_tasks(order: TaskOrder, definitions: dict[str, TaskDefinition]) -> list[Task]:
    """The tasks of an order: the same order and definitions give the same examples on every machine.

    No row of a source is in two splits of a task; what is drawn for a task does not depend on the others.

    Raises:
        ValueError: the first mistake in the order, its definitions or their data.
    """
    return [_build(plan) for plan in _plans(order, definitions)]


def outlines(order: TaskOrder, definitions: dict[str, TaskDefinition]) -> list[Task]:
    """The tasks of an order without their examples: nothing is read."""
    return [_task(plan, {split: [] for split in DRAWN}) for plan in _plans(order, definitions)]


def label_union(tasks: Iterable[Task]) -> tuple[str, ...]:
    """All label names in the order of first appearance: the classes of a shared head."""
    return tuple(dict.fromkeys(label for task in tasks for label in task.labels))


def fingerprint(task: Task) -> str:
    """SHA-256 (hexadecimal) of everything in a task."""
    text = json.dumps(dataclasses.asdict(task, dict_factory=_content), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _content(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Without what is not there, where pictures lie on this machine, and the places that follow from the order."""
    left_out = ("path", "task", "row", "training", "importance")
    return {name: value for name, value in fields if name not in left_out and (name, value) != ("picture", None)}


def source_files(order: TaskOrder, definitions: dict[str, TaskDefinition]) -> list[Path]:
    """The local files that `build_tasks` reads, sorted; none for generated and hub sources."""
    paths = set()
    for plan in _plans(order, definitions):
        if plan.definition.source == "files":
            for split, origin in _origins(plan).items():
                for domain, share in zip(plan.domains, plan.shares(split), strict=True):
                    if share != 0:
                        paths.add(sources.local_path(plan.definition, plan.name, domain, origin, plan.variant))
    return sorted(paths)


# The order --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """One step of the order with its definition, and how many examples of each split it wants."""

    index: int
    task: OrderedTask
    name: str  # of the definition
    definition: TaskDefinition
    counts: dict[Split, int | None]
    data_seed: int
    variant: str | int | None

    @property
    def domains(self) -> list[str]:
        return self.task.domains or [self.task.name]

    def key(self, split: Split) -> str:
        """The configuration key of a count."""
        if self.task.counts is not None:
            return f"task_order.tasks.{self.index}.counts.{split}"
        return f"task_order.{'incremental' if self.index else 'base'}.{split}"

    def shares(self, split: Split) -> list[int | None]:
        """The examples of each domain, as equal as possible, the remainder to the first ones; None = all."""
        count, domains = self.counts[split], len(self.domains)
        if count is None:
            return [None] * domains
        return [count // domains + (position < count % domains) for position in range(domains)]


def _plans(order: TaskOrder, definitions: dict[str, TaskDefinition]) -> list[_Plan]:
    if not order.tasks:
        raise ValueError("the task order has no tasks. Choose one: task_order=reviews")
    names = [task.name for task in order.tasks]
    plans = []
    for index, task in enumerate(order.tasks):
        if names.count(task.name) > 1:
            raise ValueError(
                f"the task order has two tasks named {task.name!r}; call one of them "
                f"{{name: {task.name}_2, domains: [{task.name}]}}"
            )
        for domain in task.domains:
            if task.domains.count(domain) > 1:
                raise ValueError(f"task {task.name!r} lists the domain {domain!r} twice; leave one out")
        name = task.task or order.task
        if name not in definitions:
            close = difflib.get_close_matches(name, list(definitions), n=1)
            raise ValueError(
                f"task {task.name!r} uses the definition {name!r}, which is not loaded; "
                f"loaded: {', '.join(definitions) or 'none'}.{f' Nearest: {close[0]!r}.' if close else ''} "
                f"Type: task=[{','.join([*definitions, name])}]"
            )
        noise = definitions[name].label_noise
        if noise > 0 and definitions[name].source != "generated":
            raise ValueError(
                f"task.{name}.label_noise={noise:g}: label noise is for the generated benchmark only, and task.{name} "
                f"has source={definitions[name].source}. Type: task.{name}.label_noise=0"
            )
        if definitions[name].balance and definitions[name].labels is None:
            raise ValueError(
                f"task.{name}.balance=true draws equally many examples of every label, but task.{name}.labels is null: "
                f"any text is an answer. Type: task.{name}.balance=false"
            )
        counts = task.counts or (order.incremental if index else order.base)
        wanted: dict[Split, int | None] = {
            "train": counts.train,
            "validation": counts.validation,
            "test": counts.test,
        }
        plans.append(_Plan(index, task, name, definitions[name], wanted, order.data_seed, order.variant))
    return plans


def _origins(plan: _Plan) -> dict[Split, str]:
    """Our split -> the source's own name for it, of the wanted splits in drawing order.

    Raises:
        ValueError: examples are wanted of a split that the definition does not have.
    """
    origins: dict[Split, str] = {}
    for split in DRAWN:
        count, origin = plan.counts[split], plan.definition.splits.get(split)
        if count != 0 and origin is not None:
            origins[split] = origin
        elif count or (count is None and split != "validation"):
            raise ValueError(
                f"task.{plan.name} has no {split} split, but {plan.key(split)} asks for {count or 'all'} "
                f"of it. Type: {plan.key(split)}=0, or say where to draw it from: "
                f"task.{plan.name}.splits.{split}=SPLIT"
            )
    return origins


def _build(plan: _Plan) -> Task:
    definition = plan.definition
    labels = prompts.label_names(definition)
    if definition.labels is not None and not labels:
        raise ValueError(f"task.{plan.name} has no labels. Add under task.{plan.name}.labels: 'VALUE': NAME")
    examples: dict[Split, list[Example]] = {split: [] for split in DRAWN}
    for position in range(len(plan.domains)):
        drawn = _written(plan, position) if plan.definition.source == "generated" else _drawn(plan, position, labels)
        for split, new in drawn.items():
            examples[split] += new
    return _task(plan, examples)


def _task(plan: _Plan, examples: dict[Split, list[Example]]) -> Task:
    definition = plan.definition
    examples = {
        split: [dataclasses.replace(example, task=plan.index, row=row) for row, example in enumerate(drawn)]
        for split, drawn in examples.items()
    }
    return Task(
        index=plan.index,
        name=plan.task.name,
        train=tuple(examples["train"]),
        validation=tuple(examples["validation"]),
        test=tuple(examples["test"]),
        labels=prompts.label_names(definition),
        metrics={
            "standard": tuple(definition.metrics),
            **{release: tuple(names) for release, names in definition.released_metrics.items()},
        },
        max_new_tokens=definition.max_new_tokens,
        training=plan.task.training,
        importance=plan.task.importance,
    )


# Drawing ----------------------------------------------------------------------------------------------------


def _written(plan: _Plan, position: int) -> dict[Split, list[Example]]:
    """The examples of one domain from the grammar of the generated benchmark."""
    definition = plan.definition
    given = definition.labels or {}
    names = {raw: name for raw, name in given.items() if name is not None}
    if tuple(names) != reviews.LABELS or len(names) < len(given):
        raise ValueError(
            f"task.{plan.name}.labels must name every rating of the generated reviews: {', '.join(reviews.LABELS)}"
        )
    prompts.check_template(definition, plan.name, (), "the generated benchmark")
    drawn: dict[Split, list[Example]] = {}
    for split in DRAWN:
        share = plan.shares(split)[position]
        if share is None:
            raise ValueError(f"generated reviews have no end. Say how many: {plan.key(split)}=100")
        noise = definition.label_noise if split == "train" else 0.0
        written = reviews.generate(plan.domains[position], split, share, definition.balance, noise, plan.data_seed)
        drawn[split] = [
            dataclasses.replace(
                example, prompt=prompts.prompt(definition, {"text": example.prompt}), answer=names[example.answer]
            )
            for example in written
        ]
    return drawn


def _drawn(plan: _Plan, position: int, labels: Sequence[str]) -> dict[Split, list[Example]]:
    """The examples of one domain from files or hub splits, those that share one without overlap."""
    domain = plan.domains[position]
    places: dict[Split, str] = {}
    origins = _origins(plan)
    for split, origin in origins.items():
        local = plan.definition.source == "files"
        # Without {split} in its path a file is shared by all splits, whatever they are called.
        if local:
            places[split] = str(sources.local_path(plan.definition, plan.name, domain, origin, plan.variant))
        else:
            places[split] = origin
    rows: dict[str, list[sources.Row]] = {}
    taken: dict[str, set[int]] = {}
    drawn: dict[Split, list[Example]] = {}
    for split, place in places.items():
        shares = plan.shares(split)
        share = shares[position]
        if share == 0:
            continue
        if place not in rows:
            rows[place] = sources.read(plan.definition, plan.name, domain, origins[split], plan.variant)
            taken[place] = set()
        sharing = [other for other in places if places[other] == place and other != split and other not in drawn]
        if share is None and sharing:
            raise ValueError(
                f"{split} and {sharing[0]} of task {plan.task.name!r} share {place}, so that not all of it "
                f"can be {split}. Say how many: {plan.key(split)}=100"
            )
        source = f"{plan.data_seed}/{plan.task.name}/{domain}/{split}"
        free = [row for row in _shuffled(rows[place], source) if row.number not in taken[place]]
        if share is None:
            chosen = sorted(free, key=lambda row: row.number)
        else:
            # The label that gets one more follows that of the domain before, so that the task is balanced.
            before = sum(other or 0 for other in shares[:position])
            quotas = _quotas(share, before, labels) if plan.definition.balance else {"": share}
            chosen = _fill(quotas, free, plan, split, domain, place)
        if not chosen:
            raise ValueError(f"nothing is left in {place} for {plan.key(split)}. Type: {plan.key(split)}=0")
        taken[place].update(row.number for row in chosen)
        pictures = [
            find_picture(plan.definition, row.picture, f"row {row.number} of {place}")
            if plan.definition.picture
            else None
            for row in chosen
        ]
        drawn[split] = [
            Example(row.prompt, row.label, domain, picture) for row, picture in zip(chosen, pictures, strict=True)
        ]
    return drawn


def _shuffled(rows: Sequence[sources.Row], seed: str) -> list[sources.Row]:
    """In random order. Only `random()` is used: its numbers are the same in every version of Python."""
    generator = random.Random(seed)
    keys = [generator.random() for _ in rows]
    return [rows[i] for i in sorted(range(len(rows)), key=keys.__getitem__)]


def _quotas(share: int, before: int, labels: Sequence[str]) -> dict[str, int]:
    """`share` examples over the labels as equally as possible, the remainder from label `before` on."""
    quotas = {label: share // len(labels) for label in labels}
    for extra in range(share % len(labels)):
        quotas[labels[(before + extra) % len(labels)]] += 1
    return quotas


def _fill(
    quotas: dict[str, int], free: Sequence[sources.Row], plan: _Plan, split: Split, domain: str, place: str
) -> list[sources.Row]:
    """The first rows of `free` that fill the quota of each label; the label "" stands for any."""
    left = dict(quotas)
    chosen = []
    for row in free:
        label = row.label if plan.definition.balance else ""
        if left[label]:
            left[label] -= 1
            chosen.append(row)
    for label, lacking in left.items():
        if lacking:
            have = quotas[label] - lacking
            kind = f" with the label {label!r}" if label else ""
            fewer = have * len(quotas) * len(plan.domains)
            balance = f", or task.{plan.name}.balance=false" if label else ""
            limit = plan.definition.max_rows
            more = f", or more than task.{plan.name}.max_rows={limit}" if limit else ""
            raise ValueError(
                f"{plan.key(split)}={plan.counts[split]} needs {quotas[label]} examples{kind} of domain "
                f"{domain!r} in task {plan.task.name!r}, but {place} has {have} left. "
                f"Type: {plan.key(split)}={fewer}{balance}{more}"
            )
    return chosen
