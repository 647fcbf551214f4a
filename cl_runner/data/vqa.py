"""VQA v2 (Goyal et al. 2017, arXiv:1612.00837) as it is released, parted by the kind of question as in VQACL.

The release has two files for each half of COCO, questions and annotations, which are joined here; every annotation says
of which of 65 types its question is, by its first words. VQACL (Zhang et al., CVPR 2023) makes ten tasks of these
types, of which PIECE takes three. Its partition itself is not read: the types below are those of its published test
files and, for `recognition` and `judge`, whose files are not at hand, of PIECE's data. "How ...?" is in none of them.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cl_runner.data.places import nearest
from cl_runner.data.reader import Reader, Record
from cl_runner.git_lfs import is_pointer

#: Kind -> the types of its questions, in VQACL's order of tasks.
KINDS: dict[str, tuple[str, ...]] = {
    "recognition": (
        *("what", "what is the", "what is", "what are the", "which", "what is on the", "what is in the"),
        *("what is this", "what does the", "who is", "what is the name", "what are"),
    ),
    "location": ("where is the", "where are the", "what room is"),
    "judge": (
        *("is the", "is this", "is this a", "are the", "is there a", "is it", "is there", "is", "are there"),
        *("are these", "are", "are there any", "is this an", "was", "is that a"),
    ),
    "commonsense": ("does the", "does this", "do", "has", "do you", "can you", "could"),
    "count": ("how many", "how many people are", "how many people are in", "what number is"),
    "action": (
        *("what is the man", "is the man", "are they", "is he", "is the woman", "what is the person"),
        *("what is the woman", "is this person", "is the person"),
    ),
    "color": ("what color is the", "what color are the", "what color", "what color is", "what is the color of the"),
    "type": ("what kind of", "what type of"),
    "subcategory": ("none of the above", "what time", "what sport is", "what animal is", "what brand"),
    "causal": ("why", "why is the"),
}
_KIND_OF = {type_: kind for kind, types in KINDS.items() for type_ in types}
#: Of the types of `judge`, what VQACL counts as `action`: 57 of the 58 such questions of its test set, and none of
#: PIECE's 7,947 of `judge`.
_OF_ACTION = re.compile(r"(is (this|that|one) woman|are (the |these |both |all )?(men|woman))\b", re.IGNORECASE)
#: Which of Karpathy's parts of COCO our splits are: what he leaves over of COCO's second half is for training.
_PARTS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


class Question(NamedTuple):
    """A question with the answer that most of ten people gave, and its picture below COCO's folder."""

    number: int
    text: str
    answer: str
    type: str
    picture: str

    @property
    def kind(self) -> str | None:
        """One of KINDS; None: in none of them."""
        kind = _KIND_OF.get(self.type)
        return "action" if kind == "judge" and _OF_ACTION.match(self.text) else kind


def vqa_v2(record: Record) -> Iterator[Record]:
    """A question as the reader below joins it, which is a row by itself."""
    yield record


class VqaV2(Reader):
    """The questions of one kind.

    Args:
        paths: questions and annotations, in any order, of as many halves of COCO as there are; and perhaps Karpathy's
            dataset_coco.json, whose part `split` then counts.
        kind: one of KINDS.
        split: train, val or test of Karpathy's; without his file it is not read.

    Raises:
        ValueError: there is no such kind, or a file is none of these.
    """

    def __init__(self, paths: Sequence[Path], kind: str, split: str) -> None:
        super().__init__(" and ".join(map(str, paths)))
        if kind not in KINDS:
            raise ValueError(f"VQA v2 has no kind of question {kind!r}, but {', '.join(KINDS)}.{nearest(kind, KINDS)}")
        self._paths, self._kind, self._split = tuple(paths), kind, split

    def raws(self) -> Iterator[Any]:
        """Questions of this kind; the others are counted."""
        questions, parts = _joined(self._paths, tuple(path.stat().st_mtime_ns for path in self._paths))
        if parts is not None and self._split not in _PARTS:
            raise ValueError(
                f"Karpathy's splits of COCO are {', '.join(_PARTS)}, and not {self._split!r}."
                f"{nearest(self._split, _PARTS)}"
            )
        others = elsewhere = 0
        for question in questions:
            if question.kind != self._kind:
                others += 1
            elif parts is not None and parts.get(question.picture) not in _PARTS[self._split]:
                elsewhere += 1
            else:
                yield question
        self.notes.clear()
        for said, count in (("questions of other kinds", others), ("questions of other splits", elsewhere)):
            if count:
                self.notes[said] = count

    def parse(self, raws: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Record]]:
        """Columns: question, answer, picture, question_id, question_type."""
        for row, question in raws:
            yield (
                row,
                {
                    "question": question.text,
                    "answer": question.answer,
                    "picture": question.picture,
                    "question_id": question.number,
                    "question_type": question.type,
                },
            )


def forget() -> None:
    """The files that were read are no longer needed: 658,111 questions take 200 MB."""
    _joined.cache_clear()


@functools.lru_cache(maxsize=2)  # of the two splits of an order, each of whose tasks asks for the same files
def _joined(paths: tuple[Path, ...], changed: tuple[int, ...]) -> tuple[list[Question], dict[str, str] | None]:
    """All questions of the files, and the part of each picture as Karpathy has it.

    Args:
        changed: when each file was, so that another one of its name is read.

    Raises:
        ValueError: a file is none of VQA's, or a question has no annotation.
    """
    asked: dict[int, tuple[str, str]] = {}
    answered: dict[int, tuple[str, str]] = {}
    parts: dict[str, str] | None = None
    for path in paths:
        content = _content(path)
        try:
            if "questions" in content:
                half = content["data_subtype"]
                for one in content["questions"]:
                    picture = f"{half}/COCO_{half}_{one['image_id']:012d}.jpg"
                    asked[one["question_id"]] = one["question"], picture
            elif "annotations" in content and "data_subtype" in content:
                for one in content["annotations"]:
                    answer, type_ = one["multiple_choice_answer"], one["question_type"]
                    answered[one["question_id"]] = sys.intern(answer), sys.intern(type_)
            elif content.get("dataset") == "coco":
                parts = {f"{one['filepath']}/{one['filename']}": one["split"] for one in content["images"]}
            else:
                raise KeyError("questions")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not as VQA v2 has its files of questions and of annotations, nor Karpathy's "
                f"dataset_coco.json ({type(error).__name__}: {error})"
            ) from None
    lost = [number for number in asked if number not in answered] or [n for n in answered if n not in asked]
    if lost:
        what, other = ("question", "annotation") if lost[0] in asked else ("annotation", "question")
        raise ValueError(
            f"the {what} {lost[0]} of VQA v2 has no {other}: name both files of each half of COCO in the path, "
            "path: [[QUESTIONS, ANNOTATIONS]]"
        )
    return [Question(number, text, *answered[number], picture) for number, (text, picture) in asked.items()], parts


def _content(path: Path) -> dict[str, Any]:
    if is_pointer(path):
        raise ValueError(f"{path} is a pointer of Git LFS, not the data. Type: git lfs pull, in that folder")
    try:
        # Of ten people's answers to each question nothing is read; as objects they would take gigabytes.
        content = json.loads(
            path.read_text(encoding="utf-8"), object_hook=lambda one: None if "answer_confidence" in one else one
        )
    except (OSError, UnicodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not one JSON object, as VQA v2 has its files")
    return content
