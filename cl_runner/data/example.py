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
class Example:
    """A text and what a model should answer."""

    prompt: str  # the input text
    answer: str  # the label's name
    domain: str = ""
    picture: Picture | None = None  # that the prompt asks about

    def content(self) -> tuple[str | int, ...]:
        """What a model reads and should answer; a picture's name and size stand for its pixels."""
        seen = () if self.picture is None else (self.picture.name, self.picture.size)
        return (self.prompt, self.answer, *seen)
