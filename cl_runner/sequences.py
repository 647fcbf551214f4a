"""Sequences whose items are made when they are asked for: many of them take no memory."""

from __future__ import annotations

import bisect
import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
From = TypeVar("From")


class Lazy(Sequence[Item]):
    """One that has its length and makes an item by its place; its slices make theirs in the same way."""

    @abstractmethod
    def made(self, place: int) -> Item:
        """The item at a place from 0 on."""

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        if isinstance(place, slice):
            return View(self, range(len(self))[place])
        return self.made(place if 0 <= place < len(self) else range(len(self))[place])

    def __iter__(self) -> Iterator[Item]:
        return map(self.made, range(len(self)))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class View(Lazy[Item]):
    """The items at some places of another sequence."""

    def __init__(self, items: Sequence[Item], places: range | NDArray[np.int64]) -> None:
        self._items, self._places = items, places

    def __len__(self) -> int:
        return len(self._places)

    def made(self, place: int) -> Item:
        """Of the other sequence."""
        return self._items[int(self._places[place])]


class Chained(Lazy[Item]):
    """Sequences one after the other."""

    def __init__(self, parts: Sequence[Sequence[Item]]) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def located(self, place: int) -> tuple[int, int]:
        """The sequence that an item lies in, by its number, and its place there."""
        part = bisect.bisect_right(self._ends, place)
        return part, place - (self._ends[part - 1] if part else 0)

    def made(self, place: int) -> Item:
        """Of the sequence that it lies in."""
        part, own = self.located(place)
        return self._parts[part][own]

    def __iter__(self) -> Iterator[Item]:
        return itertools.chain.from_iterable(self._parts)


class Mapped(Lazy[Item], Generic[From, Item]):
    """What a function makes of the items of another sequence."""

    def __init__(self, function: Callable[[From], Item], items: Sequence[From]) -> None:
        self._function, self._items = function, items

    def __len__(self) -> int:
        return len(self._items)

    def made(self, place: int) -> Item:
        """The function of the other's item."""
        return self._function(self._items[place])

    def __iter__(self) -> Iterator[Item]:
        return map(self._function, self._items)
