"""One example: a text, perhaps with a picture or as a chat, and its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture's file: where it lies here, and what is the same on every machine."""

    path: str
    name: str  # below the folder of pictures
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Recital:
    """That a model is to write an example as a whole: its text, what stands between, its answer.

    Attributes:
        start: the text that it then reads in the place of the example's.
    """

    start: str
    between: str


@dataclass(frozen=True, slots=True)
class Chat:
    """The turns of a chat up to the one that is the example's answer, which a chat template writes.

    Attributes:
        before: JSON of the turns before the answer, each with role, content and what else the template reads.
        last: JSON of the turn that answers.
        answer: what it says, as the example's answer was when it was read.
        tools: JSON of the list of tools; empty without any.
        learned: places of the assistant's turns among `before` whose words are learned as well.
    """

    before: str
    last: str
    answer: str
    tools: str = ""
    learned: tuple[int, ...] = ()

    def turns(self, answer: str) -> list[dict[str, Any]]:
        """All turns, the last with this answer: as it was read, or what a method puts in its place."""
        last = json.loads(self.last) if answer == self.answer else {"role": "assistant", "content": answer}
        return [*json.loads(self.before), last]


@dataclass(frozen=True, slots=True)
class Example:
    """A text and what a model should answer.

    `task` and `row` keep equal texts apart: a memory names its examples by them, and whoever looks an example up finds
    the one that was meant.
    """

    prompt: str  # the input text
    answer: str  # the label's name
    domain: str = ""
    picture: Picture | None = None  # that the prompt asks about
    task: int = -1  # index of the task it was drawn for; -1 = of none, such as a probe's
    row: int = -1  # its place among the task's examples of its split
    recital: Recital | None = None  # its text is what is learned as well; of families whose answers are texts
    chat: Chat | None = None  # whose turns the prompt has in words

    @property
    def asked(self) -> str | tuple[str, str]:
        """What tells it from other examples before it is answered: its text, and its picture's name."""
        return self.prompt if self.picture is None else (self.prompt, self.picture.name)

    def content(self) -> tuple[str | int, ...]:
        """What a model reads and should answer; a picture's name and size stand for its pixels."""
        seen = () if self.picture is None else (self.picture.name, self.picture.size)
        said = () if self.chat is None else (self.chat.before, self.chat.last, self.chat.tools, str(self.chat.learned))
        return (self.prompt, self.answer, *seen, *said)
