"""The studies that ask whether a paper's effect is there: their rows, and what they begin from.

    python scripts/studies.py far_domains data_root=DATA            # PE: does what it selects learn?
    python scripts/studies.py slm_gap data_root=DATA                # SLM: what stands between it and separate models?
    python scripts/studies.py real_language data_root=DATA          # PIECE: what is learned, what kept?
    python scripts/studies.py drawn_llava data_root=DATA            # of a model that sees: what is kept of captions?
    python scripts/studies.py far_domains data_root=DATA --show     # the lines of its runs
    python scripts/studies.py far_domains data_root=DATA --only pe,frozen --seeds 1

Seed after seed all rows run, one process a multirun, on one thread. The same line goes on after an interruption:
finished runs are skipped. Overrides that are added reach every run. Then: python -m cl_runner report outputs/NAME
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

TOP = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Study:
    """Multiruns by name, in the order of running.

    Attributes:
        given: overrides of every row.
        rows: overrides of each.
        base: overrides of a run whose first task is trained once a seed, exported, and what all rows begin from.
    """

    given: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    base: tuple[str, ...] = ()


#: PE as printed; then a higher rate, of a share that is a fifth, the same, and twenty times as large.
PRINTED = ("method.pe.fraction=0.005", "method.pe.learning_rate=2e-3")
HIGHER = ("method.pe.fraction=0.001,0.005,0.1", "method.pe.learning_rate=5e-3")
#: As the library of PE's authors trains (conf/experiment/pe/uer.yaml).
UER = ("training.bias_correction=false", "training.epsilon=1e-6", "training.clip=null")
FAR_DOMAINS = Study(
    # Of the balanced orders two in which each later domain is once among the first two and once among the last.
    given=("experiment=pe/far_domains", "task_order.balanced=0,2"),
    rows={
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
    },
    base=(
        "backbone=minilm",
        "backbone.max_length=64",
        "task_order=fdu_mtl_far",
        "task_order.incremental.test=1",
        "training.base.epochs=2",
        "training.base.learning_rate=1e-4",
        "training.incremental.epochs=0",
        "method=seq_ft",
    ),
)

#: Served: texts retrieve among all slots. Then with the slots of their own task, and with its labels as well.
SERVED = ("method=slm",)
OWN_SLOTS = ("method=slm", "method.slm.task_identity=true")
OWN_LABELS = ("method=slm_ti",)
RATES = "method.slm.learning_rate=1e-3,3e-3,1e-2"
LONGER = ("training.base.epochs=6", "training.incremental.epochs=6")
ALL_TARGETS = "method.slm.targets=[attention_output,query,key,value]"
SLM_GAP = Study(
    given=("experiment=slm/gap",),
    rows={
        "separate": ("method=seq_ft", "task_order=[cl_text_five,single_task]"),
        "separate_longer": ("method=seq_ft", "task_order=[cl_text_five,single_task]", *LONGER),
        **{
            f"{name}{suffix}": (*how, RATES, *steps)
            for suffix, steps in (("", ()), ("_longer", LONGER))
            for name, how in (("served", SERVED), ("own_slots", OWN_SLOTS), ("own_labels", OWN_LABELS))
        },
        **{
            f"{name}_wide": (*how, "method.slm.learning_rate=3e-3", ALL_TARGETS, "method.slm.rank=12,48")
            for name, how in (("served", SERVED), ("own_labels", OWN_LABELS))
        },
        "groups": (*SERVED, "method.slm.learning_rate=3e-3", "method.slm.groups=1,12"),
        "centred": (*SERVED, "method.slm.learning_rate=3e-3", "method.slm.center=first_task,generic"),
    },
)

#: Of all weights, of the 0.1 % that PIECE trains, of normalisation weights, of adapters: three rates each.
WHOLE = "training.base.learning_rate=1e-5,3e-5,1e-4"
FEW = "training.base.learning_rate=3e-4,1e-3,3e-3"
REAL_LANGUAGE = Study(
    given=("experiment=piece/real_language",),
    rows={
        "seq_ft": ("method=seq_ft", WHOLE),
        "piece_s": ("method=piece_s", FEW),
        "layer_norm": ("method=layer_norm", "training.base.learning_rate=1e-3,3e-3,1e-2"),
        "piece_rand": ("method=piece_rand", FEW),
        "piece_f": ("method=piece_f", FEW),
        "seq_lora": ("method=seq_lora", "method.seq_lora.learning_rate=2e-4,1e-3,5e-3"),
        "replay": ("method=replay", WHOLE),
        "o_lora": ("method=o_lora", "method.o_lora.learning_rate=2e-4,1e-3,5e-3"),
        "lwf": ("method=lwf_piece", WHOLE),
        "frozen": ("method=frozen",),
    },
)


def drawn(backbone: str, epochs: int) -> Study:
    """A tiny random model is taught to describe drawn pictures, and then learns to answer questions about them.

    PIECE's share is as many weights as the adapters have: 0.1 % of so small a model are a few dozen.

    Args:
        epochs: until it describes most of what it will.
    """
    return Study(
        given=("experiment=piece/drawn", f"backbone={backbone}"),
        rows={
            "piece_s": ("method=piece_s", "method.piece.fraction=0.05", "training.base.learning_rate=3e-3,1e-2"),
            "seq_lora": ("method=seq_lora", "method.seq_lora.learning_rate=1e-2,3e-2"),
            "replay": ("method=replay", "training.base.learning_rate=1e-3,3e-3"),
            "seq_ft": ("method=seq_ft", "training.base.learning_rate=1e-3,3e-3"),
        },
        base=(
            f"backbone={backbone}",
            "backbone.frozen=[]",  # eyes as well
            "backbone.max_answer_length=80",
            "task_order=drawn_captions",
            f"training.base.epochs={epochs}",
            "training.base.batch_size=32",
            "training.base.learning_rate=5e-3",
            "method=seq_ft",
            "hardware.threads=1",
            "wandb=disabled",
        ),
    )


STUDIES = {
    "far_domains": FAR_DOMAINS,
    "slm_gap": SLM_GAP,
    "real_language": REAL_LANGUAGE,
    "drawn_llava": drawn("tiny_llava", 30),
    "drawn_qwen3_vl": drawn("tiny_qwen3_vl", 15),
}


def run(arguments: Sequence[str]) -> int:
    """One command in a process of its own, on one thread; its exit status."""
    print("python -m cl_runner", shlex.join(arguments), flush=True)
    places = os.pathsep.join([str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    return subprocess.run([sys.executable, "-m", "cl_runner", *arguments], env=environment, check=False).returncode


def bases(name: str) -> Path:
    """The folder of a study's trained bases."""
    return Path("outputs") / f"{name}_base"


def base_line(name: str, seed: int, added: Sequence[str]) -> list[str]:
    """The run that trains a base."""
    return [*STUDIES[name].base, f"seed={seed}", f"root={bases(name)}", *added]


def row_line(name: str, row: str, seed: int, added: Sequence[str]) -> list[str]:
    """The multirun of a row and a seed."""
    study = STUDIES[name]
    begun = [f"backbone.checkpoint=./{bases(name)}/seed{seed}"] if study.base else []
    return ["-m", *study.given, *study.rows[row], *begun, f"seed={seed}", f"root=outputs/{name}", *added]


def train_base(name: str, seed: int, added: Sequence[str]) -> int:
    """Train and export the base of a seed, unless it is there already; the exit status."""
    folder = bases(name) / f"seed{seed}"
    if (folder / "config.json").is_file():
        return 0
    if run(base_line(name, seed, added)):
        return 1
    (trained,) = bases(name).glob(f"*/*/*/seed{seed}-*")
    return run(["snapshot", "export", str(trained), "--after", "base", "--output", str(folder)])


def main() -> int:
    """Run what is missing of a study, or with --show print it; 1 if some command failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--only", metavar="ROWS", help="of these rows, by commas")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--show", action="store_true", help="print the lines, run nothing")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    study = STUDIES[asked.study]
    rows = asked.only.split(",") if asked.only else list(study.rows)
    unknown = [row for row in rows if row not in study.rows]
    if unknown:
        parser.error(f"no row {unknown[0]}: {', '.join(study.rows)}")
    failed = 0
    for seed in map(int, asked.seeds.split(",")):
        if study.base and asked.show:
            print("python -m cl_runner", shlex.join(base_line(asked.study, seed, asked.overrides)))
        elif study.base and train_base(asked.study, seed, asked.overrides):
            return 1
        for row in rows:
            line = row_line(asked.study, row, seed, asked.overrides)
            if asked.show:
                print("python -m cl_runner", shlex.join(line))
            else:
                failed += run(line) != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
