"""Minimal pairs: of two sentences that differ in what makes one wrong, is the right one the more probable?

Warstadt et al. 2020, BLiMP, arXiv:1912.00582, and any other file of such pairs. No sentence is generated and no prompt
is read, so that an answer's form plays no part: what is measured is what the model knows of a language.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Any, NamedTuple

import torch

from cl_runner.config import Count
from cl_runner.data.example import Example
from cl_runner.data.places import nearest, typed
from cl_runner.data.readers import FORMS, file_records
from cl_runner.digests import read_text, write
from cl_runner.families.reading_text import TextReader
from cl_runner.families.tokens import example_losses
from cl_runner.git_lfs import is_pointer
from cl_runner.learner import Learner, longest_first
from cl_runner.needs import ProbePass
from cl_runner.probes.base import Probe, at_rest, positions_of
from cl_runner.probes.texts import written

PAIRS = "pairs.jsonl"
#: The number that is the mean over phenomena.
MEAN = "mean"
#: Characters of a token, about, where a plan has no tokenizer to ask.
CHARACTERS = 4


class Pair(NamedTuple):
    """Two sentences, and where they stand: its row in the file, from 1, its phenomenon."""

    row: int
    good: str
    bad: str
    phenomenon: str


@dataclass
class MinimalPairs(Probe):
    """Accuracy by phenomenon, in percent, and the mean over phenomena.

    A sentence's score is the sum of log p over all its tokens, the first one given the token that begins a text; of an
    encoder-decoder, whose encoder reads that token alone, those that the decoder writes. No token ends a sentence. A
    pair with equal scores counts half, as by guessing.
    """

    path: str | None
    good: str
    bad: str
    phenomenon: str | None
    limit: Count | None
    prefix: str
    batch_size: Count

    def check(self) -> None:
        """The file is there, and holds pairs."""
        assert self._pairs

    def passes(self, evaluated: Sequence[int]) -> Sequence[ProbePass]:
        """Both sentences of each pair are read; their tokens are guessed by their characters."""
        sentences = [sentence for pair in self._pairs for sentence in (pair.good, pair.bad)]
        tokens = 1 + round(mean(len(self.prefix + sentence) for sentence in sentences) / CHARACTERS)
        return [ProbePass("minimal pairs", len(sentences), tokens, 0, self.batch_size)]

    def prepare(self, learner: Learner, folder: Path) -> None:
        """The pairs that count from now on lie in the run's folder; each fits the model and can be told apart."""
        positions = positions_of(learner.model)
        relative = getattr(learner.model.config, "model_type", "") in ("t5", "mt5")
        rows, same = self._tokens(learner, self._pairs), 0
        begun = int(learner.family.kind != "seq2seq")  # the token before a text counts among its positions
        for pair, good, bad in zip(self._pairs, rows[::2], rows[1::2], strict=True):
            longest = max(len(good), len(bad)) + begun
            if not good or not bad:
                raise ValueError(
                    f"row {pair.row} of {self.path} has a sentence without a token to {learner.family.backbone.name}. "
                    "Leave it out of the file"
                )
            if positions is not None and longest > positions and not relative:
                raise ValueError(
                    f"row {pair.row} of {self.path} has a sentence of {longest} tokens, its beginning included, and "
                    f"{learner.family.backbone.name} reads {positions}. Leave such pairs out of the file"
                )
            same += good == bad
        if same:
            learner.warn(
                f"Note: {same} of the {len(self._pairs)} pairs of {self.path} are the same tokens twice to "
                f"{learner.family.backbone.name}; each counts as half right"
            )
        lines = [json.dumps(pair._asdict(), ensure_ascii=False) + "\n" for pair in self._pairs]
        write(folder / PAIRS, "".join(lines))

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """`mean`, then each phenomenon; scores_<after>.json keeps log p of both sentences of each pair, in nats."""
        pairs = [Pair(**json.loads(line)) for line in read_text(folder / PAIRS).split("\n")[:-1]]
        scores = self._scores(learner, pairs)
        kept = {"good": scores[::2], "bad": scores[1::2]}
        write(folder / f"scores_{after}.json", json.dumps(kept))
        right: dict[str, list[float]] = {pair.phenomenon: [] for pair in pairs}
        for pair, good, bad in zip(pairs, kept["good"], kept["bad"], strict=True):
            right[pair.phenomenon].append(100.0 if good > bad else 50.0 if good == bad else 0.0)
        found = {phenomenon: mean(each) for phenomenon, each in right.items()}
        return {MEAN: mean(found.values())} | (found if self.phenomenon is not None else {})

    @torch.no_grad()
    def _scores(self, learner: Learner, pairs: Sequence[Pair]) -> list[float]:
        """log p of the good and the bad sentence of each pair, in turn."""
        rows = self._tokens(learner, pairs)
        examples = [Example(sentence, "") for pair in pairs for sentence in (pair.good, pair.bad)]
        scores, done = [0.0] * len(rows), 0
        with at_rest(learner.model):
            for places in longest_first([len(row) for row in rows], self.batch_size):
                batch = written(learner, [rows[i] for i in places], [examples[i] for i in places])
                losses = example_losses(learner.forward(batch), batch["labels"], "sum")
                for place, loss in zip(places, losses.tolist(), strict=True):
                    scores[place] = -float(loss)
                done += len(places)
                learner.progress("minimal pairs", done, len(rows))
        return scores

    def _tokens(self, learner: Learner, pairs: Sequence[Pair]) -> list[list[int]]:
        """Ids of the good and the bad sentence of each pair, in turn."""
        reader = TextReader(learner.family.tokenizer, learner.family.backbone.special_tokens)
        return reader.ids([self.prefix + sentence for pair in pairs for sentence in (pair.good, pair.bad)])

    @functools.cached_property
    def _pairs(self) -> list[Pair]:
        """The pairs of the file that count.

        Raises:
            ValueError: there is none, or one that says nothing.
        """
        path = self._file()
        key = f"probe.{self.node}"
        if self.good == self.bad:
            raise ValueError(
                f"{key}.good and {key}.bad are one column, {self.good!r}. Type: {typed(f'{key}.bad', 'COLUMN')}"
            )
        pairs = [self._pair(path, row, record) for row, record in enumerate(file_records(path), start=1)]
        if not pairs:
            raise ValueError(f"{path} holds no pairs. Type: {key}.path=FILE")
        counts = Counter(pair.phenomenon for pair in pairs)
        if len(counts) == len(pairs) > 20:
            raise ValueError(
                f"the column {self.phenomenon!r} of {path} ({key}.phenomenon) has another value in each of its "
                f"{len(pairs)} rows, so that no accuracy can be told by it. Type: {key}.phenomenon=null (or a column "
                "whose values come again)"
            )
        if self.limit is None:
            return pairs
        seen: Counter[str] = Counter()
        chosen = []
        for pair in pairs:
            seen[pair.phenomenon] += 1
            if seen[pair.phenomenon] <= self.limit:
                chosen.append(pair)
        return chosen

    def _file(self) -> Path:
        """The file that is named."""
        key = f"probe.{self.node}.path"
        forms = " ".join(f".{form}" for form in FORMS)
        if self.path is None:
            raise ValueError(
                f"probe {self.node} needs a file of sentence pairs ({forms}, or .gz of these), such as those of BLiMP. "
                f"Type: {key}=FILE"
            )
        path = Path(self.path).expanduser()
        if not path.is_file():
            siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            raise ValueError(
                f"{key}={self.path} is no file.{nearest(path.name, siblings)} Name a file of pairs: {key}=FILE"
            )
        if is_pointer(path):
            raise ValueError(f"{path} is a pointer of Git LFS, not the data. Type: git lfs pull, in that folder")
        return path

    def _pair(self, path: Path, row: int, record: Mapping[str, Any]) -> Pair:
        """A row as a pair."""
        good, bad = (self._cell(path, row, record, option) for option in ("good", "bad"))
        if good.strip() == bad.strip():
            raise ValueError(f"row {row} of {path} has the same sentence twice: {good!r}. Leave it out, or write both")
        about = MEAN if self.phenomenon is None else self._cell(path, row, record, "phenomenon")
        if about == MEAN and self.phenomenon is not None:
            raise ValueError(
                f"row {row} of {path} is about {MEAN!r}, which is what the mean over all phenomena is called. "
                "Give it another name"
            )
        return Pair(row, good, bad, about)

    def _cell(self, path: Path, row: int, record: Mapping[str, Any], option: str) -> str:
        """What a row has in the column that an option names."""
        key, column = f"probe.{self.node}.{option}", str(getattr(self, option))
        if column not in record:
            raise ValueError(self._missing(path, row, list(record), key, column))
        value = record[column]
        if option == "phenomenon" and isinstance(value, int):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f"row {row} of {path} has no text as {column!r} ({key}), but {value!r}. {_REMEDY}")
        if not value.strip():
            raise ValueError(f"row {row} of {path} has nothing as {column!r} ({key}). {_REMEDY}")
        return value

    def _missing(self, path: Path, row: int, columns: Sequence[str], key: str, column: str) -> str:
        """What to say of a column that is not there."""
        others = {str(getattr(self, option)) for option in ("good", "bad", "phenomenon")} - {column}
        free = [name for name in columns if name not in others]
        close = next(_alike(column, free), None)
        where = f"{path} has no column {column!r}" if row == 1 else f"row {row} of {path} has no {column!r}"
        said = f"{where} ({key}); it has {', '.join(map(repr, columns)) or 'none'}."
        remedy = f"Type: {typed(key, close or 'COLUMN')}"
        if key.endswith(".phenomenon"):
            remedy += f" (or {key}=null)" if close else f", or {key}=null"
        return f"{said}{nearest(column, free)} {remedy}" if row == 1 else f"{said} {_REMEDY}"


_REMEDY = "Write it, or leave the row out"


def _alike(column: str, columns: Sequence[str]) -> Iterator[str]:
    """Columns that may be meant: those with the name in theirs, such as sentence_good, then the most similar."""
    yield from (name for name in columns if column.casefold() in name.casefold())
    yield from (name for name in columns if repr(name) in nearest(column, [name]))
