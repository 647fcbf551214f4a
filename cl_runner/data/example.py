"""One example: a text, perhaps with a picture, and its answer."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def asked(self) -> str | tuple[str, str]:
        """What tells it from other examples before it is answered: its text, and its picture's name."""
        return self.prompt if self.picture is None else (self.prompt, self.picture.name)

    def content(self) -> tuple[str | int, ...]:
        """What a model reads and should answer; a picture's name and size stand for its pixels."""
        seen = () if self.picture is None else (self.picture.name, self.picture.size)
        return (self.prompt, self.answer, *seen)
