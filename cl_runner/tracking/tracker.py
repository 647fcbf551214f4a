"""What a tracker is: a place of others where a run's numbers are shown, fed from the lines of metrics.jsonl.

Line n (from 0) is point n of every tracker, and the matrices and pictures at a run's end are one point more. A
tracker says when it opens how many points it holds, so that a resumed run goes on behind them and no point is there
twice. It gets no line before a checkpoint covers it, and nothing that it does wrong ends a run.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

#: Exit status of a process that was interrupted, and can go on.
INTERRUPTED = 75

Cell = str | float | None


@dataclass(frozen=True)
class Told:
    """What every tracker is told of a run.

    Attributes:
        run_id: stable over interruptions, and unique.
        group: such as the sweep's name.
        tags: texts that runs are found by.
        config: the resolved configuration.
        folder: the run's folder, which holds metrics.jsonl.
        warn: told of a failure in one line.
    """

    run_id: str
    name: str
    group: str | None
    tags: Sequence[str]
    config: Mapping[str, Any]
    folder: Path
    warn: Callable[[str], None]


class Tracker(ABC):
    """One tracker of one run. A failure of it is told once, then it is left alone.

    A subclass begins with what `open` needs, and calls this class's constructor last.
    """

    title: ClassVar[str]  # as messages call it

    def __init__(self, told: Told):
        self.told = told
        self._metrics = told.folder / "metrics.jsonl"
        self._sent = 0  # points that are there already
        self._lines = 0  # lines of metrics.jsonl up to the last flush
        self._alive = True
        self._guard(self._begin)

    def _begin(self) -> None:
        self._sent = self.open()

    def _guard(self, action: Callable[[], None]) -> None:
        """Do it, or warn and go on without the tracker, whose errors (service, network, disk) are of any type."""
        if not self._alive:
            return
        try:
            action()
        except Exception as error:
            self._alive = False
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.told.warn(f"{self.title} failed and is left out from here on ({reason}); metrics.jsonl has everything")

    # what a run asks for
    def flush(self, lines_up_to: int | None = None) -> None:
        """Send lines [sent, lines_up_to) of metrics.jsonl, after a checkpoint that covers them; None: all."""

        def send() -> None:
            with self._metrics.open(encoding="utf-8") as file:
                for number, line in enumerate(islice(file, lines_up_to)):
                    if number >= self._sent:
                        self.point(number, points(json.loads(line)))
                        self._sent = number + 1
                    self._lines = number + 1
            self.settle()

        self._guard(send)

    def tables(
        self,
        columns: Sequence[str],
        accuracy: Sequence[Sequence[Cell]],
        forgetting: Sequence[Sequence[Cell]],
        images: Mapping[str, Path],
    ) -> None:
        """The rest of metrics.jsonl, then the matrices as tables and pictures, unless they are there already.

        Args:
            columns: `after`, then the T tasks.
            accuracy: rows (after, T percentages).
            forgetting: the same for the tasks' rows, None where empty.
            images: name -> PNG file.
        """
        self.flush()
        if self._sent > self._lines:
            return

        def send() -> None:
            self.matrices(self._sent, columns, {"accuracy": accuracy, "forgetting": forgetting}, images)
            self._sent += 1

        self._guard(send)

    def summary(self, values: Mapping[str, float | int | str | None]) -> None:
        """Numbers of the whole run by the name of their formula, such as {"forgetting/chaudhry18": 1.5}."""
        self.flush()
        self._guard(lambda: self.numbers(values))

    def artifacts(self, kind: str, files: Sequence[Path]) -> None:
        """Files of the run's folder that belong together, such as its snapshots, where the tracker keeps files."""
        if files:
            self._guard(lambda: self.keep(kind, files))

    def finish(self, exit_code: int) -> None:
        """Close the tracker's run with the exit status of the process: 0 done, 1 failed, 75 interrupted."""
        self._guard(lambda: self.close(exit_code))
        self._alive = False

    # what a tracker does; whatever these raise is told by `_guard`
    @abstractmethod
    def open(self) -> int:
        """Begin, or go on with, this run; how many points of it are there."""

    @abstractmethod
    def point(self, number: int, values: Mapping[str, float]) -> None:
        """One line: `step` is the training step, charts are drawn over it."""

    def settle(self) -> None:  # noqa: B027  # what sends each point at once has nothing to do
        """The points of a flush are all there: make them durable."""

    @abstractmethod
    def matrices(
        self,
        number: int,
        columns: Sequence[str],
        tables: Mapping[str, Sequence[Sequence[Cell]]],
        images: Mapping[str, Path],
    ) -> None:
        """The last point: tables by their names, with their columns, and pictures."""

    @abstractmethod
    def numbers(self, values: Mapping[str, float | int | str | None]) -> None:
        """What is known of the whole run."""

    def keep(self, kind: str, files: Sequence[Path]) -> None:  # noqa: B027  # not every tracker holds files
        """Keep files; a tracker that holds none does nothing."""

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """The end of this process's part of the run."""


class Trackers:
    """Several trackers as one; each fails by itself.

    Args:
        trackers: the chosen ones; none of them is a run without.
    """

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = trackers

    def __iter__(self) -> Iterator[Tracker]:
        return iter(self._trackers)

    def flush(self, lines_up_to: int | None = None) -> None:
        """As `Tracker.flush`."""
        for tracker in self._trackers:
            tracker.flush(lines_up_to)

    def finish(self, exit_code: int) -> None:
        """As `Tracker.finish`."""
        for tracker in self._trackers:
            tracker.finish(exit_code)


def points(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as names and numbers: `step`, `train/loss`, `scores/<task>/<metric>`."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{key}/")
        else:
            found |= _numbers({key: value}, "" if key in ("step", "epoch") else f"{line['kind']}/")
    return found


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The finite numbers of nested mappings by their path."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[prefix + key] = value
    return found
