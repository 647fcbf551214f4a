"""From text to token ids: special tokens, truncation that says what it keeps, chat templates, a cache by content."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from cl_runner.config import Backbone
from cl_runner.families.reading_text import TextReader
from cl_runner.families.rows import Flat, Note, Rows, parts
from cl_runner.sequences import View
from cl_runner.tensor_files import read_cached, write_tensors
from cl_runner.text_hashes import first_places, hashes, text_hash

#: Of the kept files; changes when they hold something else.
FORMAT = 4
#: What is said of texts
_SPECIAL = "with special tokens in them"
#: Different texts, and answers, whose ids are in one file of the cache.
SHARD = 2**15
#: Stands for a user's words in a chat template.
MARK = "§words§"


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a tokenizer's rules and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(rules.encode()).hexdigest()


class Recited(NamedTuple):
    """An example that is written as a whole."""

    text: str
    between: str
    answer: str


class Encoding:
    """Token ids of texts and answers by one backbone's rules; each text is encoded once.

    Args:
        ends: the token that ends an answer; None = classifiers and prompts only.
        open_end: whether a prompt goes on with its answer, so that an end token which the tokenizer appends goes.
        words: prompts that a template made -> the user's words in them; None = a prompt is a user's words alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        ends: int | None = None,
        open_end: bool = False,
        words: Mapping[str, str] | None = None,
    ):
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._ends = ends
        self._words = words
        self._apart = backbone.training_length == "apart"
        self._sum = backbone.max_length + (backbone.max_answer_length or 0)
        self.reader = TextReader(tokenizer, backbone.special_tokens)
        self._prompts = Rows()  # as long as any pass reads them
        self._answers = Rows()
        self._alone: dict[str, list[int]] = {}  # texts without what stands around them, however long
        self._texts: dict[bytes, str] = {}
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
        start = next((i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare), None)
        if start is None:
            raise ValueError(
                f"backbone {backbone.name}: its tokenizer reads 'a' as {bare} alone and as {whole} with special tokens "
                "around it, so that it cannot be seen where these stand. Give the model's own tokenizer"
            )
        self._before, self._after = whole[:start], whole[start + len(bare) :]
        if open_end:
            self._after = [i for i in self._after if i != ends]
        if backbone.chat_template:
            self._sides = self._template_sides()
            self._before, self._after = (self._ids(side) for side in self._sides)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text with its special tokens, at most `backbone.max_length`."""
        return [self._shortened(row, self._backbone.max_length) for row in self._longest(texts)]

    def followed(self, texts: Sequence[str], more: Sequence[str]) -> list[list[int]]:
        """The same with another text after the words of each, of which nothing is cut."""
        end, rows = len(self._after), []
        for text, row, ids in zip(texts, self.prompts(texts), self.reader.ids(list(more)), strict=True):
            if row[len(row) - end :] != self._after:  # template and text made other tokens than they do apart
                room = self._backbone.max_length - len(self._before) - end
                row = [*self._before, *self._cut(self.reader.ids([text])[0], room), *self._after]
            rows.append([*row[: len(row) - end], *ids, *self._after])
        return rows

    def before(self, texts: Sequence[str], answers: Sequence[Sequence[int]]) -> list[list[int]]:
        """Ids of each text as it stands before its answer in training, at most as `backbone.training_length` says."""
        limits = self._limits([len(answer) for answer in answers])
        return [self._shortened(row, limit) for row, limit in zip(self._longest(texts), limits, strict=True)]

    def _limits(self, answers: Sequence[int]) -> list[int]:
        """Tokens of a text in training at most, before each of answers with so many tokens."""
        if self._backbone.training_length == "together":
            return [self._sum - length for length in answers]
        return [self._backbone.max_length if self._apart else self._sum] * len(answers)

    def _shortened(self, row: list[int], limit: int) -> list[int]:
        if len(row) <= limit:
            return row
        start, end = len(self._before), len(row) - len(self._after)
        return [*self._before, *self._cut(row[start:end], limit - start - len(self._after)), *self._after]

    def _longest(self, texts: Sequence[str]) -> list[list[int]]:
        self._know_prompts(texts)
        return [self._prompts[text] for text in texts]

    def _know_prompts(self, texts: Sequence[str]) -> None:
        for missing in parts(list(dict.fromkeys(text for text in texts if text not in self._prompts))):
            for text, (row, note) in zip(missing, self._encode_prompts(missing), strict=True):
                self._prompts.add(text, row, note)

    def prompt_of(self, ids: Sequence[int]) -> str:
        """A text that was encoded as these ids: the whole of it, also where the ids are cut.

        Of ids that are no text's, as a method may put tokens before it, what they spell.
        """
        key = _key_of(ids)
        if key not in self._texts:
            limit = self._backbone.max_length
            self._texts = {_key_of(self._shortened(self._prompts[text], limit)): text for text in self._prompts}
        known = self._texts.get(key)
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)) if known is None else known

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each answer, the end token included; of an answer that is cut the end token goes as well."""
        self._know_answers(texts)
        return [self._answers[text] for text in texts]

    def _know_answers(self, texts: Sequence[str]) -> None:
        for missing in parts(list(dict.fromkeys(text for text in texts if text not in self._answers))):
            assert self._ends is not None and self._backbone.max_answer_length is not None
            limit = self.answer_limit()
            for text, row in zip(missing, self.reader.ids(missing), strict=True):
                note = Note(len(row) + 1, self.reader.found(text) is not None)
                self._answers.add(text, [*row, self._ends][:limit], note)

    def alone(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without what stands around it, however long it is."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._alone))
        if missing:
            self._alone.update(zip(missing, self.reader.ids(missing), strict=True))
        return [self._alone[text] for text in texts]

    def recited(self, starts: Sequence[str], rows: Sequence[Recited], most: int | None = None) -> list[list[int]]:
        """Ids of examples that are written as a whole, the end token included; the text is cut where it must be.

        Args:
            starts: what is read before each.
            most: tokens that may be written; None = as many as fit beside `starts` into prompt and answer.
        """
        found = []
        around = len(self._before) + len(self._after)
        texts, betweens = self.alone([row.text for row in rows]), self.alone([row.between for row in rows])
        firsts, answers = self.prompts(starts), self.answers([row.answer for row in rows])
        for text, between, first, answer in zip(texts, betweens, firsts, answers, strict=True):
            limit = self._sum - len(first) if most is None else min(most, self._sum - len(first))
            room = min(self._backbone.max_length - around, limit - len(between) - len(answer))
            found.append([*self._cut(text, max(0, room)), *between, *answer])
        return found

    def answer_limit(self) -> int:
        """Tokens of an answer in training at most, its end included."""
        if self._apart:
            return self._backbone.max_answer_length or 0
        # Of a prompt that its answer pushes out one token stays, after which the answer begins.
        kept = len(self._before) + len(self._after) + 1 if self._backbone.training_length == "together" else 0
        return self._sum - kept

    def noted(self, prompts: Sequence[str], answers: Sequence[str], training: bool = True) -> dict[str, int]:
        """What is worth knowing of these texts and answers -> how many of them.

        Args:
            training: whether texts are as long as in training, or as where they are answered.
        """
        longest = f"at {self._backbone.max_length} tokens"
        cut = training and bool(answers) and not self._apart
        if cut:
            together = self._backbone.training_length == "together"
            longest = f"to {self._sum} tokens with their answers" if together else f"at {self._sum} tokens"
        how = "letters" if self._backbone.special_tokens == "text" else "tokens"
        kinds = (("texts", longest), ("answers", f"at {self.answer_limit()} tokens"))
        names = [name for what, at in kinds for name in (f"{what} cut {at}", f"{what} {_SPECIAL}, read as {how}")]
        found = dict.fromkeys(names, 0)
        for some, ends in zip_longest(parts(prompts), parts(answers), fillvalue=()):
            self._know_prompts(some)
            self._know_answers(ends)
            limits = [self._backbone.max_length] * len(some)
            if cut:
                limits = self._limits([self._answers.length(answer) for answer in ends])
            of_prompts = [self._prompts.note(text) for text in some]
            of_ends = [self._answers.note(answer) for answer in ends]
            for at, (most, notes) in enumerate(((limits, of_prompts), ([self.answer_limit()] * len(ends), of_ends))):
                found[names[2 * at]] += sum(n.tokens > limit for n, limit in zip(notes, most, strict=True))
                found[names[2 * at + 1]] += sum(note.special for note in notes)
        return {note: count for note, count in found.items() if count}

    def _encode_prompts(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Note]]:
        around = len(self._before) + len(self._after)
        room = (self._backbone.max_length if self._apart else self._sum) - around
        ids = self.reader.ids(texts) if self._words is None else self._framed(texts)
        notes = []
        for text, row in zip(texts, ids, strict=True):
            special = self.reader.found(text if self._words is None else self._words[text])
            notes.append(Note(len(row) + around, special is not None))
        if not self._backbone.chat_template:
            return zip(([*self._before, *self._cut(row, room), *self._after] for row in ids), notes, strict=True)
        left, right = self._sides
        # Side by side template and text may make other tokens than apart; where the text is cut, the template stays.
        whole = self._tokenizer([left + text + right for text in texts], add_special_tokens=False, verbose=False)
        rows = []
        for text, row, alone in zip(texts, whole["input_ids"], ids, strict=True):
            fits = len(row) <= self._backbone.max_length and not self.reader.apart(text)
            rows.append(row if fits else [*self._before, *self._cut(alone, room), *self._after])
        return zip(rows, notes, strict=True)

    def _framed(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts that a template made: its special tokens are read, those of the user's words by the rule."""
        assert self._words is not None
        rows: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        for place, text in enumerate(texts):
            words = self._words[text]
            if self.reader.apart(words):
                left, found, right = text.partition(words)
                if not found:
                    raise ValueError(f"the chat template of {self._backbone.name} changes a user's words: {words!r}")
                rows[place] = [*self._ids(left), *self.reader.ids([words])[0], *self._ids(right)]
        return rows

    def _template_sides(self) -> tuple[str, str]:
        """What the chat template writes before and after a user's words.

        Raises:
            ValueError: the tokenizer has no template, one that changes the words, or one longer than `max_length`.
        """
        name = self._backbone.name
        if not self._apart:
            raise ValueError(
                f"backbone.training_length={self._backbone.training_length} is for prompts as they are, without a chat "
                "template. Type: backbone.chat_template=false (or backbone.training_length=apart)"
            )
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"backbone {name} has no chat template. Type: backbone.chat_template=false (and for chats "
                "task.NAME.convert=messages: their turns as plain text)"
            )
        turn = [{"role": "user", "content": MARK}]
        written = str(self._tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
        if written.count(MARK) != 1:
            raise ValueError(f"the chat template of {name} changes a user's words. Type: backbone.chat_template=false")
        left, _, right = written.partition(MARK)
        needed = len(self._ids(left)) + len(self._ids(right))
        if needed >= self._backbone.max_length:
            raise ValueError(
                f"the chat template of {name} alone has {needed} tokens. Type: backbone.max_length={needed + 64}"
            )
        return left, right

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _cut(self, ids: list[int], room: int) -> list[int]:
        return ids if len(ids) <= room else shortened(ids, room, self._backbone.truncation)

    # kept on disk

    def remember(self, prompts: Sequence[str], answers: Sequence[str], cache: Path | None) -> None:
        """Encode everything, or read it from `cache`, where it is kept by its content and the rules.

        Texts may be made when they are asked for: of many no more than a part is in memory at one time, and a file of
        the cache holds a part.
        """
        self._prompts, self._answers = Rows(), Rows()
        kinds = [_Different(prompts), _Different(answers)]
        both: tuple[list[Flat], list[Flat]] = ([], [])
        for start in range(0, max(map(len, kinds)), SHARD):
            texts = [kind.part(start) for kind in kinds]
            for of_kind, flat, some in zip(both, self._part(texts[0], texts[1], cache), texts, strict=True):
                if some:
                    of_kind.append(flat)
        for rows, kind, found in zip((self._prompts, self._answers), kinds, both, strict=True):
            rows.take(kind.texts, kind.hashes, found)

    def _part(self, prompts: Sequence[str], answers: Sequence[str], cache: Path | None) -> tuple[Flat, Flat]:
        """Prompts and answers with their ids, from the cache if it has them."""
        path = cache / f"{self._key(prompts, answers)}.safetensors" if cache is not None else None
        kept = read_cached(path) if path is not None else None
        if kept is None:
            self._know_prompts(prompts)
            self._know_answers(answers)
            flat = self._prompts.flat(), self._answers.flat()
            self._prompts, self._answers = Rows(), Rows()
            if path is not None:
                ids, lengths, noted = (torch.cat(both) for both in zip(*flat, strict=True))
                write_tensors(path, {"noted": noted, "ids": ids, "lengths": lengths})
                kept = read_cached(path)
            if kept is None:
                return flat
        ids, lengths, noted = (kept[0][name] for name in ("ids", "lengths", "noted"))
        count = len(prompts)
        first = int(lengths[:count].sum())
        # The ids of a file are mapped: they need no memory that the system cannot have back.
        return (ids[:first], lengths[:count], noted[:count]), (ids[first:], lengths[count:], noted[count:])

    def _key(self, prompts: Sequence[str], answers: Sequence[str]) -> str:
        rules = {
            name: getattr(self._backbone, name)
            for name in (
                "max_length",
                "max_answer_length",
                "training_length",
                "truncation",
                "chat_template",
                "special_tokens",
            )
        }
        said = hashlib.sha256(json.dumps([FORMAT, rules, self._before, self._after, self._ends]).encode())
        said.update(tokenizer_hash(self._tokenizer).encode())
        said.update(str(self._tokenizer.chat_template).encode())
        for texts in (prompts, answers):
            said.update(json.dumps(list(texts)).encode())
        return said.hexdigest()


class _Different:
    """The different ones of many texts.

    Attributes:
        texts: in the order in which they come for the first time.
        hashes: theirs.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        every = hashes(map(text_hash, texts))
        places = first_places(every)
        self.texts, self.hashes = View(texts, places), every[places]

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, start: int) -> list[str]:
        """As many as a file of the cache holds."""
        return list(self.texts[start : start + SHARD])


def _key_of(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def shortened(places: Sequence[int], room: int, truncation: str) -> list[int]:
    """What stays of tokens, or of their places, that are too many, as `backbone.truncation` says."""
    if truncation == "keep_start":
        return list(places[:room])
    if truncation == "keep_end":
        return list(places[len(places) - room :])
    return [*places[: room - room // 2], *places[len(places) - room // 2 :]]  # instruction and cue stand at the ends
