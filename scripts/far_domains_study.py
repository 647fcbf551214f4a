"""The study of PE's selection: does what it trains learn, from a base that has learned, domains that are far from it?

    python scripts/far_domains_study.py data_root=DATA            # what is missing, then the report
    python scripts/far_domains_study.py data_root=DATA --show     # the lines of its runs
    python scripts/far_domains_study.py data_root=DATA --only pe,frozen

The base of each seed is trained once (`seq_ft`, six kinds of products) and exported; every row goes on from there. The
same line goes on after an interruption: finished runs are skipped. Overrides that are added reach every run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
ROOT = Path("outputs") / "far_domains"
BASES = Path("outputs") / "far_domains_base"
SEEDS = (1, 2, 3)
ORDERS = "0,2"  # of the balanced ones: each later domain is once among the first two and once among the last
#: The trained base: as far as it takes to learn.
BASE = (
    "backbone=minilm",
    "backbone.max_length=64",
    "task_order=fdu_mtl_far",
    "task_order.incremental.test=1",
    "training.base.epochs=2",
    "training.base.learning_rate=1e-4",
    "training.incremental.epochs=0",
    "method=seq_ft",
)
#: As printed; then a higher rate, of a share that is a fifth, the same, and twenty times as large.
PRINTED = ("method.pe.fraction=0.005", "method.pe.learning_rate=2e-3")
HIGHER = ("method.pe.fraction=0.001,0.005,0.1", "method.pe.learning_rate=5e-3")
#: As the library of PE's authors trains (conf/experiment/pe/uer.yaml).
UER = ("training.bias_correction=false", "training.epsilon=1e-6", "training.clip=null")
#: Rows by name, in the order of running: what their multirun is of.
ROWS: dict[str, tuple[str, ...]] = {
    "frozen": ("method=frozen",),
    "pe": ("method=pe", *PRINTED),
    "pe_rand": ("method=pe_rand", *PRINTED),
    "largest": ("method=pe", "method.pe.keep=largest", *PRINTED),
    "seq_ft": ("method=seq_ft", "training.incremental.learning_rate=2e-5,1e-4"),
    "bitfit": ("method=bitfit", "method.parts.learning_rate=2e-3,5e-3"),
    "head_only": ("method=head_only", "training.incremental.learning_rate=2e-3,1e-2"),
    "pe_higher": ("method=pe", *HIGHER),
    "pe_rand_higher": ("method=pe_rand", *HIGHER),
    "largest_higher": ("method=pe", "method.pe.keep=largest", *HIGHER),
    "pe_uer": ("method=pe", *UER, *PRINTED),
    "pe_rand_uer": ("method=pe_rand", *UER, *PRINTED),
    "seq_ft_uer": ("method=seq_ft", *UER, "training.incremental.learning_rate=1e-4"),
}


def run(arguments: Sequence[str]) -> int:
    """One command in a process of its own, on one thread; its exit status."""
    print("python -m cl_runner", shlex.join(arguments), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)}
    return subprocess.run([sys.executable, "-m", "cl_runner", *arguments], env=environment, check=False).returncode


def base_line(seed: int, added: Sequence[str]) -> list[str]:
    """The run that trains a base."""
    return [*BASE, f"seed={seed}", f"root={BASES}", *added]


def row_line(name: str, seed: int, added: Sequence[str]) -> list[str]:
    """The multirun of a row and a seed."""
    place = [f"backbone.checkpoint=./{BASES}/seed{seed}", f"task_order.balanced={ORDERS}", f"seed={seed}"]
    return ["-m", "experiment=pe/far_domains", *ROWS[name], *place, f"root={ROOT}", *added]


def base(seed: int, added: Sequence[str]) -> int:
    """The exported base of a seed, trained if it is not there yet."""
    folder = BASES / f"seed{seed}"
    if (folder / "config.json").is_file():
        return 0
    if run(base_line(seed, added)) != 0:
        return 1
    runs = list(BASES.glob(f"fdu_mtl_far/minilm/seq_ft/seed{seed}-*"))
    return run(["snapshot", "export", str(runs[0]), "--after", "base", "--output", str(folder)])


def main() -> int:
    """Run what is missing of the study, or with --show print it; 1 if some command failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="ROWS", help="of these rows, by commas")
    parser.add_argument("--show", action="store_true", help="print the lines, run nothing")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    names = asked.only.split(",") if asked.only else list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]}: {', '.join(ROWS)}")
    failed = 0
    for seed in SEEDS:
        if asked.show:
            print("python -m cl_runner", shlex.join(base_line(seed, asked.overrides)))
        elif base(seed, asked.overrides):
            return 1
        for name in names:
            line = row_line(name, seed, asked.overrides)
            if asked.show:
                print("python -m cl_runner", shlex.join(line))
            else:
                failed += run(line) != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
