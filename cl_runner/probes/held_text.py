"""The loss on a held text: what the model could write before it learned the tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cl_runner.learner import Learner
from cl_runner.probes.base import Probe


@dataclass
class HeldText(Probe):
    """To be written."""

    path: str | None

    def measure(self, learner: Learner, folder: Path) -> dict[str, float]:
        """Loss."""
        return {}
