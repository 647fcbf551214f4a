"""The study of all baselines: three tries of one number for each method, then its runs at the chosen one.

    python scripts/baselines_study.py cl_text data_root=DATA            # choose, then seed 1, then seeds 2 and 3
    python scripts/baselines_study.py cl_text data_root=DATA --show     # what was chosen, and the lines of the runs
    python scripts/baselines_study.py trace_english data_root=DATA backbone.checkpoint=FOLDER

The number is the learning rate of what a method trains, or, of one that holds old tasks by a penalty, its strength. It
is chosen on seed 0 and the first order by the mean over the tasks' validation examples after the last task; of equal
ones the first. Seed 0 counts in no result. The same line goes on after an interruption: finished runs are skipped.
Overrides that are added reach every run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_runner.report.folder import find_runs
from cl_runner.report.grouping import identity

TOP = Path(__file__).resolve().parents[1]
RATE = "training.base.learning_rate"
WHOLE = (3e-5, 1e-4, 3e-4)
FEW = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Row:
    """A method, what it is given besides, and the number that is chosen for it."""

    method: str
    key: str = RATE
    tries: tuple[float, ...] = WHOLE
    given: tuple[str, ...] = ()
    bound: str = ""  # joint or single_task, which is added to the order

    def order(self, name: str) -> str:
        """The choice of an order, with the bound."""
        return f"[{name},{self.bound}]" if self.bound else name


@dataclass(frozen=True)
class Study:
    """Rows by name in the order of running, the orders they run on, and where runs lie."""

    experiment: str
    orders: tuple[str, ...]
    rows: dict[str, Row]
    score: str = "average_accuracy"  # by which a try is chosen: higher is better

    @property
    def root(self) -> Path:
        """Of the runs; the tries lie beside them."""
        return Path("outputs") / f"baselines_{self.experiment}"


def _piece(name: str) -> Row:
    """A method of PIECE or a control of it: a new head needs the first task whole."""
    return Row(name, "method.piece.learning_rate", FEW, ("method.piece.first_task=whole",))


ENCODERS = Study(
    "cl_text",
    ("cl_text_4", "cl_text_6"),
    {
        "seq_ft": Row("seq_ft"),
        "joint": Row("seq_ft", bound="joint"),
        "single_task": Row("seq_ft", bound="single_task"),
        "replay": Row("replay"),
        "frozen": Row("frozen"),
        "ewc": Row("ewc", "method.ewc.strength", (0.35, 35.0, 3500.0)),
        "lwf": Row("lwf", "method.lwf.strength", (0.1, 1.0, 10.0)),
        "gem": Row("gem", given=("method.gem.size=32",)),
        "agem": Row("agem", given=("method.agem.size=32",)),
        "pe": Row("pe", "method.pe.learning_rate", FEW),
        "piece_s": _piece("piece_s"),
        "slm": Row("slm", "method.slm.learning_rate", (3e-4, 1e-3, 3e-3)),
        "replay_online": Row("replay_online", given=("method.replay_online.size=96",)),
        "der": Row("der", "method.der.alpha", (0.1, 0.3, 1.0), ("method.der.size=96",)),
        "multi_task": Row("multi_task"),
        "opr": Row("opr", given=("method.opr.budget=96",)),
        "opr_sc": Row("opr_sc", given=("method.opr.budget=96",)),
        "replay+piece_s": Row(
            "[replay,piece_s]", "method.piece.learning_rate", FEW, ("method.piece.first_task=whole",)
        ),
        "opr+piece_s": Row(
            "[opr,piece_s]",
            "method.piece.learning_rate",
            FEW,
            ("method.piece.first_task=whole", "method.opr.budget=96"),
        ),
        "mas": Row("mas", "method.mas.strength", (1.0, 100.0, 10000.0)),
        "si": Row("si", "method.si.strength", (0.1, 10.0, 1000.0)),
        "ewc_online": Row("ewc_online", "method.ewc.strength", (0.35, 35.0, 3500.0)),
        "l2": Row("l2", "method.l2.strength", (0.01, 1.0, 100.0)),
        "lwf_piece": Row("lwf_piece", "method.lwf.strength", (0.5, 2.0, 8.0)),
        "masked_kl": Row("masked_kl", "method.masked_kl.strength", (0.1, 1.0, 10.0)),
        "ogd": Row("ogd"),
        "migu": Row("migu"),
        "migu_piece": Row("migu_piece"),
        "bitfit": Row("bitfit", "method.parts.learning_rate", FEW),
        "head_only": Row("head_only", RATE, (3e-3, 1e-2, 3e-2), ("training.rates=null",)),
        "last_layers": Row("last_layers"),
        "layer_norm": Row(
            "layer_norm", "method.layer_norm.learning_rate", FEW, ("method.layer_norm.first_task=whole",)
        ),
        "piece_f": _piece("piece_f"),
        "piece_rand": _piece("piece_rand"),
        "magnitude_largest": _piece("magnitude_largest"),
        "magnitude_smallest": Row("magnitude_smallest", "method.pe.learning_rate", FEW),
        "pe_rand": Row("pe_rand", "method.pe.learning_rate", FEW),
        "pe_select": Row("pe_select", "method.pe.learning_rate", FEW),
        "ewc_lwf": Row("ewc_lwf", "method.lwf.strength", (0.1, 1.0, 10.0)),
        "slm_ti": Row("slm_ti", "method.slm.learning_rate", (3e-4, 1e-3, 3e-3)),
    },
)
STUDIES = {study.experiment: study for study in (ENCODERS,)}


def line(study: Study, row: Row, asked: Sequence[str]) -> list[str]:
    """A multirun of a row: what every run of it has, and what is asked besides."""
    return ["-m", f"experiment=baselines/{study.experiment}", f"method={row.method}", *row.given, *asked]


def tries_line(study: Study, row: Row, added: Sequence[str]) -> list[str]:
    """The tries of a row, scored on validation examples."""
    tries = f"{row.key}={','.join(f'{value:g}' for value in row.tries)}"
    place = ["seed=0", "evaluation.split=validation", f"root={study.root}_tries"]
    return line(study, row, [tries, f"task_order={row.order(study.orders[0])}", *place, *added])


def runs_line(study: Study, row: Row, value: float, seeds: str, added: Sequence[str]) -> list[str]:
    """The runs of a row at the chosen value."""
    orders = ",".join(row.order(name) for name in study.orders)
    chosen = [f"{row.key}={value:g}", f"task_order={orders}", f"seed={seeds}", f"root={study.root}"]
    return line(study, row, [*chosen, *added])


def chosen(study: Study, row: Row) -> tuple[float, dict[float, float]] | None:
    """The value with the best score, and the score of each; None while a try is missing."""
    root = Path(f"{study.root}_tries") / "+".join([study.orders[0], *([row.bound] if row.bound else [])])
    method = row.method.strip("[]").replace(",", "+")
    folders = [folder / method for folder in sorted(root.glob("*")) if (folder / method).is_dir()]
    runs = find_runs(folders)[0] if folders else []
    scores = {float(identity(run)[row.key]): run.metrics[study.score] for run in runs}
    if set(row.tries) - set(scores):
        return None
    return max(row.tries, key=lambda value: scores[value]), {value: scores[value] for value in row.tries}


def run(arguments: Sequence[str]) -> int:
    """One multirun in a process of its own, on one thread; its exit status."""
    print("python -m cl_runner", shlex.join(arguments), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)}
    return subprocess.run([sys.executable, "-m", "cl_runner", *arguments], env=environment, check=False).returncode


def main() -> int:
    """Run what is missing of a study, or with --show print it; 1 if some multirun failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--only", metavar="ROWS", help="of these rows, by commas")
    parser.add_argument("--seeds", default="1;2,3", help="in stages: every row runs a stage before the next one begins")
    parser.add_argument("--show", action="store_true", help="print what was chosen and the lines, run nothing")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    study: Study = STUDIES[asked.study]
    names = asked.only.split(",") if asked.only else list(study.rows)
    unknown = [name for name in names if name not in study.rows]
    if unknown:
        parser.error(f"no row {unknown[0]}: {', '.join(study.rows)}")
    failed = 0
    for seeds in asked.seeds.split(";"):
        for name in names:
            row = study.rows[name]
            if asked.show:
                print(name, chosen(study, row) or "not chosen yet")
            elif chosen(study, row) is None:
                failed += run(tries_line(study, row, asked.overrides)) != 0
            found = chosen(study, row)
            if found is None:
                print(f"{name}: no value is chosen, its runs are left out", flush=True)
            elif asked.show:
                print("python -m cl_runner", shlex.join(runs_line(study, row, found[0], seeds, asked.overrides)))
            else:
                failed += run(runs_line(study, row, found[0], seeds, asked.overrides)) != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
