"""What was read for a task, and what of it is used: said before training, kept in data.json, shown in the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_runner.data.examples import Told
from cl_runner.text_hashes import shared

#: Labels that a line of the console counts one by one.
_COUNTED = 6
#: Why rows are left out without anything being wrong: that is what was asked for.
AS_ASKED = ("over max_rows", "in another split", "not drawn")


@dataclass(frozen=True)
class SplitAccount:
    """One split of a task: the rows of its files are those used and those left out.

    Attributes:
        files: that were read, in order.
        rows: that they hold.
        used: examples of the split.
        left_out: rows, by the reason.
        labels: examples of each label; None if any text is an answer.
        notes: what else is worth knowing, counted.
    """

    files: tuple[str, ...]
    rows: int
    used: int
    left_out: Mapping[str, int]
    labels: Mapping[str, int] | None
    notes: Mapping[str, int]


@dataclass(frozen=True)
class TaskAccount:
    """One task: its splits, and what lies between them.

    Attributes:
        splits: those that have examples, by our names.
        notes: what is worth knowing of all of them, counted.
        classes: what is worth knowing -> labels.
    """

    splits: Mapping[str, SplitAccount]
    notes: Mapping[str, int]
    classes: Mapping[str, Sequence[str]]

    def with_notes(self, found: Mapping[str, Mapping[str, int]]) -> TaskAccount:
        """The same account with further counts, by split."""
        splits = {
            split: dataclasses.replace(account, notes={**account.notes, **found.get(split, {})})
            for split, account in self.splits.items()
        }
        return dataclasses.replace(self, splits=splits)

    def content(self) -> dict[str, Any]:
        """As data.json has it."""
        return dataclasses.asdict(self)


def split_account(
    files: Iterable[str],
    rows: int,
    left_out: Mapping[str, int],
    notes: Mapping[str, int],
    told: Told,
    labels: Sequence[str],
) -> SplitAccount:
    """What was read for a split, and its examples counted."""
    found = dict(notes) | {
        "repeated texts": told.repeated,
        "repeated texts with another answer": told.contradictory,
    }
    return SplitAccount(
        files=tuple(files),
        rows=rows,
        used=len(told.asked),
        left_out={reason: count for reason, count in left_out.items() if count},
        labels={label: told.answers[label] for label in labels} if labels else None,
        notes={note: count for note, count in found.items() if count},
    )


def task_account(splits: Mapping[str, SplitAccount], told: Mapping[str, Told]) -> TaskAccount:
    """The account of a task: its splits, those without examples left out, and what is in more than one of them."""
    splits = {split: account for split, account in splits.items() if account.used}
    notes = {}
    for split in ("validation", "test"):
        both = shared(told["train"].asked, told[split].asked) if {"train", split} <= splits.keys() else 0
        if both:
            notes[f"texts of {split} that are also in train"] = both
    classes: dict[str, list[str]] = {}
    counted = {split: account.labels for split, account in splits.items() if account.labels is not None}
    train, test = counted.get("train"), counted.get("test")
    if train is not None and test is not None:
        kinds = {
            "labels in train alone": [label for label in train if train[label] and not test[label]],
            "labels in test alone": [label for label in train if test[label] and not train[label]],
            "labels without an example": [label for label in train if not train[label] and not test[label]],
        }
        classes = {kind: labels for kind, labels in kinds.items() if labels}
    return TaskAccount(splits, notes, classes)


def said(name: str, account: TaskAccount) -> list[str]:
    """Lines for the console: one of a task, and one more for everything that may not be meant."""
    parts = []
    for split, one in account.splits.items():
        parts.append(f"{one.used:,} {split}" if one.used == one.rows else f"{one.used:,} of {one.rows:,} rows {split}")
    lines = [f"data of {name}: {', '.join(parts)}{_classes_said(account)}"]
    for split, one in account.splits.items():
        odd = {reason: count for reason, count in one.left_out.items() if reason not in AS_ASKED}
        if odd:
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in odd.items())
            lines.append(f"data of {name}, {split}: {sum(odd.values()):,} of {one.rows:,} rows left out: {reasons}")
        lines += [f"data of {name}, {split}: {note}: {count:,}" for note, count in one.notes.items()]
    lines += [f"data of {name}: {note}: {count:,}" for note, count in account.notes.items()]
    lines += [f"data of {name}: {kind}: {', '.join(map(repr, labels))}" for kind, labels in account.classes.items()]
    return lines


def _classes_said(account: TaskAccount) -> str:
    """Examples of each label, train + test, or how many there are of the rarest and of the most frequent one."""
    counted = {split: one.labels for split, one in account.splits.items() if one.labels is not None}
    shown = [split for split in ("train", "test") if split in counted]
    if not shown:
        return ""
    labels = list(next(iter(counted.values())))
    if len(labels) <= _COUNTED:
        each = (f"{label} {' + '.join(f'{counted[split][label]:,}' for split in shown)}" for label in labels)
        return f"; {', '.join(each)}"
    spans = (f"{min(counted[split].values()):,} to {max(counted[split].values()):,} in {split}" for split in shown)
    return f"; {len(labels)} labels, each {' and '.join(spans)}"
