"""metrics.jsonl: one JSON object a line, the truth from which W&B and the report are fed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends lines; on resume the lines that came after the checkpoint are cut off, to be written again.

    Args:
        lines: how many lines to keep of what is there.
    """

    def __init__(self, path: Path, lines: int):
        self.path = path
        self.lines = lines
        with path.open("ab"):
            pass
        with path.open("rb+") as file:
            for _ in range(lines):
                assert file.readline().endswith(b"\n"), f"{path} has fewer lines than its checkpoint"
            file.truncate(file.tell())
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """One line; numbers are written so that they are read back exactly."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        self.lines += 1

    def sync(self) -> int:
        """Make all lines durable and return their number, for a checkpoint."""
        os.fsync(self._file.fileno())
        return self.lines

    def close(self) -> None:
        """Close the file."""
        self._file.close()
