"""Token ids of many texts in one flat buffer: 4 bytes a token, where lists of Python's numbers have about 46."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cl_runner.text_hashes import Hashes, Places, text_hash

Item = TypeVar("Item")
IntArray: TypeAlias = NDArray[Any]
#: Ids one after the other, lengths [texts] and notes [texts, 2] (tokens and special), int32.
Flat: TypeAlias = tuple[Tensor, Tensor, Tensor]
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


class _Shard(NamedTuple):
    """Rows that are no more added to: their ids, where each ends, and notes [rows, 2]."""

    ids: IntArray
    ends: IntArray
    notes: IntArray


class Rows:
    """Text -> its token ids, as a list when it is asked for, and its note.

    The ids of `take` stay where they are, such as in files that are mapped, and its texts where they are: memory has 32
    bytes a text for them. Texts and ids of `add` are kept in memory.
    """

    def __init__(self) -> None:
        self._taken: Sequence[str] = ()
        self._of: Places | None = None
        self._shards: list[_Shard] = []
        self._size = 1  # of every shard but the last
        self._places: dict[str, int] = {}  # of those added
        self._ids, self._ends = array("i"), array("q", [0])
        self._tokens, self._special = array("i"), array("b")

    def __contains__(self, text: str) -> bool:
        return text in self._places or self._found(text) is not None

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(self._taken, self._places)

    def _found(self, text: str) -> tuple[_Shard, int] | None:
        """Where a text is that was taken."""
        place = None if self._of is None else self._of.of(text_hash(text))
        return None if place is None else (self._shards[place // self._size], place % self._size)

    def _span(self, text: str) -> tuple[IntArray | array[int], int, int]:
        """The buffer that holds a text's ids, and where in it they are."""
        place = self._places.get(text)
        if place is not None:
            return self._ids, self._ends[place], self._ends[place + 1]
        found = self._found(text)
        if found is None:
            raise KeyError(text)
        (ids, ends, _), row = found
        return ids, int(ends[row]), int(ends[row + 1])

    def __getitem__(self, text: str) -> list[int]:
        ids, begin, end = self._span(text)
        return ids[begin:end].tolist()

    def note(self, text: str) -> Note:
        """What was noted of a text."""
        place = self._places.get(text)
        if place is not None:
            return Note(self._tokens[place], bool(self._special[place]))
        found = self._found(text)
        assert found is not None, "a text that is not there"
        tokens, special = found[0].notes[found[1]].tolist()
        return Note(tokens, bool(special))

    def length(self, text: str) -> int:
        """Ids of a text."""
        _, begin, end = self._span(text)
        return end - begin

    def add(self, text: str, ids: Sequence[int], note: Note) -> None:
        """A text that is not there yet."""
        self._places[text] = len(self._places)
        self._ids.extend(ids)
        self._ends.append(len(self._ids))
        self._tokens.append(note.tokens)
        self._special.append(note.special)

    def take(self, texts: Sequence[str], found: Hashes, shards: Sequence[Flat]) -> None:
        """Texts with their ids, in place of all there were.

        Args:
            texts: all different; asked for one by one where all are wanted.
            found: their hashes.
            shards: ids one after the other, kept as they are, lengths and notes of as many texts each, the last one of
                fewer.
        """
        self.__init__()  # type: ignore[misc]
        self._taken, self._of = texts, Places(found)
        self._size = max((len(lengths) for _, lengths, _ in shards), default=1)
        for ids, lengths, notes in shards:
            ends = np.zeros(len(lengths) + 1, np.int64)
            np.cumsum(lengths.numpy(), out=ends[1:])
            self._shards.append(_Shard(ids.numpy(), ends, notes.numpy()))

    def flat(self) -> Flat:
        """What `take` reads of those that were added."""
        ids = torch.from_numpy(np.array(self._ids, np.int32))
        lengths = torch.from_numpy(np.diff(np.array(self._ends, np.int64)).astype(np.int32))
        notes = np.stack([np.array(self._tokens, np.int32), np.array(self._special, np.int32)], 1)
        return ids, lengths, torch.from_numpy(notes)
