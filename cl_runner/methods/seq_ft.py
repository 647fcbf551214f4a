"""Sequential fine-tuning: the lower bound of every paper (PE table 1, "Lower")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cl_runner.methods.base import Method


@dataclass
class SeqFT(Method):
    """Trains all weights on each task in turn; no hook is needed."""

    chooses: ClassVar[bool] = True
