"""The GPUs of this machine, and how many jobs run on it at once."""

from __future__ import annotations

import os
import subprocess


def visible_devices() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes; without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one for one in named.split(",") if one.strip()]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return []
    return [str(number) for number, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU ")]


def count_of(processes: int | str) -> int:
    """How many jobs run at once on this machine.

    Raises:
        ValueError: one for each GPU is asked for, and there is none.
    """
    if isinstance(processes, int):
        return processes
    devices = len(visible_devices())
    if not devices:
        raise ValueError(f"sweep.processes={processes}: this machine shows no GPU. Type: sweep.processes=NUMBER")
    return devices
