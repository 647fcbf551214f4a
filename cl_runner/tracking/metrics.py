"""metrics.jsonl: one JSON object a line, the truth from which W&B and the report are fed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cl_runner.digests import Damaged


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
        with path.open("ab"):
            pass
        with path.open("rb+") as file:
            for _ in range(lines):
                self._sha.update(file.readline())
            if digest is not None and self._sha.hexdigest() != digest:
                raise Damaged(path, f"is damaged: its first {lines} lines are not those of the saved state")
            file.truncate(file.tell())
        self._file = path.open("ab")

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
