"""Kill a run at random moments (SIGKILL), type the same command again, and compare its end with an uninterrupted run's.

    python scripts/kill_drill.py [--kills 5] [--seed 0] [OVERRIDES ...]

Compared bit for bit: the hash of the weights, both matrices, every number of metrics.jsonl but the speed, every
prediction and every snapshot. Exit status 0 only if all ends are equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
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
    """Everything that must be equal, as text by name."""
    (folder,) = (path.parent for path in root.rglob("COMPLETED"))
    end = {"weights": json.loads((folder / "summary.json").read_text())["weights_sha256"]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    end["metrics"] = json.dumps([{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines])
    files = [folder / "accuracy.csv", folder / "forgetting.csv"]
    files += sorted(folder.glob("predictions/*")) + sorted(folder.glob("snapshots/*"))
    return end | {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def place_of(root: Path) -> str:
    """Where the killed run was, as its log says."""
    logs = list(root.rglob("log.txt"))
    lines = logs[0].read_text().splitlines() if logs else []
    return lines[-1][20:] if lines else "starting"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given, overrides = parser.parse_known_args()
    moments = random.Random(given.seed)
    equal = 0
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        began = time.perf_counter()
        finish(start(whole, overrides))
        seconds = time.perf_counter() - began
        expected = end_of(whole)
        print(f"uninterrupted: {seconds:.1f} s, weights {expected['weights'][:12]}", flush=True)
        for number in range(1, given.kills + 1):
            root = Path(temporary) / f"killed_{number}"
            process = start(root, overrides)
            moment = moments.uniform(0.1, 0.95) * seconds
            time.sleep(moment)
            process.kill()
            process.communicate()
            place = place_of(root)
            finish(start(root, overrides))
            found = end_of(root)
            different = [name for name in expected if found.get(name) != expected[name]]
            equal += not different
            verdict = "equal" if not different else f"DIFFERENT: {', '.join(different)}"
            print(f"kill {number} after {moment:.1f} s, at '{place}': {verdict}", flush=True)
    print(f"{equal} of {given.kills} ends are bitwise equal")
    return 0 if equal == given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
