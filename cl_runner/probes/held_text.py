"""The loss on a held text: what the model could write before it learned the tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from cl_runner.batch import Batch
from cl_runner.config import Count, Positive, Sampling
from cl_runner.data.example import Example
from cl_runner.data.places import nearest
from cl_runner.data.readers import FORMS, file_records
from cl_runner.digests import read_text, write
from cl_runner.families.base import Answering, Family
from cl_runner.families.reading_text import TextReader
from cl_runner.learner import Learner
from cl_runner.needs import ProbePass
from cl_runner.probes.base import Probe, at_rest, positions_of
from cl_runner.probes.texts import beginning, rows, written
from cl_runner.read_if import ReadIf

#: Texts that the model writes at once. Their number enters what chance writes, so that it is no option.
WRITTEN_AT_ONCE = 16
TEXTS = "text.jsonl"


@dataclass
class HeldText(Probe):
    """Mean of -log p per token, in nats, and its exponential. The text is the same after every task.

    A decoder is given the token that begins a text, and every token of it counts. An encoder-decoder reads the first
    half of a text, up to a space, and the tokens of the second half and the end count.
    """

    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats per token"
    path: str | None
    column: str
    texts: Count
    tokens: Annotated[int, Field(ge=2)]
    temperature: Annotated[Positive, ReadIf("path", (None,))]
    batch_size: Count

    def check(self) -> None:
        """The file is there."""
        if self.path is not None and not Path(self.path).expanduser().is_file():
            raise ValueError(
                f"probe.{self.node}.path={self.path} is no file. Name a text, or a table whose column "
                f"{self.column!r} holds texts, or let the model write one: probe.{self.node}.path=null"
            )

    def prepare(self, learner: Learner, folder: Path) -> None:
        """Read the text, or let the untouched model write it; from now on it lies in the run's folder."""
        positions = positions_of(learner.model)
        if learner.family.kind != "seq2seq" and positions is not None and self.tokens >= positions:
            raise ValueError(
                f"{learner.family.backbone.name} reads {positions} tokens, the text's beginning included. "
                f"Type: probe.{self.node}.tokens={positions - 1}"
            )
        if self.path is None:
            with at_rest(learner.model):
                texts = self._written(learner)
        else:
            texts = self._read(learner.family, Path(self.path).expanduser())
        write(folder / TEXTS, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))

    def _written(self, learner: Learner) -> list[str]:
        """What the model says unasked."""
        tokenizer = learner.family.tokenizer
        if learner.family.kind != "seq2seq":
            start = [beginning(tokenizer)]
        else:
            start = tokenizer("")["input_ids"] or [tokenizer.eos_token_id]
        how = Answering(self.tokens, sampling=Sampling(temperature=self.temperature, top_k=None, top_p=None), raw=True)
        texts: list[str] = []
        for first in range(0, self.texts, WRITTEN_AT_ONCE):
            torch.manual_seed(learner.seed_of("probe", self.node, first))
            batch = rows(learner, start, min(WRITTEN_AT_ONCE, self.texts - first))
            texts += [answer.text for answer in learner.answer(batch, how)]
            learner.progress("write text", len(texts), self.texts)
        said = [text for text in texts if text.strip()]
        if not said:
            raise ValueError(
                f"{learner.family.backbone.name} wrote nothing. Give it a text: probe.{self.node}.path=FILE"
            )
        return said

    def _read(self, family: Family, path: Path) -> list[str]:
        """The first texts of a table, or so many pieces of another file."""
        if path.name.removesuffix(".gz").endswith(tuple(f".{form}" for form in FORMS)):
            found = [str(self._cell(path, record) or "") for record in file_records(path)]
            texts = [text for text in found if text.strip()]
        else:
            text = path.read_text(encoding="utf-8")
            tokenizer = family.tokenizer
            [ids] = TextReader(tokenizer, family.backbone.special_tokens).ids([text])
            whole = range(0, len(ids) - self.tokens + 1, self.tokens)
            pieces = [ids[start : start + self.tokens] for start in whole[: self.texts]]
            texts = tokenizer.batch_decode(pieces, clean_up_tokenization_spaces=False) if pieces else []
        if len(texts) < self.texts:
            raise ValueError(
                f"{path} holds {len(texts)} texts of {self.tokens} tokens. "
                f"Type: probe.{self.node}.texts={max(1, len(texts))}, or a smaller probe.{self.node}.tokens"
            )
        return texts[: self.texts]

    def _cell(self, path: Path, record: Mapping[str, Any]) -> Any:
        """What a row has in the column of texts."""
        if self.column not in record:
            raise ValueError(
                f"{path} has a row without {self.column!r}, but with {', '.join(map(repr, record)) or 'nothing'}."
                f"{nearest(self.column, record)} Type: probe.{self.node}.column=COLUMN"
            )
        return record[self.column]

    def passes(self, evaluated: Sequence[int]) -> Sequence[ProbePass]:
        """The text is read, and written once where there is no file."""
        written = ProbePass("write text", self.texts, 1, self.tokens, WRITTEN_AT_ONCE, once=True)
        read = ProbePass("held text", self.texts, self.tokens, 0, self.batch_size)
        return [read] if self.path is not None else [written, read]

    def names(self) -> Sequence[str]:
        """Two names for one thing."""
        return ("loss", "perplexity")

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """`loss` in nats per token and `perplexity`, its exponential."""
        texts = [str(json.loads(line)["text"]) for line in read_text(folder / TEXTS).split("\n")[:-1]]
        total, count, done = 0.0, 0, 0
        with at_rest(learner.model):
            for batch in self._batches(learner, texts):
                output = learner.forward(batch)
                total += float(output.loss) * len(output.targets)
                count += len(output.targets)
                done += len(batch["labels"])
                learner.progress("held text", done, len(texts))
        loss = total / count
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # beyond that a float is infinite

    def _batches(self, learner: Learner, texts: Sequence[str]) -> Iterator[Batch]:
        if learner.family.kind == "seq2seq":
            halves = [halved(text) for text in texts]
            yield from learner.sorted_batches([Example(first, second) for first, second in halves], self.batch_size)
            return
        ids = TextReader(learner.family.tokenizer, learner.family.backbone.special_tokens).ids(texts)
        cut = sorted((row[: self.tokens] for row in ids), key=len, reverse=True)
        for first in range(0, len(cut), self.batch_size):
            yield written(learner, cut[first : first + self.batch_size])


def halved(text: str) -> tuple[str, str]:
    """A text in two, at the last space of its first half if there is one."""
    middle = len(text) // 2
    space = text.rfind(" ", 1, middle + 1)
    cut = space if space > 0 else middle
    return text[:cut], text[cut:]
