"""Continual learning of language models: one command from a configuration to matrices, snapshots and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cl_runner.handover.loaded import Loaded

__version__ = "0.8.0"


def load(folder: Path | str, encoder: str | None = None, device: str | None = None) -> Loaded:
    """The model of a folder that `snapshot export` wrote: see `cl_runner.handover.loaded.load`."""
    from cl_runner.handover import loaded  # torch, which the commands do not wait for

    return loaded.load(folder, encoder, device)
