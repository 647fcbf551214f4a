"""Where the rows of a source lie once they are read: in memory while they are few, else in a file without a name."""

from __future__ import annotations

import json
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from typing import Any

#: Bytes of a source that are kept in memory; what is more lies in a file in the system's folder for such (TMPDIR).
IN_MEMORY = 16 * 2**20


class Spool:
    """Rows in the order in which they came, each read when it is asked for: 8 bytes of memory a row."""

    def __init__(self) -> None:
        # It goes with this object, or with the process.
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])
        self._whole = False

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, row: Sequence[Any]) -> None:
        """One more, of what JSON knows; call it before the first is read.

        Raises:
            OSError: the disk is full.
        """
        assert not self._whole, "what was read is whole"
        written = json.dumps(row, separators=(",", ":")).encode()
        try:
            self._file.write(written)
        except OSError as error:
            raise self._named(error) from error
        self._ends.append(self._ends[-1] + len(written))

    def row(self, place: int) -> list[Any]:
        """The row at a place from 0 on."""
        if not self._whole:
            try:
                self._file.flush()
            except OSError as error:
                raise self._named(error) from error
            self._whole = True
        begin = self._ends[place]
        self._file.seek(begin)
        row: list[Any] = json.loads(self._file.read(self._ends[place + 1] - begin))
        return row

    @staticmethod
    def _named(error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, f"{tempfile.gettempdir()}/rows")
