"""The examples of a task as a sequence that reads a row when it is asked for, and what can be told of all of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cl_runner.data.example import Example, Picture
from cl_runner.data.kept_rows import Row
from cl_runner.sequences import Chained, Lazy
from cl_runner.text_hashes import Hashes, first_places, hashes, text_hash


@dataclass(frozen=True)
class Drawn:
    """What one domain gives to a split.

    Attributes:
        rows: drawn, in their order.
        pictures: of each row; empty if none has one.
    """

    rows: Sequence[Row]
    domain: str
    pictures: Sequence[Picture] = ()


class Examples(Lazy[Example]):
    """The examples of one split: those of each domain after those of the one before.

    Args:
        task: its index.
    """

    def __init__(self, parts: Sequence[Drawn], task: int) -> None:
        self._parts, self._task = parts, task
        self._rows = Chained([part.rows for part in parts])

    def __len__(self) -> int:
        return len(self._rows)

    def made(self, place: int) -> Example:
        """The example at a place, which is its row."""
        number, own = self._rows.located(place)
        part = self._parts[number]
        row = part.rows[own]
        picture = part.pictures[own] if part.pictures else None
        return Example(row.prompt, row.label, part.domain, picture, self._task, place, chat=row.chat)


def content_hash(examples: Sequence[Example]) -> str:
    """SHA-256 (hexadecimal) of what examples hold: as of their JSON, which is never there as a whole."""
    digest = hashlib.sha256(b"[")
    for row, example in enumerate(examples):
        digest.update(f"{', ' if row else ''}{json.dumps(example.content())}".encode())
    digest.update(b"]")
    return digest.hexdigest()


@dataclass(frozen=True)
class Told:
    """What one pass over examples tells of them.

    Attributes:
        answers: how often each label is the answer; empty if any text is one.
        asked: hashes of what is asked, [examples, 2].
        repeated: examples that ask what another one has asked before.
        contradictory: different answers to what is asked more than once, but for the first; 0 if any text is one.
    """

    answers: Counter[str]
    asked: Hashes
    repeated: int
    contradictory: int


def told_of(examples: Sequence[Example], labels: Sequence[str]) -> Told:
    """What one pass tells."""
    answers: Counter[str] = Counter()
    asked, given = bytearray(), bytearray()
    for example in examples:
        own = text_hash(*((example.asked,) if isinstance(example.asked, str) else example.asked))
        asked += own
        if labels:
            answers[example.answer] += 1
            given += text_hash(own.hex(), example.answer)
    what = hashes([bytes(asked)])
    seen = len(first_places(what))
    contradictory = len(first_places(hashes([bytes(given)]))) - seen if labels else 0
    return Told(answers, what, len(examples) - seen, contradictory)
