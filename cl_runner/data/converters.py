"""Records of some releases as rows with plain columns (`convert` of a task definition)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cl_runner.data.reader import Record
from cl_runner.registry import find, load

_TURN = re.compile(r"###\s*(Instruction|Human|Assistant)\s*:")


#: Converters of files that are one document, of which each row stands for itself.
DOCUMENTS = ("squad",)


def convert(
    kind: str, records: Iterable[tuple[int, Record]], where: str, **options: Any
) -> Iterator[tuple[int, Record]]:
    """The rows that the numbered records of a source become as `convert` of its definition asks, each with its record.

    Args:
        kind: a built-in converter, an installed one, or the dotted path of a function from a record to the rows it
            becomes.
        options: of a built-in converter.

    Raises:
        ValueError: a record is not of that kind.
    """
    function: Callable[..., Iterable[Record]] = load(find("converters", kind))
    for number, record in records:
        try:
            for row in function(record, **options):
                yield number, row
        except Unfit as unfit:
            raise ValueError(f"record {number} of {where} {unfit}") from None
        except ValueError as error:  # of a converter of the user's own
            raise ValueError(f"record {number} of {where}: {error}") from error


class Unfit(Exception):
    """What is wrong with a record."""


def _field(record: Any, name: str, kind: type) -> Any:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind):
        held = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise Unfit(f"has no {kind.__name__} {name!r}; it holds: {held}")
    return value


def squad(document: Record) -> Iterator[Record]:
    """A SQuAD document, as LAMOL's archive has one per data set: a row per question with context, question, answer.

    Of several answers it is the first; a question without one has the answer None.
    """
    for article in _field(document, "data", list):
        for paragraph in _field(article, "paragraphs", list):
            context = _field(paragraph, "context", str)
            for question in _field(paragraph, "qas", list):
                answers = _field(question, "answers", list)
                yield {
                    "context": context,
                    "question": _field(question, "question", str),
                    "answer": _field(answers[0], "text", str) if answers else None,
                }


def multiple_choice(record: Record) -> Iterator[Record]:
    """A question with `choices` and the index (from 0) or letter of the right one, as in MMLU.

    The new column `text` holds question and lettered choices, `answer` the letter.
    """
    question, choices, answer = _field(record, "question", str), _field(record, "choices", list), record.get("answer")
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters):
        answer = letters[answer]
    if answer not in letters:
        raise Unfit(f"has {len(letters)} choices, but the answer {answer!r}; an index from 0 or a letter is expected")
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    yield {**record, "text": "\n".join([f"Question: {question.strip()}", "Choices:", *lines]), "answer": answer}


def marked_turns(record: Record) -> Iterator[Record]:
    """A `text` of turns marked "### Instruction:", "### Human:", "### Assistant:": a column for each.

    The instruction may be missing (empty then); the other two may not, and none may come twice.
    """
    _, *parts = _TURN.split(_field(record, "text", str))
    names = parts[::2]
    if len(set(names)) < len(names) or not {"Human", "Assistant"} <= set(names):
        found = ", ".join(f"### {name}:" for name in names) or "none"
        raise Unfit(f"has the marks {found}; expected are ### Instruction: (or none), ### Human: and ### Assistant:")
    turns = dict(zip(names, parts[1::2], strict=True))
    yield {name.lower(): turns.get(name, "").strip() for name in ("Instruction", "Human", "Assistant")}
