"""The sections of a page, and what is left out of it because a file is damaged, edited or of a stranger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cl_runner.digests import Damaged

Made = TypeVar("Made")
Other = TypeVar("Other")
#: What reading and drawing raise where a file does not hold what a run writes.
UNUSABLE = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
)


def not_of_a_run(path: Path, error: Exception) -> Damaged:
    """What to say of a file that can be read and does not hold what a run writes there."""
    if isinstance(error, Damaged):
        return error
    reason = " ".join(str(error).split())[:200]
    return Damaged(path, f"cannot be read (it does not hold what a run writes: {type(error).__name__} {reason})")


class Incomplete(ValueError):
    """A page was written without what some files should have shown.

    Attributes:
        path: of the page.
        lines: of `Sections.left_out`.
    """

    def __init__(self, path: Path, lines: list[str]):
        super().__init__("\n".join(lines))
        self.path, self.lines = path, lines


class Sections:
    """Makes sections, each by itself."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._missing: dict[str, list[str]] = {}

    def make(self, name: str, file: str, made: Callable[[], Made], otherwise: Other) -> Made | Other:
        """What `made` gives, or `otherwise` where the file that it is made from cannot be used."""
        try:
            return made()
        except UNUSABLE as error:
            self._missing.setdefault(str(not_of_a_run(self._folder / file, error)), []).append(name)
            return otherwise

    @property
    def left_out(self) -> list[str]:
        """A line for each file that cannot be used: what is wrong, and what is left out."""
        return [f"{said}. Left out: {', '.join(dict.fromkeys(names))}" for said, names in self._missing.items()]
