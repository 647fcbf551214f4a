"""What the benchmarks share: interleaved timing, paired ratios and their spread, peak memory, tables, JSON.

Variants run in turn, round after round, and a ratio is the median over rounds of one variant's time by another's in
the same round, so that a machine that is slow for a while slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

#: What seconds are measured by; arguments() may choose the processor's, for a machine that others use as well.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
clock = "wall"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy", "safetensors")


def arguments(purpose: str, **extra: Any) -> argparse.Namespace:
    """The options of every benchmark, and those of one of them as name=default."""
    global clock
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count; one more comes first")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default=clock, help="processor: of this process alone, all threads")
    parser.add_argument("--output", type=Path, help="JSON file (default: only the table)")
    for name, default in extra.items():
        kind = (lambda text: text == "true") if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"default: {default}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = given.clock
    return given


def interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int, ready: Callable[[str], None] = lambda name: None
) -> dict[str, list[float]]:
    """Seconds of every variant in each of `repeats` rounds, after one round that does not count.

    Args:
        ready: called with a variant's name before each time, which does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeats + 1):
        for name, work in variants.items():
            ready(name)
            _wait()
            began = now()
            work()
            _wait()
            if number:
                seconds[name].append(now() - began)
    return seconds


def now() -> float:
    """Seconds of the clock that was chosen."""
    return CLOCKS[clock]()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(seconds: Sequence[float], floor: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile of the paired ratios."""
    ratios = [mine / other for mine, other in zip(seconds, floor, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "lower_quartile": low, "upper_quartile": high, "rounds": len(values)}


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": packages,
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=150).print(table)


def pace_row(
    name: str, seconds: list[float], tokens: int, compared: tuple[float, float, float], peak: float | None
) -> list[str]:
    """A line of `show`: seconds and tokens per second, a ratio with its quartiles, and MiB of its own process."""
    taken = spread(seconds)["median"]
    middle, low, high = compared
    memory = "" if peak is None else f"{peak:.0f} MiB"
    return [name, f"{taken:.2f} s", f"{tokens / taken:,.0f}", f"{middle:.3f} [{low:.3f}, {high:.3f}]", memory]


def keep(output: Path | None, results: Mapping[str, Any]) -> None:
    """Write results with the command and the machine to a JSON file, if one is asked for."""
    if output is not None:
        script = Path(sys.argv[0])
        command = shlex.join(["python", f"scripts/bench/{script.name}", *sys.argv[1:]])
        content = {"benchmark": script.stem, "command": command, "machine": machine(), "results": results}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def resident_bytes(field: str = "VmRSS") -> int:
    """Memory of this process on Linux: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak_rise(work: Callable[[], object], device: str = "cpu") -> int:
    """Bytes that `work` needs beyond those held when it begins, on "cuda" or in the process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        kept = work()
        rise = torch.cuda.max_memory_allocated() - held
    else:
        held = resident_bytes()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the highest so far is forgotten
        kept = work()
        rise = resident_bytes("VmHWM") - held
    del kept  # alive until here: a result counts
    return rise


def own_process(variant: str) -> float:
    """What this script prints at last when it is called again with --variant: one variant in a process of its own."""
    # glibc keeps freed blocks; above this size it asks the system anew, and the peak is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, *sys.argv, "--variant", variant]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])
