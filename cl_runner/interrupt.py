"""Ctrl-C, SIGTERM and a closed terminal: the run stops at the next safe point, with its state saved."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self


def stopping() -> list[int]:
    """The signals that ask this process to stop: SIGHUP unless it is ignored, as under nohup."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    heard = [hangup] if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *heard]


class Interrupted(Exception):
    """The run was asked to stop and has stopped."""


class Stop:
    """While active, the signals that stop a run only set `asked`; a second one acts as if this did not exist."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in stopping()}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def check(self) -> None:
        """Raise Interrupted if a signal came: for places where nothing needs saving."""
        if self.asked:
            raise Interrupted
