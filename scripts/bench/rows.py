"""Runs over files of many rows: time, memory and disk, of which memory may grow by the bytes of an index and no more.

Each run trains `--method` for a few steps on a random two-layer BERT over one file of generated rows, whose texts
differ and have 10 words, and is asked 100 rows of another file. Each part is in a process of its own:
`data` draws the examples and no more, `run` is a whole run without its report; of more rows than `--largest-run`, whose
texts would be encoded for minutes, there is `data` alone.

    python scripts/bench/rows.py --threads 1 --rows 10000,100000,1000000 --largest-run 100000 \\
        --output outputs/published/bench/rows.json
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, keep, resident_bytes, show

from cl_runner.compose import compose
from cl_runner.data.task import build_tasks
from cl_runner.report import page
from cl_runner.run import Run

#: What is measured of a process, once all is imported: its highest memory beyond what it began with, without files that
#: are mapped, which the system can have back.
COLUMNS = ("CPU s", "wall s", "own MiB")
WORDS = [f"w{number}" for number in range(5000)]


def rows(number: int, seed: int) -> Iterator[dict[str, str]]:
    """So many texts of 10 words that differ, and their labels."""
    random = np.random.default_rng(seed)
    for begin in range(0, number, 10_000):
        for row in random.integers(len(WORDS), size=(min(10_000, number - begin), 10)).tolist():
            yield {"text": " ".join([WORDS[i] for i in row]), "label": str(row[0] % 2)}


def write(folder: Path, form: str, number: int) -> None:
    """train and test of one data set."""
    folder.mkdir(parents=True)
    for split, count, seed in (("train", number, 0), ("test", 100, 1)):
        path = folder / f"{split}.{form}"
        if form == "parquet":
            import pyarrow
            import pyarrow.parquet

            table = list(rows(count, seed))
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path, row_group_size=50_000)
        elif form == "csv":
            path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows(count, seed)))
        else:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows(count, seed))


def part(what: str, folder: str, form: str, method: str) -> dict[str, Any]:
    """One part, in this process."""
    stages = [
        option
        for stage in ("base", "incremental")
        for option in (
            f"task_order.{stage}={{train: null, validation: 0, test: null}}",
            f"training.{stage}.epochs=1",
            f"training.{stage}.batch_size=8",
        )
    ]
    line = [
        f"method={method}",
        "backbone=tiny_bert",
        "task_order=local_files",
        "task_order.tasks=[{name: one, domains: [data]}]",
        f'task.local_files.path="{folder}/{{split}}.{form}"',
        *stages,
        "training.max_steps=10",
        "hardware.threads=1",
        "wandb=disabled",
        f"root={folder}/root",
    ]
    request = compose(line, [])
    page.write_run_report = lambda folder: folder / "report.html"
    began, spent = time.perf_counter(), time.process_time()
    own = Watch()
    tasks = build_tasks(request.config.task_order, request.config.task)
    if what == "run":
        request.folder.mkdir(parents=True)
        with contextlib.redirect_stdout(io.StringIO()):
            assert Run(request, tasks).guarded(None) == 0
    seconds = (time.process_time() - spent, time.perf_counter() - began)
    return dict(zip(COLUMNS, (*seconds, own.most() / 2**20), strict=True))


class Watch:
    """The most memory of this process that is no file's, looked at 20 times a second."""

    def __init__(self) -> None:
        from threading import Event, Thread

        self._first = self._most = resident_bytes("RssAnon")
        self._over = Event()
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self._most = max(self._most, resident_bytes("RssAnon"))

    def most(self) -> int:
        """Bytes beyond those at the beginning."""
        self._over.set()
        self._thread.join()
        return self._most - self._first


def measured(words: Sequence[object]) -> dict[str, Any]:
    """What a process of this script says of one part."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    call = [sys.executable, sys.argv[0], "--part", " ".join(map(str, words))]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure files of so many rows."""
    given = arguments(
        __doc__ or "", rows="10000,100000,1000000", forms="jsonl", largest_run=100_000, method="seq_ft", part=""
    )
    if given.part:
        print(json.dumps(part(*given.part.split())))
        return
    results: dict[str, Any] = {}
    table: list[list[str]] = []
    for form in given.forms.split(","):
        for number in map(int, given.rows.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "data"
                write(place, form, number)
                size = (place / f"train.{form}").stat().st_size
                found: dict[str, Any] = {"file bytes": size}
                for what in ("data", "run") if number <= given.largest_run else ("data",):
                    found[what] = measured((what, place, form, given.method))
                    cells = [f"{found[what][name]:.1f}" for name in COLUMNS]
                    table.append([f"{number:,} rows of {form}, {what}", f"{size / 2**20:.0f}", *cells])
                cached = sum(path.stat().st_size for path in (place / "root" / "cache").rglob("*") if path.is_file())
                found["cache bytes"] = cached
                results.setdefault(form, {})[number] = found
    show("runs over files of many rows", ("", "file MiB", *COLUMNS), table)
    keep(given.output, results)


if __name__ == "__main__":
    main()
