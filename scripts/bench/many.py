"""Runs of many tasks, and reports over many runs: time, memory and disk. Nothing may grow faster than it must.

Each run trains `--method` on a random two-layer BERT over generated reviews, 8 training and 4 test reviews a task, each
in a process of its own; every test set is asked after every task, which is the square of the tasks whatever is done.
The report is made in another process. The runs of the last part are copies of the first run under other seeds.

    python scripts/bench/many.py --threads 1 --tasks 5,50 --runs 10,100 --output outputs/published/bench/many.json
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import arguments, keep, resident_bytes, show

from cl_runner import digests
from cl_runner.compose import compose
from cl_runner.data.reviews import DOMAINS
from cl_runner.data.task import build_tasks
from cl_runner.digests import read_json
from cl_runner.report import command, page
from cl_runner.run import Run

#: Names of what is measured: this process' seconds, once all is imported, and its highest memory.
COLUMNS = ("CPU s", "wall s", "peak MiB")


def run(tasks: int, method: str, root: str) -> dict[str, Any]:
    """One run without its report, and what lies in its folder."""
    order = [f"{{name: task_{i:04d}, domains: [{DOMAINS[i % len(DOMAINS)]}]}}" for i in range(tasks)]
    stages = [
        option
        for stage in ("base", "incremental")
        for option in (
            f"task_order.{stage}.train=8",
            f"task_order.{stage}.test=4",
            f"training.{stage}.epochs=1",
        )
    ]
    more = [f"task_order.tasks=[{', '.join(order)}]", "hardware.threads=1", "wandb=disabled", f"root={root}"]
    request = compose([f"method={method}", "backbone=tiny_bert", *stages, *more], [])
    page.write_run_report = lambda folder: folder / "report.html"
    request.folder.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()):
        assert Run(request, build_tasks(request.config.task_order, request.config.task)).guarded(None) == 0
    summary = read_json(request.folder / "summary.json")
    return {"folder": str(request.folder), "phases": summary["phases"], "disk": disk(request.folder)}


def disk(folder: Path) -> dict[str, int]:
    """Bytes of each file or folder in a run's folder that has more than a hundredth of all, and of all."""
    sizes = {
        path.name: sum(each.stat().st_size for each in [path, *path.rglob("*")] if each.is_file())
        for path in folder.iterdir()
    }
    every = sum(sizes.values())
    return {"all": every} | {name: size for name, size in sizes.items() if size > every / 100}


def report(folder: str) -> dict[str, Any]:
    """The page of one run, or tables over all below a folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert command.main([folder]) == 0
    pages = [path for path in Path(folder).rglob("*.html") if "wandb" not in path.parts]
    return {"page bytes": max(path.stat().st_size for path in pages)}


def copies(source: Path, root: Path, number: int) -> None:
    """So many runs like one of them, under other seeds."""
    for seed in range(number):
        target = root / source.parent.relative_to(source.parents[3]) / f"seed{seed}-{seed:08x}"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("plots", "snapshots", "report.html"))
        config = (target / "config.yaml").read_text(encoding="utf-8")
        digests.write(target / "config.yaml", config.replace("\nseed: 0\n", f"\nseed: {seed}\n"))
        summary = read_json(target / "summary.json")
        summary["run"] |= {"seed": seed, "hash": f"{seed:08x}"}
        digests.write(target / "summary.json", json.dumps(summary))
        digests.settle(target)


def measured(*what: object) -> dict[str, Any]:
    """What a process of this script says of one part."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    call = [sys.executable, sys.argv[0], "--part", " ".join(map(str, what))]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def part(what: Sequence[str]) -> None:
    """One part, in this process."""
    began, spent = time.perf_counter(), time.process_time()
    if what[0] == "run":
        found = run(int(what[1]), what[2], what[3])
    else:
        found = report(what[1])
    numbers = (time.process_time() - spent, time.perf_counter() - began, resident_bytes("VmHWM") / 2**20)
    print(json.dumps(dict(zip(COLUMNS, numbers, strict=True)) | found))


def cells(numbers: dict[str, Any]) -> list[str]:
    """The columns that all parts have, and the size of a report's page."""
    page_size = f"{numbers['page bytes'] / 2**20:.1f}" if "page bytes" in numbers else ""
    return [*(f"{numbers[name]:.1f}" for name in COLUMNS), page_size]


def main() -> None:
    """Measure runs of so many tasks, then reports over so many runs."""
    given = arguments(__doc__ or "", tasks="5,50", runs="10,100", method="seq_ft", part="")
    if given.part:
        part(given.part.split())
        return
    results: dict[str, Any] = {"runs of tasks": {}, "reports over runs": {}}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        first: Path | None = None
        for tasks in map(int, given.tasks.split(",")):
            found = measured("run", tasks, given.method, f"{folder}/{tasks}")
            place = Path(found.pop("folder"))
            first = first or place
            reported = measured("report", place)
            whole = disk(place)["all"]
            results["runs of tasks"][tasks] = {"run": found, "report": reported, "bytes with report": whole}
            rows.append([f"{tasks} tasks", *cells(found), f"{found['disk']['all'] / 2**20:.1f}"])
            rows.append(["its report", *cells(reported), f"{whole / 2**20:.1f}"])
        assert first is not None
        for number in map(int, given.runs.split(",") if given.runs else []):
            root = Path(folder) / f"copies{number}"
            copies(first, root, number)
            reported = measured("report", root)
            results["reports over runs"][number] = reported
            rows.append([f"report over {number} runs", *cells(reported), ""])
            shutil.rmtree(root)
    show("runs of many tasks, reports over many runs", ("", *COLUMNS, "page MiB", "disk MiB"), rows)
    keep(given.output, results)


if __name__ == "__main__":
    main()
