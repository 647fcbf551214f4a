"""Progress calls of a run as phases on the console."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from cl_runner.tracking.console import Console, Phase


class Shown:
    """Progress calls `(phase, done, total)` as phases on the console; one phase is open at a time.

    Args:
        check: called on every progress; may raise to stop the run.
    """

    def __init__(self, console: Console, check: Callable[[], None]) -> None:
        self._console = console
        self._check = check
        self._phase: Phase | None = None
        self._context: AbstractContextManager[Phase] | None = None

    def __call__(self, name: str, done: int, total: int, **shown: float) -> None:
        self._check()
        if self._phase is None or self._phase.name != name:
            self.close()
            self._context = self._console.phase(name, total, max(0, done - 1) if name == "train" else 0)
            self._phase = self._context.__enter__()
        self._phase.advance(done - self._phase.done, **shown)

    def close(self) -> None:
        """End the open phase."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
        self._phase = self._context = None
