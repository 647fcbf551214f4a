"""Tasks: what the steps of a task order train and test on, drawn once, before any model is loaded."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cl_runner.config import ImportanceChange, StageChange, TaskDefinition, TaskOrder
from cl_runner.data import prompts, reviews, sources, vqa
from cl_runner.data.account import SplitAccount, TaskAccount, split_account, task_account
from cl_runner.data.example import Example
from cl_runner.data.examples import Drawn, Examples, Told, told_of
from cl_runner.data.kept_rows import Row, Rows
from cl_runner.data.labels import SCHEMA, check_keys, check_names
from cl_runner.data.order import DRAWN, Plan, Split, origins_of, plans_of
from cl_runner.data.pictures import find_picture
from cl_runner.sequences import Chained, View

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Task:
    """One step of a task order with all its examples."""

    index: int
    name: str
    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    labels: tuple[str, ...]  # this task's label names, in the order of its definition; empty: any text is an answer
    metrics: dict[str, tuple[str, ...]]  # "standard" or a release -> metrics, of which the first is the task's score
    max_new_tokens: int  # of a generated answer
    training: StageChange | None = None  # how it is trained otherwise than its stage says
    importance: ImportanceChange | None = None  # how its importance is measured otherwise than the run's
    account: TaskAccount | None = dataclasses.field(
        default=None, compare=False
    )  # what was read for it, if anything was

    @property
    def examples(self) -> Sequence[Example]:
        """Those of all its splits."""
        return Chained([self.train, self.validation, self.test])

    def scored_by(self, scoring: str) -> tuple[str, ...]:
        """The metrics of `evaluation.scoring`; a definition without that release is scored as usual."""
        return self.metrics.get(scoring, self.metrics["standard"])


def build_tasks(order: TaskOrder, definitions: dict[str, TaskDefinition]) -> list[Task]:
    """The tasks of an order: the same order and definitions give the same examples on every machine.

    No row of a source is in two splits of a task; what is drawn for a task does not depend on the others.

    Raises:
        ValueError: the first mistake in the order, its definitions or their data.
    """
    try:
        with _without_collector():
            tasks = [_build(plan) for plan in plans_of(order, definitions)]
    finally:
        vqa.forget()
    check_names(label_union(tasks), "two labels of this order")
    return tasks


@contextmanager
def _without_collector() -> Iterator[None]:
    """Rows hold no cycles, and the collector would go over all of them again and again: half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def outlines(order: TaskOrder, definitions: dict[str, TaskDefinition]) -> list[Task]:
    """The tasks of an order without their examples: nothing is read but the schemas of local files that name labels.

    Raises:
        ValueError: labels stand in a schema on the hub, which is not fetched.
    """
    plans = plans_of(order, definitions)
    for plan in plans:
        if plan.definition.labels == SCHEMA and plan.definition.source == "hub":
            raise ValueError(
                f"task.{plan.name}.labels={SCHEMA} takes the names from data on the hub, which are not fetched here. "
                f"Name them under task.{plan.name}.labels: 'VALUE': NAME"
            )
    return [_task(_named(plan), []) for plan in plans]


def label_union(tasks: Iterable[Task]) -> tuple[str, ...]:
    """All label names in the order of first appearance: the classes of a shared head."""
    return tuple(dict.fromkeys(label for task in tasks for label in task.labels))


def fingerprint(task: Task) -> str:
    """SHA-256 (hexadecimal) of everything in a task."""
    digest = hashlib.sha256(b"{")
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    rest = dataclasses.asdict(dataclasses.replace(task, train=(), validation=(), test=()), dict_factory=_content)
    for place, (name, value) in enumerate(rest.items()):  # as JSON of all of it would be, without having all of it
        digest.update(f"{',' if place else ''}{json.dumps(name)}:".encode())
        if name in splits:
            for row, example in enumerate(splits[name]):
                digest.update(b"," if row else b"[")
                digest.update(_written_out(_example_content(example)))
            digest.update(b"]" if splits[name] else b"[]")
        else:
            digest.update(_written_out(value))
    digest.update(b"}")
    return digest.hexdigest()


def _written_out(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _example_content(example: Example) -> dict[str, Any]:
    """As `_content` has it."""
    found: dict[str, Any] = {"prompt": example.prompt, "answer": example.answer, "domain": example.domain}
    for name, part in (("picture", example.picture), ("chat", example.chat)):
        if part is not None:
            found[name] = dataclasses.asdict(part, dict_factory=_content)
    return found


def _content(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Without what is not there, where pictures lie on this machine, and the places that follow from the order."""
    left_out = ("path", "task", "row", "recital", "training", "importance", "account")
    empty = (("picture", None), ("chat", None))
    return {name: value for name, value in fields if name not in left_out and (name, value) not in empty}


def source_files(order: TaskOrder, definitions: dict[str, TaskDefinition]) -> list[Path]:
    """The local files that `build_tasks` reads, sorted; none for generated and hub sources."""
    paths = set()
    for plan in plans_of(order, definitions):
        if plan.definition.source == "files":
            for split, origin in origins_of(plan).items():
                for domain, share in zip(plan.domains, plan.shares(split), strict=True):
                    if share != 0:
                        paths.update(sources.found_files(plan.definition, plan.name, domain, origin, plan.variant))
    return sorted(paths)


def _build(plan: Plan) -> Task:
    plan = _named(plan)
    definition = plan.definition
    labels = prompts.label_names(definition)
    if definition.labels is not None and not labels:
        raise ValueError(f"task.{plan.name} has no labels. Add under task.{plan.name}.labels: 'VALUE': NAME")
    check_names(labels, f"two labels of task.{plan.name}")
    if isinstance(definition.labels, dict):
        check_keys(definition.labels, f"task.{plan.name}.labels")
    drawn = [
        _written(plan, position) if plan.definition.source == "generated" else _drawn(plan, position, labels)
        for position in range(len(plan.domains))
    ]
    return _task(plan, drawn)


def _named(plan: Plan) -> Plan:
    """With the labels that the schema of its sources names, if they stand there, the same for all its domains."""
    if plan.definition.labels != SCHEMA:
        return plan
    found: dict[str, dict[str, str | None]] = {}
    for origin in dict.fromkeys(origins_of(plan).values()):
        for domain in plan.domains:
            labels = sources.schema_labels(plan.definition, plan.name, domain, origin, plan.variant)
            found[f"{domain} ({origin})"] = labels
    first = next(iter(found))
    for other, labels in found.items():
        if labels != found[first]:
            raise ValueError(
                f"task.{plan.name}.labels={SCHEMA}: the schemas of {first} and {other} name other labels. "
                f"Name them under task.{plan.name}.labels: 'VALUE': NAME"
            )
    return dataclasses.replace(plan, definition=plan.definition.model_copy(update={"labels": found[first]}))


def _task(plan: Plan, drawn: Sequence[Mapping[Split, _Part]]) -> Task:
    definition = plan.definition
    labels = prompts.label_names(definition)
    examples: dict[str, Sequence[Example]] = {}
    accounts: dict[str, SplitAccount] = {}
    told: dict[str, Told] = {}
    for split in DRAWN:
        parts = [part[split] for part in drawn if split in part]
        found = Examples([part.drawn for part in parts], plan.index)
        # What is generated lies in memory anyway.
        examples[split] = tuple(found) if definition.source == "generated" else found
        told[split] = told_of(examples[split], labels)
        accounts[split] = split_account(
            files=dict.fromkeys(file for part in parts for file in part.files),
            rows=sum(part.rows for part in parts),
            left_out=sum((part.left_out for part in parts), Counter()),
            notes=sum((part.notes for part in parts), Counter()),
            told=told[split],
            labels=labels,
        )
    return Task(
        index=plan.index,
        name=plan.task.name,
        train=examples["train"],
        validation=examples["validation"],
        test=examples["test"],
        labels=labels,
        metrics={
            "standard": tuple(definition.metrics),
            **{release: tuple(names) for release, names in definition.released_metrics.items()},
        },
        max_new_tokens=definition.max_new_tokens,
        training=plan.task.training,
        importance=plan.task.importance,
        account=task_account({split: accounts[split] for split in reversed(DRAWN)}, told) if drawn else None,
    )


# Drawing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """What one domain gives to a split, and what was read for it."""

    drawn: Drawn
    files: Sequence[str]
    rows: int
    left_out: Counter[str]
    notes: Counter[str]


def _written(plan: Plan, position: int) -> dict[Split, _Part]:
    """The examples of one domain from the grammar of the generated benchmark."""
    definition = plan.definition
    given = definition.labels if isinstance(definition.labels, dict) else {}
    names = {raw: name for raw, name in given.items() if name is not None}
    ratings = reviews.RATINGS[definition.grammar]
    if tuple(names) != ratings or not set(given) <= set(reviews.LABELS):
        apart = [rating for rating in reviews.LABELS if (rating in names) != (rating in ratings)]
        typed = ", ".join(f"{rating}: {rating if rating in ratings else 'null'}" for rating in apart)
        raise ValueError(
            f"task.{plan.name}.labels must name every rating of the generated reviews with task.{plan.name}.grammar="
            f"{definition.grammar}: {', '.join(ratings)}"
            + (f". Type: 'task.{plan.name}.labels={{{typed}}}'" if typed else "")
        )
    prompts.check_template(definition, plan.name, (), "the generated benchmark")
    drawn: dict[Split, _Part] = {}
    for split in DRAWN:
        share = plan.shares(split)[position]
        if share is None:
            raise ValueError(f"generated reviews have no end. Say how many: {plan.key(split)}=100")
        noise = definition.label_noise if split == "train" else 0.0
        written = reviews.generate(
            plan.domains[position], split, share, definition.balance, noise, plan.data_seed, definition.grammar
        )
        rows = [
            Row("", row, prompts.prompt(definition, {"text": example.prompt}), names[example.answer])
            for row, example in enumerate(written, start=1)
        ]
        drawn[split] = _Part(Drawn(rows, plan.domains[position]), (), len(rows), Counter(), Counter())
    return drawn


def _drawn(plan: Plan, position: int, labels: Sequence[str]) -> dict[Split, _Part]:
    """The examples of one domain from files or hub splits, those that share one without overlap."""
    domain = plan.domains[position]
    places: dict[Split, str] = {}
    origins = origins_of(plan)
    for split, origin in origins.items():
        # Without {split} in its path a file is shared by all splits, whatever they are called, unless it holds several.
        if plan.definition.source == "files":
            files = sources.local_paths(plan.definition, plan.name, domain, origin, plan.variant)
            inside = f" ({origin})" if files[0].is_dir() or plan.definition.convert == sources.JOINED else ""
            places[split] = " and ".join(map(str, files)) + inside
        else:
            places[split] = origin
    read: dict[str, sources.Source] = {}
    taken: dict[str, dict[Split, Indices]] = {}
    drawn: dict[Split, Drawn] = {}
    for split, place in places.items():
        shares = plan.shares(split)
        share = shares[position]
        if share == 0:
            continue
        if place not in read:
            read[place] = sources.read(plan.definition, plan.name, domain, origins[split], plan.variant, plan.data_seed)
            taken[place] = {}
        sharing = [other for other in places if places[other] == place and other != split and other not in drawn]
        if share is None and sharing:
            raise ValueError(
                f"{split} and {sharing[0]} of task {plan.task.name!r} share {place}, so that not all of it "
                f"can be {split}. Say how many: {plan.key(split)}=100"
            )
        source = f"{plan.data_seed}/{plan.task.name}/{domain}/{split}"
        rows = read[place].rows
        free = _shuffled(len(rows), source)
        if taken[place]:
            units = np.frombuffer(rows.units, np.int64)
            free = free[~np.isin(units[free], units[np.concatenate(list(taken[place].values()))])]
        if share is None:
            chosen = np.sort(free)
        else:
            # The label that gets one more follows that of the domain before, so that the task is balanced.
            before = sum(other or 0 for other in shares[:position])
            quotas = _quotas(share, before, labels) if plan.definition.balance else {"": share}
            chosen = _fill(quotas, free, rows, plan, split, domain, place)
        if not len(chosen):
            raise ValueError(f"nothing is left in {place} for {plan.key(split)}. Type: {plan.key(split)}=0")
        taken[place][split] = chosen
        view = View(rows, chosen)
        pictures = [
            find_picture(plan.definition, row.picture, f"row {row.row} of {row.place}")
            for row in (view if plan.definition.picture else ())
        ]
        drawn[split] = Drawn(view, domain, pictures)
    return {split: _part(drawn[split], read[places[split]], taken[places[split]], split) for split in drawn}


def _part(drawn: Drawn, source: sources.Source, taken: Mapping[Split, Indices], split: Split) -> _Part:
    """What a split got of a source, and why not the rest."""
    elsewhere = sum(len(rows) for other, rows in taken.items() if other != split)
    rest = {"in another split": elsewhere, "not drawn": len(source.rows) - len(drawn.rows) - elsewhere}
    return _Part(drawn, source.files, source.count, source.left_out + Counter(rest), source.notes)


def _shuffled(rows: int, seed: str) -> Indices:
    """Places in random order. Only `random()` is used: its numbers are the same in every version of Python."""
    generator = random.Random(seed)
    keys = np.fromiter((generator.random() for _ in range(rows)), np.float64, rows)
    return np.argsort(keys, kind="stable")


def _quotas(share: int, before: int, labels: Sequence[str]) -> dict[str, int]:
    """`share` examples over the labels as equally as possible, the remainder from label `before` on."""
    quotas = {label: share // len(labels) for label in labels}
    for extra in range(share % len(labels)):
        quotas[labels[(before + extra) % len(labels)]] += 1
    return quotas


def _fill(
    quotas: dict[str, int], free: Indices, rows: Rows, plan: Plan, split: Split, domain: str, place: str
) -> Indices:
    """The first rows of `free` that fill the quota of each label; the label "" stands for any."""
    left = dict(quotas)
    names = list(quotas)
    chosen: list[int] = []
    wanted = sum(quotas.values())
    for row in map(int, free):
        if len(chosen) == wanted:
            break
        label = names[rows.labels[row]] if plan.definition.balance else ""
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
    return np.array(chosen, np.int64)
