"""Seconds of a whole run against the sum of its forward and backward passes. Aim: at most 1.10 x.

From the made request to the written report, with all files, snapshots and evaluations; importing torch is not counted.
What the offline phase computes inside backward counts as backward.

    python scripts/bench/whole_run.py [--method seq_ft]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import arguments, keep, show, spread

from cl_runner.compose import compose
from cl_runner.data.task import build_tasks
from cl_runner.families.classifier import Classifier
from cl_runner.run import Run


class Stopwatch:
    """Seconds inside some functions; one inside another counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - began

        return timed


def main() -> None:
    given = arguments(__doc__ or "", method="pe", backbone="minilm")
    watch = Stopwatch()
    Classifier.forward = watch.around(Classifier.forward)  # type: ignore[method-assign]
    torch.autograd.backward = watch.around(torch.autograd.backward)
    torch.autograd.grad = watch.around(torch.autograd.grad)
    ratios, totals = [], []
    for number in range(given.repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"method={given.method}", f"backbone={given.backbone}", f"hardware.threads={given.threads}"]
            request = compose([*overrides, "wandb=disabled", f"root={folder}"], [])
            watch.seconds = 0.0
            began = time.perf_counter()
            run = Run(request, build_tasks(request.config.task_order, request.config.task))
            request.folder.mkdir(parents=True)
            assert run.guarded(None) == 0
            total = time.perf_counter() - began
            phases = json.loads((request.folder / "summary.json").read_text(encoding="utf-8"))["phases"]
        if number or given.repeats == 0:
            ratios.append(total / watch.seconds)
            totals.append(total)
    columns = ("run", "median seconds", "x its passes")
    show(
        "a whole run", columns, [[given.method, f"{statistics.median(totals):.1f}", f"{statistics.median(ratios):.3f}"]]
    )
    results = {"seconds": spread(totals), "ratio_to_passes": spread(ratios), "phases": phases}
    keep(given.output, results)


if __name__ == "__main__":
    main()
