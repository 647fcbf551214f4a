"""metrics.jsonl: one JSON object a line, the truth from which W&B and the report are fed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cl_runner.digests import Damaged, readable

#: Bytes of a log that are read at once.
_READ = 1 << 20


class MetricsLog:
    """Appends lines; on resume the lines that came after the checkpoint are cut off, to be written again.

    Args:
        lines: how many lines to keep of what is there.
        digest: their SHA-256, as `sync` gave it.

    Raises:
        Damaged: these lines are not there, or are others.
    """

    def __init__(self, path: Path, lines: int, digest: str | None):
        self.path = path
        self.lines = lines
        self._sha = hashlib.sha256()
        self._file = path.open("ab")
        size = 0
        for line in first_lines(path, lines, digest):
            self._sha.update(line)
            size += len(line)
        self._file.truncate(size)

    def write(self, **values: Any) -> None:
        """One line; numbers are written so that they are read back exactly."""
        line = (json.dumps(values) + "\n").encode()
        self._sha.update(line)
        self._file.write(line)
        self._file.flush()
        self.lines += 1

    def sync(self) -> tuple[int, str]:
        """Make all lines durable; their number and SHA-256, for a checkpoint."""
        os.fsync(self._file.fileno())
        return self.lines, self._sha.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def first_lines(path: Path, number: int, digest: str | None) -> Iterator[bytes]:
    """The lines of a log that a checkpoint knows.

    Args:
        digest: their SHA-256, as `sync` gave it.

    Raises:
        Damaged: after the last line, that these are others, or fewer; the file cannot be read.
    """
    found = hashlib.sha256()
    with readable(path), path.open("rb") as file:
        for line in islice(file, number):
            found.update(line)
            yield line
    if digest is not None and found.hexdigest() != digest:
        raise Damaged(path, f"is not what it was: its first {number} lines are not those of the saved state")


def last_steps(path: Path, task: str) -> list[dict[str, Any]]:
    """The training lines of the task that was trained last, in their order, if it is this one.

    They are read from the end: the lines of the tasks before it are not.
    """
    found: list[dict[str, Any]] = []
    for text in _backwards(path):
        line = json.loads(text)
        if line["kind"] == "train":
            if line["task"] != task:
                break
            found.append(line)
    return found[::-1]


def _backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file, the last one first."""
    with path.open("rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end:
            begin = max(0, end - _READ)
            file.seek(begin)
            rest, *lines = (file.read(end - begin) + rest).split(b"\n")
            yield from filter(None, reversed(lines))
            end = begin
        if rest:
            yield rest
