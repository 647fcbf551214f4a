"""Where the rows of sources lie once they are read: in memory while they are few, else in a file without a name."""

from __future__ import annotations

import json
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

#: Bytes of all sources that are kept in memory; more of them lie in a file in the system's folder for such (TMPDIR).
IN_MEMORY = 16 * 2**20


class _Store:
    """One file of all sources, since a thousand tasks would be a thousand open files; it goes with the last of them."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self.end = 0
        self._appending = True

    def write(self, row: bytes) -> None:
        with _named():
            if not self._appending:
                self._file.seek(self.end)
                self._appending = True
            self._file.write(row)
        self.end += len(row)

    def read(self, begin: int, end: int) -> bytes:
        with _named():  # what was written may find no room only now
            self._file.seek(begin)
            self._appending = False
            return self._file.read(end - begin)


@contextmanager
def _named() -> Iterator[None]:
    """An error of the file says where it lies."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{tempfile.gettempdir()}/rows") from error


_last: weakref.ref[_Store] | None = None


def _store() -> _Store:
    global _last
    found = _last() if _last is not None else None
    if found is None:
        found = _Store()
        _last = weakref.ref(found)
    return found


class Spool:
    """The rows of a source in the order in which they came, each read when it is asked for: 8 bytes of memory a row."""

    def __init__(self) -> None:
        self._store = _store()
        self._ends = array("q", [self._store.end])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, row: Sequence[Any]) -> None:
        """One more, of what JSON knows; one source is read after the other.

        Raises:
            OSError: the disk is full.
        """
        assert self._ends[-1] == self._store.end, "another source is being read"
        self._store.write(json.dumps(row, separators=(",", ":")).encode())
        self._ends.append(self._store.end)

    def row(self, place: int) -> list[Any]:
        """The row at a place from 0 on."""
        row: list[Any] = json.loads(self._store.read(self._ends[place], self._ends[place + 1]))
        return row
