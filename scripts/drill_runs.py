"""What the drills share: a run as a process, where it stands, and what of its end must be equal bit for bit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

#: A real encoder at a size that takes well under a minute.
SMALL = (
    "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}, {name: software}]",
    "task_order.base.train=96",
    "task_order.base.test=20",
    "task_order.incremental.train=32",
    "task_order.incremental.test=10",
    "training.base.epochs=1",
    "training.incremental.epochs=3",
    "checkpoint.every_seconds=1",
    "wandb=disabled",
)


def start(root: Path, overrides: list[str]) -> subprocess.Popen[str]:
    """The run as a process of its own."""
    command = [sys.executable, "-m", "cl_runner", *SMALL, *overrides, f"root={root}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the run's end, which must be a good one."""
    shown, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"the run ended with status {process.returncode}:\n{shown}")


def end_of(root: Path) -> dict[str, str]:
    """Hashes of all that must be equal, by name: weights, matrices, predictions, snapshots, all numbers but the speed."""
    (folder,) = (path.parent for path in root.rglob("COMPLETED"))
    end = {"weights": json.loads((folder / "summary.json").read_text())["weights_sha256"]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = json.dumps([{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines])
    end["metrics"] = hashlib.sha256(numbers.encode()).hexdigest()
    files = [folder / "accuracy.csv", folder / "forgetting.csv"]
    files += sorted(folder.glob("predictions/*")) + sorted(folder.glob("snapshots/*"))
    return end | {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def place_of(root: Path) -> str:
    """Where the killed run was, as its log says."""
    logs = list(root.rglob("log.txt"))
    lines = logs[0].read_text().splitlines() if logs else []
    return lines[-1][20:] if lines else "starting"
