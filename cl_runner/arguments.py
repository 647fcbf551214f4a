"""What the commands share: mistakes in arguments and unwritable outputs as one message each."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

#: How the command `snapshot` is typed, which its messages name.
SNAPSHOT = "python -m cl_runner snapshot"
#: Answers of an exported folder that are compared with the run's, where nothing else is asked for.
COMPARED = 100


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one message, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError instead of printing the usage."""
        raise ValueError(f"{message}. See: {self.prog} --help")


def unwritable(output: Path, error: Exception) -> ValueError:
    """What to say of an output that cannot be written."""
    above = next(parent for parent in output.parents if os.path.exists(parent))
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ValueError(f"cannot write {output}: {reason if above.is_dir() else f'{above} is not a folder'}")
