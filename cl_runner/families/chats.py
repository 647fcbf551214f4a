"""From the turns of a chat to token ids: as the chat template writes them, with the tokens of every learned turn."""

from __future__ import annotations

import itertools
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from cl_runner.config import Backbone
from cl_runner.data.example import Chat, Example
from cl_runner.families.encoding import shortened
from cl_runner.families.reading_text import TextReader

#: Stands around a turn's number in the place of what it says: a character of no text.
_MARK = "\ue000"
#: Marks what the assistant says in templates that say it themselves, as transformers documents it.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of a chat.

    Attributes:
        ids: of all of it, the last answer and its end included.
        turns: of each of `ids` which turn of the assistant it is learned of, counted from 1 in the whole chat; 0: none.
        answer: the place in `ids` where the last answer begins; what is read before it stands there.
        left_out: turns before the last answer that have no room, the oldest.
        question_cut, answer_cut: whether words of what is asked last, or of the last answer, have no room.
    """

    ids: array[int]
    turns: array[int]
    answer: int
    left_out: int
    question_cut: bool
    answer_cut: bool

    @property
    def first(self) -> int:
        """The place of the first token that is learned."""
        return next(place for place, turn in enumerate(self.turns) if turn)


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A chat as text.

    Attributes:
        whole: all that the template writes.
        spans: where the words of learned turns begin and end, with the turn's number.
        prompt: where the prompt of the last answer ends.
        marked: whether the template itself marks these words.
    """

    whole: str
    spans: Sequence[tuple[int, int, int]]
    prompt: int
    marked: bool


class ChatReader:
    """Rows of chats by one tokenizer's chat template; each is encoded once.

    What is read before the last answer has at most `backbone.max_length` tokens: the oldest turns go first, whole ones
    from a user's turn to the next, never the system's; where one exchange alone is too long, the longest of what the
    user or a tool says in it is cut as `backbone.truncation` says. Of the last answer `max_answer_length` tokens are
    learned; one that is cut has no end. Answers before it are never cut.

    Args:
        end: the token that ends a last answer whose template writes none.
    """

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, reader: TextReader, end: int):
        self._backbone, self._tokenizer, self._reader, self._end = backbone, tokenizer, reader, end
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = special | set(tokenizer.all_special_ids)
        self._rows: dict[tuple[Chat, str], Row] = {}

    def row(self, example: Example) -> Row:
        """The tokens of an example's chat.

        Raises:
            ValueError: the template cannot write it, or the words of a learned turn cannot be told from the rest.
        """
        assert example.chat is not None
        key = (example.chat, example.answer)
        if key not in self._rows:
            self._rows[key] = self._made(example.chat, example.answer)
        return self._rows[key]

    def noted(self, examples: Sequence[Example]) -> dict[str, int]:
        """What of the turns has no room -> of how many chats or turns."""
        rows = [self.row(example) for example in examples]
        longest = f"{self._backbone.max_length} tokens"
        found = {
            f"chats without their oldest turns, to fit into {longest}": sum(row.left_out > 0 for row in rows),
            "turns that are left out of them": sum(row.left_out for row in rows),
            f"chats whose last question is cut, to fit into {longest}": sum(row.question_cut for row in rows),
            f"last answers cut at {self._backbone.max_answer_length} tokens": sum(row.answer_cut for row in rows),
        }
        return {note: count for note, count in found.items() if count}

    def _made(self, chat: Chat, answer: str) -> Row:
        turns, tools = chat.turns(answer), json.loads(chat.tools) if chat.tools else None
        self._check_tools(turns, chat.tools)
        numbers = dict(zip(_answering(turns), itertools.count(1), strict=False))
        learned = {*chat.learned, len(turns) - 1}
        later = [place for place, turn in enumerate(turns[:-1]) if turn["role"] == "user"][1:]
        for begin in (0, *later):
            kept = [place for place in range(len(turns)) if place >= begin or turns[place]["role"] == "system"]
            told = [turns[place] for place in kept]
            counted = {new: numbers[place] for new, place in enumerate(kept) if place in learned}
            row = self._encoded(told, counted, tools)
            if row.answer <= self._backbone.max_length:
                break
        else:
            row = self._encoded(told, counted, tools, self._backbone.max_length)
        return replace(row, left_out=len(turns) - len(kept))

    def _check_tools(self, turns: Sequence[Mapping[str, Any]], tools: str) -> None:
        """Raise ValueError for a special token where it cannot be told from the template's own."""
        for text in (
            tools,
            *(json.dumps(turn["tool_calls"], ensure_ascii=False) for turn in turns if "tool_calls" in turn),
        ):
            if self._reader.apart(text):
                raise ValueError(
                    f"{self._reader.found(text)!r}, a special token of the tokenizer, stands in a tool or a call of "
                    "one, where it cannot be read as letters. Leave such chats out, or type: "
                    "backbone.special_tokens=read"
                )

    def _encoded(
        self, turns: Sequence[Mapping[str, Any]], learned: Mapping[int, int], tools: Any, limit: int | None = None
    ) -> Row:
        """The tokens of turns, of which those of `learned` count: place -> number.

        Args:
            limit: of the tokens before the last answer, to which what is asked last is cut; None = all there are.
        """
        rendered = self._rendered(turns, learned, tools)
        apart = [place for place, turn in enumerate(turns) if self._reader.apart(turn["content"])]
        words = self._words(turns, rendered.whole, tools) if apart or limit is not None else {}
        if not words.keys() >= set(apart):
            lost = next(place for place in apart if place not in words)
            raise ValueError(
                f"the chat template of {self._backbone.name} changes what a turn says: {turns[lost]['content']!r}"
            )
        question = None if limit is None else self._question(turns, words)
        cuts = {rendered.prompt, *(question or ()), *(cut for begin, end, _ in rendered.spans for cut in (begin, end))}
        letters = [words[place] for place in apart]
        cuts.update(cut for span in letters for cut in span)
        ids, places = self._tokens(rendered.whole, sorted(cuts), letters, rendered.prompt)
        numbers = [0] * len(ids)
        for begin, end, number in rendered.spans:
            first, last = places[begin], places[end]
            if not rendered.marked:  # what stands behind a turn's end, such as a line break, is not the assistant's
                last = next((p + 1 for p in reversed(range(first, last)) if ids[p] in self._special), last)
            numbers[first:last] = [number] * (last - first)
        answer = places[rendered.prompt]
        stop = max((place + 1 for place in range(answer, len(ids)) if numbers[place]), default=answer)
        ids, numbers = ids[:stop], numbers[:stop]
        if not rendered.marked and (stop == answer or ids[-1] not in self._special):
            ids, numbers = [*ids, self._end], [*numbers, max(learned.values())]
        most = answer + (self._backbone.max_answer_length or 0)
        answer_cut, ids, numbers = len(ids) > most, ids[:most], numbers[:most]
        if limit is not None and question is not None:
            begin, end = (places[cut] for cut in question)
            beside = answer - (end - begin)
            if beside >= limit:
                raise ValueError(
                    f"the chat template of {self._backbone.name} writes {beside} tokens beside what is asked last in a "
                    f"chat, such as the system's turn and the tools. Type: backbone.max_length={beside + 64}"
                )
            kept = shortened(range(begin, end), limit - beside, self._backbone.truncation)
            ids, numbers = ([*row[:begin], *(row[p] for p in kept), *row[end:]] for row in (ids, numbers))
            answer = limit
        return Row(array("i", ids), array("i", numbers), answer, 0, limit is not None, answer_cut)

    # text

    def _rendered(self, turns: Sequence[Mapping[str, Any]], learned: Mapping[int, int], tools: Any) -> _Rendered:
        whole, marks = self._template(turns, tools)
        last = len(turns) - 1
        opened = self._written(turns[:last], tools, True)
        if not whole.startswith(opened):
            raise self._disagrees(turns, last, opened, whole)
        if marks is not None:
            # The template's marks are of the assistant's turns in their order, whether they are learned or not.
            answering = _answering(turns)
            if len(marks) != len(answering):
                raise ValueError(
                    f"the chat template of {self._backbone.name} marks {len(marks)} turns with {{% generation %}}, and "
                    f"the assistant has {len(answering)} in a chat. Write the marks around every turn of the assistant"
                )
            spans = [
                (begin, end, learned[place])
                for place, (begin, end) in zip(answering, marks, strict=True)
                if place in learned
            ]
            if spans[-1][0] > len(opened) or spans[-1][1] <= len(opened):
                raise self._disagrees(turns, last, opened, whole)
            return _Rendered(whole, spans, len(opened), True)
        spans = []
        for place, number in sorted(learned.items()):
            begins = opened if place == last else self._written(turns[:place], tools, True)
            ends = whole if place == last else self._written(turns[: place + 1], tools, False)
            if not ends.startswith(begins) or not whole.startswith(ends):
                one, other = (begins, ends) if whole.startswith(ends) else (ends, whole)
                raise self._disagrees(turns, place, one, other)
            spans.append((len(begins), len(ends), number))
        return _Rendered(whole, spans, len(opened), False)

    def _template(self, turns: Sequence[Mapping[str, Any]], tools: Any) -> tuple[str, Sequence[tuple[int, int]] | None]:
        """All turns as text, and where the template marks what the assistant says, if it does."""
        template = self._tokenizer.get_chat_template(tools=tools)
        if not _GENERATION.search(template):
            return self._written(turns, tools, False), None
        named: dict[str, Any] = self._tokenizer.special_tokens_map
        try:
            rendered: Any = render_jinja_template(  # typed as a text
                [[dict(turn) for turn in turns]],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **named,
            )
        except TemplateError as error:
            raise self._refused(error) from None
        [text], [marks] = rendered
        return text, marks

    def _written(self, turns: Sequence[Mapping[str, Any]], tools: Any, opens: bool) -> str:
        """Turns as text.

        Args:
            opens: whether the assistant is about to speak.
        """
        asked: Any = [dict(turn) for turn in turns]  # typed without calls of tools
        try:
            return str(
                self._tokenizer.apply_chat_template(asked, tools=tools, add_generation_prompt=opens, tokenize=False)
            )
        except TemplateError as error:
            raise self._refused(error) from None

    def _refused(self, error: TemplateError) -> ValueError:
        return ValueError(
            f"the chat template of {self._backbone.name} does not write a chat of this data: {error}. Leave such "
            "chats out, or type: task.NAME.convert=messages (the turns as plain text)"
        )

    def _disagrees(self, turns: Sequence[Mapping[str, Any]], place: int, one: str, other: str) -> ValueError:
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        seen = f"{one[max(0, at - 20) : at + 40]!r} against {other[max(0, at - 20) : at + 40]!r}"
        if place == len(turns) - 1:
            remedy = "task.NAME.convert=messages backbone.chat_template=false (the turns as plain text)"
        else:
            remedy = "task.NAME.turns=each (an example for every turn), or task.NAME.turns=last"
        return ValueError(
            f"the chat template of {self._backbone.name} writes turn {place + 1} of a chat otherwise before and after "
            f"the assistant has spoken, so that the tokens of its answer cannot be found: {seen}. Type: {remedy}"
        )

    def _words(self, turns: Sequence[Mapping[str, Any]], whole: str, tools: Any) -> dict[int, tuple[int, int]]:
        """Where the template writes what each turn says, found by marks in its place; nothing of a template that
        writes something else around other words."""
        marked = [
            {**turn, "content": f"{_MARK}{place}{_MARK}"} if turn["content"] else turn
            for place, turn in enumerate(turns)
        ]
        parts = re.split(f"{_MARK}(\\d+){_MARK}", self._written(marked, tools, False))
        found: dict[int, tuple[int, int]] = {}
        at = len(parts[0]) if whole.startswith(parts[0]) else -1
        for number, after in zip(parts[1::2], parts[2::2], strict=True):
            said = turns[int(number)]["content"]
            fits = [text for text in (said, said.strip()) if at >= 0 and whole.startswith(text + after, at)]
            if not fits:
                return {}
            found[int(number)] = (at, at + len(fits[0]))
            at += len(fits[0]) + len(after)
        return found

    def _question(self, turns: Sequence[Mapping[str, Any]], words: Mapping[int, tuple[int, int]]) -> tuple[int, int]:
        """Where the longest of what the user and tools say since the user's last turn stands."""
        begins = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=0)
        asked = [words[p] for p in words if begins <= p < len(turns) - 1 and turns[p]["role"] in ("user", "tool")]
        if not asked:
            raise ValueError(
                f"a chat has more than {self._backbone.max_length} tokens before its last answer, and none of a "
                f"question that could be cut. Type: backbone.max_length={2 * self._backbone.max_length}"
            )
        return max(asked, key=lambda span: span[1] - span[0])

    # tokens

    def _tokens(
        self, whole: str, cuts: Sequence[int], letters: Sequence[tuple[int, int]], prompt: int
    ) -> tuple[list[int], dict[int, int]]:
        """Ids of a text, and how many of them stand before each of the places where it is cut.

        A chat is encoded as a whole, as it is by others, if a token begins at every cut and the prompt alone makes the
        same tokens; otherwise what lies between the cuts is encoded by itself, as prompts and answers are.

        Args:
            letters: what is said with special tokens in it, which are letters.
        """
        if not letters and self._tokenizer.is_fast:
            made = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids: list[int] = made["input_ids"]
            found = dict(_places(made["offset_mapping"], cuts))
            if len(found) == len(cuts) and self._plain(whole[:prompt]) == ids[: found[prompt]]:
                return ids, found
        ids, found = [], {}
        apart = set(letters)
        for begin, end in itertools.pairwise([0, *cuts, len(whole)]):
            text = whole[begin:end]
            ids += self._reader.ids([text])[0] if (begin, end) in apart else self._plain(text)
            found[end] = len(ids)
        return ids, found

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _answering(turns: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the assistant's turns."""
    return [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]


def _places(offsets: Sequence[tuple[int, int]], cuts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """How many tokens end before or at each cut, of those that no token lies across."""
    place = 0
    for cut in cuts:
        while place < len(offsets) and offsets[place][1] <= cut:
            place += 1
        if place == len(offsets) or offsets[place][0] >= cut:
            yield cut, place
