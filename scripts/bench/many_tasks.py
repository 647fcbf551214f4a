"""Memory of a run after 20 tasks against after 2: nothing may pile up. Aim: at most 1.02 x.

Resident memory of the process at the end of each task, of a PE run (Fisher, EWC, LwF, selection, snapshots, masks) over
generated reviews.

    python scripts/bench/many_tasks.py
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
from typing import Any

from harness import arguments, keep, resident_bytes, show

from cl_runner.compose import compose
from cl_runner.data.reviews import DOMAINS
from cl_runner.data.task import build_tasks
from cl_runner.run import Run


def used_mebibytes() -> float:
    """Memory of this process, after a collection, and after glibc has given back what it holds unused."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes() / 2**20


def main() -> None:
    given = arguments(__doc__ or "", tasks=20, method="pe", backbone="minilm")
    order = [f"{{name: task_{i}, domains: [{DOMAINS[i % len(DOMAINS)]}]}}" for i in range(given.tasks)]
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"method={given.method}",
            f"backbone={given.backbone}",
            f"task_order.tasks=[{', '.join(order)}]",
            "task_order.base.train=32",
            "task_order.base.test=6",
            "task_order.incremental.train=32",
            "task_order.incremental.test=6",
            "training.base.epochs=1",
            "training.incremental.epochs=1",
            f"hardware.threads={given.threads}",
            "wandb=disabled",
            f"root={folder}",
        ]
        request = compose(overrides, [])
        run = Run(request, build_tasks(request.config.task_order, request.config.task))
        learn = run._learn

        def watched(*what: Any) -> None:
            learn(*what)
            memory.append(used_mebibytes())

        run._learn = watched  # type: ignore[method-assign]
        request.folder.mkdir(parents=True)
        assert run.guarded(None) == 0
    ratio = memory[-1] / memory[1]
    show("resident memory", ("after task", "MiB"), [[str(i + 1), f"{m:.1f}"] for i, m in enumerate(memory)])
    print(f"after {given.tasks} tasks {ratio:.3f} x after 2 (aim 1.02)")
    results = {"mebibytes_after_each_task": memory, "ratio_last_to_second": ratio}
    keep(given.output, results)


if __name__ == "__main__":
    main()
