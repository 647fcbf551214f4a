"""Token ids of many texts in one flat buffer: 4 bytes a token, where lists of Python's numbers have about 46."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")
#: Texts whose ids are lists at one time, while many are encoded or counted.
AT_ONCE = 4096


class Note(NamedTuple):
    """What is worth knowing of a text or an answer."""

    tokens: int  # of all of it, with what stands around it
    special: bool  # whether special tokens stand in it


def parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Some items after the others, `AT_ONCE` at a time."""
    for begin in range(0, len(items), AT_ONCE):
        yield items[begin : begin + AT_ONCE]


class Rows:
    """Text -> its token ids, as a list when it is asked for, and its note.

    The ids of `take` stay where they are, such as in a file that is mapped; those of `add` are kept in memory.
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._taken = torch.empty(0, dtype=torch.int32).numpy()
        self._ids = array("i")
        self._ends = array("q", [0])  # of each row among the ids taken, then those added
        self._tokens, self._special = array("i"), array("b")

    def __contains__(self, text: str) -> bool:
        return text in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, text: str) -> list[int]:
        place, taken = self._places[text], len(self._taken)
        begin, end = self._ends[place], self._ends[place + 1]
        if end <= taken:
            ids: list[int] = self._taken[begin:end].tolist()
            return ids
        return self._ids[begin - taken : end - taken].tolist()

    def note(self, text: str) -> Note:
        """What was noted of a text."""
        place = self._places[text]
        return Note(self._tokens[place], bool(self._special[place]))

    def length(self, text: str) -> int:
        """Ids of a text."""
        place = self._places[text]
        return self._ends[place + 1] - self._ends[place]

    def add(self, text: str, ids: Sequence[int], note: Note) -> None:
        """A text that is not there yet."""
        self._places[text] = len(self._places)
        self._ids.extend(ids)
        self._ends.append(len(self._taken) + len(self._ids))
        self._tokens.append(note.tokens)
        self._special.append(note.special)

    def take(self, texts: Sequence[str], ids: Tensor, lengths: Tensor, notes: Tensor) -> None:
        """Texts with their ids one after the other, in place of all there were.

        Args:
            ids: int32, kept as it is.
            lengths: [texts], ids of each.
            notes: [texts, 2], tokens and special of each.
        """
        self._places = {text: place for place, text in enumerate(texts)}
        self._taken, self._ids = ids.numpy(), array("i")
        self._ends = array("q", [0])
        self._ends.frombytes(np.cumsum(lengths.numpy(), dtype=np.int64).tobytes())
        self._tokens, self._special = array("i"), array("b")
        self._tokens.frombytes(notes[:, 0].numpy().astype(np.int32).tobytes())
        self._special.frombytes(notes[:, 1].numpy().astype(np.int8).tobytes())

    def flat(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What `take` reads: ids, lengths and notes of texts, int32."""
        lengths = torch.tensor([self.length(text) for text in texts], dtype=torch.int32)
        ids = np.empty(int(lengths.sum()), np.int32)
        end = 0
        for text, length in zip(texts, lengths.tolist(), strict=True):
            begin, end = end, end + length
            ids[begin:end] = self[text]
        notes = torch.tensor([self.note(text) for text in texts], dtype=torch.int32).view(-1, 2)
        return torch.from_numpy(ids), lengths, notes
