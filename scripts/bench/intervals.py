"""Intervals of a run's derived numbers in blocks of draws, against all bootstrapped matrices at once: memory, time.

1,000 draws of `--tasks` tasks with `--examples` test examples each, whose scores are not whole numbers. Each variant in
its own process; both give the same numbers, to the bit.

    python scripts/bench/intervals.py --threads 1 --output outputs/published/bench/intervals.json
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time

import numpy as np
from harness import arguments, keep, peak_rise, show

from cl_runner.intervals import derived_draws, draw
from cl_runner.matrix import derived_arrays


def measure(variant: str, tasks: int, examples: int) -> dict[str, float | str]:
    """Peak bytes beyond the scores, seconds, and a digest of all numbers."""
    random = np.random.default_rng(0)
    scores = [random.random((tasks + 1, examples)) * 100 for _ in range(tasks)]
    sizes = [examples] * tasks
    digest = hashlib.sha256()

    def work() -> None:
        found = derived_draws(scores, sizes) if variant == "blocks" else derived_arrays(draw(scores), sizes)
        for name, values in found.items():
            digest.update(name.encode() + values.tobytes())

    began = time.process_time()
    peak = peak_rise(work)
    return {"peak_bytes": peak, "seconds": time.process_time() - began, "sha256": digest.hexdigest()}


def main() -> None:
    """Measure both variants."""
    given = arguments(__doc__ or "", tasks=200, examples=50, variant="")
    if given.variant:
        print(json.dumps(measure(given.variant, given.tasks, given.examples)))
        return
    found = {}
    for variant in ("at once", "blocks"):
        call = [sys.executable, *sys.argv, "--variant", variant]
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
        found[variant] = json.loads(done.stdout.splitlines()[-1])
    rows = [[name, f"{each['peak_bytes'] / 2**20:.0f} MiB", f"{each['seconds']:.1f} s"] for name, each in found.items()]
    show(f"intervals of {given.tasks} tasks", ("", "peak", "CPU"), rows)
    assert found["at once"]["sha256"] == found["blocks"]["sha256"], "other numbers"
    keep(given.output, {"tasks": given.tasks, "examples": given.examples, **found})


if __name__ == "__main__":
    main()
