"""The time that a run has left: each kind of phase at its own pace, as far as this process has met it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field


def duration(seconds: float) -> str:
    """Seconds as people read them: `5.2 s`, `1:05`, `1:02:03`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Paces:
    """Seconds and units of each kind of phase.

    Attributes:
        met: by the name of the phase.
    """

    met: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float, units: float) -> None:
        """A phase, or a part of one, is done."""
        before = self.met.get(name, (0.0, 0.0))
        self.met[name] = before[0] + seconds, before[1] + units

    def copy(self) -> Paces:
        """Another one with the same numbers."""
        return dataclasses.replace(self, met=dict(self.met))

    def left(self, plan: Mapping[str, float], position: float, elapsed: float, worked: float) -> float:
        """Seconds of what is to come.

        Args:
            plan: `<task>/<phase>` or `<phase>` -> units, in running order.
            position: units that are done, or were before this process.
            elapsed: seconds of this process, those between phases included.
            worked: units that it has done. Of a kind of phase that it has not met its whole pace tells.
        """
        inside = sum(seconds for seconds, _ in self.met.values())
        beside = elapsed / inside if inside else 1.0
        found, before = 0.0, 0.0
        for key, units in plan.items():
            to_come = max(0.0, before + units - max(before, position))
            seconds, done = self.met.get(key.rpartition("/")[2], (0.0, 0.0))
            found += to_come * (beside * seconds / done if done else elapsed / worked)
            before += units
        return found
