"""Memory of each of several processes with weights in parts while they train, always, and never, beside the plan.

Peaks of resident memory by phase and process, of plain fine-tuning of a random LLaMA whose layers have the width of
LLaMA-2 7B: two tasks of two steps, saved at their ends, or more often (`--every` so many seconds). Variants: "in parts"
while they train (hardware.shard=true), "always", "whole". Aim: a part's training within 1.15 x of its plan.

    python scripts/bench/sharded.py --layers 2 --processes 2
    python scripts/bench/sharded.py --variants "in parts"      # half the memory
    python scripts/bench/sharded.py --variants always --every 0.01    # saved after each step
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import arguments, keep, show

from cl_runner.tracking.clock import Clock

PHASES = ("load", "importance", "selection", "train", "checkpoint", "snapshot", "evaluate")


def part(folder: Path, overrides: list[str]) -> int:
    """One process of a run, which notes its own peaks."""
    from cl_runner.__main__ import main

    kept: list[Clock] = []
    begin = Clock.__init__

    def noted(self: Clock) -> None:
        begin(self)
        kept.append(self)

    Clock.__init__ = noted  # type: ignore[method-assign]
    status = main(overrides)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(kept[-1].peak_memory))
    return status


def measured(processes: int, overrides: list[str], folder: Path) -> list[dict[str, float]]:
    """Peaks in MiB by phase, of each process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--part", str(folder), *overrides]
    started = [
        subprocess.Popen(command, env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    ended = [process.wait() for process in started]
    assert not any(ended), "a process failed"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def planned(processes: int, overrides: list[str]) -> dict[str, float]:
    """The plan's peaks in MiB by phase."""
    command = [sys.executable, "-m", "cl_runner", "plan", *overrides, f"--processes={processes}", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {name: size / 2**20 for name, size in told["peak_bytes"].items()}


def main() -> None:
    given = arguments(
        __doc__ or "",
        processes=2,
        layers=2,
        width=4096,
        inner=11008,
        method="seq_ft",
        variants="in parts,whole",
        every=10000.0,
    )
    sizes = {"hidden_size": given.width, "intermediate_size": given.inner, "num_hidden_layers": given.layers}
    overrides = [
        f"method={given.method}",
        "backbone=tiny_llama",
        *(f"backbone.architecture.{name}={value}" for name, value in sizes.items()),
        "backbone.architecture.num_attention_heads=32",
        "backbone.architecture.num_key_value_heads=32",
        "backbone.max_length=64",
        "backbone.max_answer_length=8",
        "task_order.tasks=[{name: base, domains: [novels]}, {name: kettles}]",
        *(f"task_order.{stage}.{split}=4" for stage in ("base", "incremental") for split in ("train", "test")),
        *(f"training.{stage}.{key}" for stage in ("base", "incremental") for key in ("epochs=1", "batch_size=2")),
        "evaluation.max_new_tokens=8",
        f"checkpoint.every_seconds={given.every}",
        "snapshots.save=none",
        "hardware.fit=false",
        f"hardware.threads={given.threads}",
        "wandb=disabled",
    ]
    results: dict[str, Any] = {}
    rows = []
    added_by = {"in parts": ["hardware.shard=true"], "always": ["hardware.shard=always"], "whole": []}
    for name in given.variants.split(","):
        added = added_by[name]
        with tempfile.TemporaryDirectory() as folder:
            line = [*overrides, *added, f"root={folder}/runs"]
            plan = planned(given.processes, line)
            found = measured(given.processes, line, Path(folder))
        train = max(size for phase, size in plan.items() if phase.startswith("train"))
        plan = {phase: train if phase == "train" else plan.get(phase, 0.0) for phase in PHASES}
        results[name] = {"planned_mebibytes": plan, "mebibytes_by_process": found}
        results[name]["train_by_plan"] = [process["train"] / train for process in found]
        rows += [[name, "plan", *(f"{plan[phase]:,.0f}" if plan[phase] else "" for phase in PHASES)]]
        rows += [[name, str(rank), *(f"{of.get(phase, 0):,.0f}" for phase in PHASES)] for rank, of in enumerate(found)]
    show("peak resident memory, MiB", ("weights", "process", *PHASES), rows)
    keep(given.output, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        sys.exit(part(Path(sys.argv[2]), sys.argv[3:]))
    main()
