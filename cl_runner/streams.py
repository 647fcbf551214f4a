"""Standard output and error that end no run: whatever a terminal cannot show, and even if nobody reads any more."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from cl_runner.full_disk import is_full

#: A pipe without a reader, and a terminal that was closed.
_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)


class _Lasting(io.RawIOBase):
    """A stream whose reader may go: from then on what is written to it is lost. Everything of a run is in its log.

    Attributes:
        full: whether something was lost because it goes into a file on a full disk.
    """

    def __init__(self, raw: Any):
        self._raw = raw
        self._gone = False
        self.full = False

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def write(self, content: Any) -> int | None:
        if not self._gone:
            try:
                written: int | None = self._raw.write(content)
                return written
            except OSError as error:
                self.full = is_full(error)
                self._gone = error.errno in _GONE
                if not (self.full or self._gone):
                    raise
        return len(content)


@contextmanager
def lasting_streams() -> Iterator[Callable[[], bool]]:
    """Inside, sys.stdout and sys.stderr show a character that their encoding lacks as its escape, and outlast readers.

    A process that was started without them has nowhere to print to, and runs all the same.

    Yields:
        whether, by now, something was lost to a full disk.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = now = (_lasting(before[0]), _lasting(before[1]))

    def full() -> bool:
        for stream in now:
            stream.flush()
        buffers = [getattr(stream, "buffer", None) for stream in now]
        raws = [getattr(buffer, "raw", buffer) for buffer in buffers]
        return any(isinstance(raw, _Lasting) and raw.full for raw in raws)

    try:
        yield full
    finally:
        for stream, old in zip(now, before, strict=True):
            stream.flush()
            if old is None:
                stream.close()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None) -> TextIO:
    if stream is None:  # as pythonw, and a shell's >&-, leave it
        return open(os.devnull, "w", encoding="utf-8")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if isinstance(stream, io.TextIOWrapper) and isinstance(raw, io.FileIO):
        stream.flush()
        lasting: Any = _Lasting(raw)
        return io.TextIOWrapper(
            lasting if buffer is raw else io.BufferedWriter(lasting),  # python -u has none
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
