"""Ctrl-C, SIGTERM, a closed terminal, a time limit ahead: the run stops at the next safe point, its state saved."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self

from cl_runner.distributed import any_of

#: By these a cluster says that the end is near: nobody is impatient who sends another one. Windows has none.
EARLY = tuple(number for name in ("SIGUSR1", "SIGUSR2") if (number := getattr(signal, name, None)) is not None)
#: The last signal that asked this process to stop: whether it was the cluster or a person.
last_heard: int | None = None


def stopping() -> list[int]:
    """The signals that ask this process to stop: SIGHUP unless it is ignored, as under nohup."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    heard = [hangup] if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *heard, *EARLY]


def heard(number: int) -> None:
    """Remember a signal that asked to stop."""
    global last_heard
    last_heard = number


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
        heard(number)
        if self.asked and number in EARLY:
            return
        self.asked = True
        for other, handler in self._before.items():
            if other not in EARLY:
                signal.signal(other, handler)

    def check(self) -> None:
        """Raise Interrupted if a signal came to any process of the run: for places where nothing needs saving."""
        if any_of(self.asked):
            raise Interrupted
