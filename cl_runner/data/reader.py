"""What reads a source: raw rows, which cost little, and records of those that are wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


class Reader(ABC):
    """One file, folder or split of the hub.

    Attributes:
        place: what it is called in messages.
        class_names: of the numbers in the label's column, if the source's own schema names them.
        notes: what is worth knowing of the rows, counted while they are read.
    """

    def __init__(self, place: object) -> None:
        self.place = str(place)
        self.class_names: list[str] | None = None
        self.notes: Counter[str] = Counter()

    @abstractmethod
    def raws(self) -> Iterator[Any]:
        """Every row as it stands, in order.

        Raises:
            ValueError: one cannot be read.
        """

    @abstractmethod
    def parse(self, raws: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Record]]:
        """The records of some rows, ascending, with the numbers that are given with them.

        Raises:
            ValueError: one cannot be read.
        """

    def advice(self, wanted: Sequence[str]) -> str:
        """What to type if the columns that are wanted are not there; empty if nothing suggests itself."""
        return ""
