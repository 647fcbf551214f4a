"""Continual learning of language models: one command from a configuration to matrices, snapshots and a report.

`cl_runner.load(FOLDER)` is the model of a folder that `snapshot export` wrote: `cl_runner.handover.loaded.load`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.10.0"


def __getattr__(name: str) -> Any:
    """`load`, found when it is asked for: the commands do not wait for torch, and no import leads back to itself."""
    if name == "load":
        return importlib.import_module("cl_runner.handover.loaded").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
