"""The usable rows of a source: an index in memory, and what they hold where a spool has it."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cl_runner.config import TaskDefinition
from cl_runner.data.example import Chat
from cl_runner.data.prompts import prompt
from cl_runner.data.spool import Spool
from cl_runner.sequences import Lazy


@dataclass(frozen=True, slots=True)
class Row:
    """A usable row of a source: its prompt, its label's name or its answer, its picture.

    Attributes:
        place, row: the file and the number in it, for messages.
        picture: as the row names it.
        chat: whose last turn the label is, if a chat template is to write it.
    """

    place: str
    row: int
    prompt: str
    label: str
    picture: str = ""
    chat: Chat | None = None


class Rows(Lazy[Row]):
    """Rows in the order of the source, each made when it is asked for.

    Attributes:
        units: of each row; rows of one unit, such as the turns of a chat, never come into two splits.
        labels: of each row, the place of its label among those of the definition; all 0 where any text is an answer.
    """

    def __init__(self, definition: TaskDefinition, files: Sequence[str], names: Sequence[str]) -> None:
        self._definition, self._files = definition, list(files)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._spool = Spool()
        self._empty: dict[str, str] = {}
        self.units, self.labels = array("q"), array("i")

    def add(
        self,
        unit: int,
        file: int,
        row: int,
        label: str,
        cells: Mapping[str, str],
        picture: str,
        chat: Chat | None,
    ) -> None:
        """The next row.

        Args:
            file: its place among the files.
            cells: what the prompt is made of.
        """
        self.units.append(unit)
        self.labels.append(self._numbers.get(label, 0))
        self._spool.add([file, row, label, cells, picture, *([] if chat is None else dataclasses.astuple(chat))])

    def end(self, columns: Collection[str]) -> None:
        """All rows are there, with these columns; a row that lacks one has it empty."""
        self._empty = dict.fromkeys(columns, "")

    def __len__(self) -> int:
        return len(self.units)

    def made(self, place: int) -> Row:
        """The row, with its prompt."""
        file, row, label, cells, picture, *said = self._spool.row(place)
        chat = None
        if said:
            before, last, answer, tools, learned = said
            chat = Chat(before, last, answer, tools, tuple(learned))
        return Row(self._files[file], row, prompt(self._definition, {**self._empty, **cells}), label, picture, chat)
