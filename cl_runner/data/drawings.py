"""A set of pictures that the package draws itself: shapes of one kind and colour, one to four of them.

What is asked of each (its colour, its shape, how many) and five captions of it follow from what was drawn. The command
`draw` writes them in the layouts of published data: files as PIECE's release has them for VQA, and captions in one file
as Karpathy's splits have them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from PIL import Image, ImageDraw

Item = TypeVar("Item")
Split = Literal["train", "val", "test"]  # as Karpathy calls them
SPLITS: tuple[Split, ...] = ("train", "val", "test")

COLOURS = {"red": (214, 40, 40), "green": (30, 160, 60), "blue": (40, 70, 220), "yellow": (240, 200, 30)}
SHAPES = ("circle", "square", "triangle")
NUMBERS = ("one", "two", "three", "four")
GROUNDS = {"white": (250, 250, 250), "black": (15, 15, 15), "grey": (150, 150, 150)}
#: Pixels of a side; the four cells of a picture, of which each shape has one, take half of it.
SIDE = 32
CELL = SIDE // 2

#: What is asked, in several words. {s}: the shape, or "shape" where it is what is asked for; more than one.
QUESTIONS = {
    "colour": ("What colour are the {s}s?", "Which colour do the {s}s have?", "The {s}s are of which colour?"),
    "shape": ("What shapes are there?", "Which shape is in the picture?", "What kind of shape is drawn?"),
    "count": ("How many {s}s are there?", "How many {s}s do you see?", "What is the number of {s}s?"),
}
#: What a caption answers.
DESCRIBE = "Give a short description of the image."
_CAPTIONS = (
    "{n} {c} {s} on a {g} background.",
    "There {are} {n} {c} {s} on {g}.",
    "A picture of {n} {c} {s}.",
    "{n} {s}, all of them {c}, in front of a {g} background.",
    "The image shows {n} {c} {s}.",
)


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a picture shows.

    Attributes:
        places: the cell of each shape, from 0 at the upper left, row by row.
        margins: pixels that each shape leaves free in its cell on every side.
    """

    colour: str
    shape: str
    ground: str
    places: tuple[int, ...]
    margins: tuple[int, ...]

    @property
    def number(self) -> str:
        """How many shapes there are, as a word."""
        return NUMBERS[len(self.places) - 1]

    def picture(self) -> Image.Image:
        """RGB, SIDE x SIDE pixels."""
        image = Image.new("RGB", (SIDE, SIDE), GROUNDS[self.ground])
        pen, colour = ImageDraw.Draw(image), COLOURS[self.colour]
        for place, margin in zip(self.places, self.margins, strict=True):
            row, column = divmod(place, 2)
            left, top = column * CELL + margin, row * CELL + margin
            right, bottom = (column + 1) * CELL - 1 - margin, (row + 1) * CELL - 1 - margin
            if self.shape == "circle":
                pen.ellipse((left, top, right, bottom), fill=colour)
            elif self.shape == "square":
                pen.rectangle((left, top, right, bottom), fill=colour)
            else:
                pen.polygon([((left + right) // 2, top), (left, bottom), (right, bottom)], fill=colour)
        return image

    def captions(self) -> list[str]:
        """Five sentences that are true of it."""
        one = len(self.places) == 1
        words = {"n": self.number, "c": self.colour, "g": self.ground, "are": "is" if one else "are"}
        words["s"] = self.shape if one else f"{self.shape}s"
        made = [caption.format(**words) for caption in _CAPTIONS]
        return [caption[0].upper() + caption[1:] for caption in made]

    def answer(self, kind: str) -> str:
        """What is right to one of QUESTIONS."""
        return {"colour": self.colour, "shape": self.shape, "count": self.number}[kind]

    def question(self, kind: str, generator: random.Random) -> str:
        """One of the ways to ask for it."""
        ways = QUESTIONS[kind]
        return ways[int(generator.random() * len(ways))].format(s=self.shape)


def drawings(split: Split, count: int, seed: int) -> list[Drawing]:
    """`count` drawings, the first of them whatever the count; colours, shapes and numbers as equally often as can be.

    Args:
        split: part of the random seed, so that the splits differ.
    """
    generator = random.Random(f"{seed}/drawings/{split}")
    wheel = list(itertools.product(COLOURS, SHAPES, range(1, len(NUMBERS) + 1)))
    found: list[Drawing] = []
    while len(found) < count:
        for colour, shape, number in _shuffled(wheel, generator):
            places = tuple(sorted(_shuffled(range(4), generator)[:number]))
            margins = tuple(1 + int(generator.random() * 3) for _ in places)
            ground = _shuffled(list(GROUNDS), generator)[0]
            found.append(Drawing(colour, shape, ground, places, margins))
    return found[:count]


def _shuffled(items: Sequence[Item], generator: random.Random) -> list[Item]:
    """In random order. Only `random()` is used: its numbers are the same in every version of Python."""
    keys = [generator.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]
