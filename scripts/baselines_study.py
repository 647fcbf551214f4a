"""The study of all baselines: two tries of one number for each method, then its runs at the better one.

    python scripts/baselines_study.py cl_text data_root=DATA            # tries, then seed 1, then seeds 2 and 3
    python scripts/baselines_study.py cl_text data_root=DATA --show     # what was chosen, and the lines of the runs
    python scripts/baselines_study.py trace_english data_root=DATA backbone.checkpoint=FOLDER
    python scripts/baselines_study.py slm_bert data_root=DATA --seeds 2,3  # SLM's table of BERT
    python scripts/baselines_study.py slm_t5 data_root=DATA backbone.checkpoint=FOLDER  # of few-shot T5

The number is the learning rate of what a method trains or, of one that holds what is old by a penalty, its strength:
the preset's and a much larger one. It is chosen on seed 0 and the first order, by validation examples of all tasks
after the last one: their mean accuracy, or of language models their mean loss; of equal ones the first. Seed 0 counts
in no result. The same line goes on after an interruption: finished runs are skipped. Overrides that are added reach
every run.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from studies import run

from cl_runner.choosing.choice import Criterion, choose, pick
from cl_runner.choosing.record import write_record
from cl_runner.report.folder import Run, find_runs
from cl_runner.report.grouping import identity

TOP = Path(__file__).resolve().parents[1]
RATE = "training.base.learning_rate"
Tries = tuple[float, float]
#: Of memories: as many examples of each task, and of all earlier ones together.
Sizes = tuple[int, int]
#: Prompts move little in the steps that weights need.
LONGER = ("training.base.epochs=6", "training.incremental.epochs=6")


@dataclass(frozen=True)
class Row:
    """A method, the number that is chosen for it, what it is given besides."""

    method: str
    key: str
    tries: Tries
    given: tuple[str, ...] = ()
    bound: str = ""  # joint or single_task, which is added to the order

    def order(self, name: str) -> str:
        """The choice of an order, with the bound."""
        return f"[{name},{self.bound}]" if self.bound else name


@dataclass(frozen=True)
class Study:
    """Rows by name in the order of running, and the orders they run on.

    Studies of one experiment share their tries.
    """

    experiment: str
    orders: tuple[str, ...]
    rows: dict[str, Row]
    score: Criterion  # by which a try is chosen
    of_tries: tuple[str, ...] = ()  # overrides
    name: str = ""  # of its runs' folder, where another study has the experiment's

    @property
    def root(self) -> Path:
        """Of the runs."""
        return Path("outputs") / f"baselines_{self.name or self.experiment}"

    @property
    def tried(self) -> Path:
        """Of the tries."""
        return Path("outputs") / f"baselines_{self.experiment}_tries"


def rows(
    whole: Tries, few: Tries, adapters: Tries, prompts: Tries, head: Tries, memory: Sizes, first_task: str
) -> dict[str, Row]:
    """What both studies run.

    Args:
        whole, few, adapters, prompts, head: learning rates where all weights train, a small part of them, low-rank
            adapters, vectors before texts, the head alone.
        first_task: of methods that train a part and no head: encoders need `whole` for a new one.
    """
    each, together = memory
    piece, pe = "method.piece.learning_rate", "method.pe.learning_rate"
    first = (f"method.piece.first_task={first_task}",)
    budget = f"method.opr.budget={together}"
    return {
        "seq_ft": Row("seq_ft", RATE, whole),
        "joint": Row("seq_ft", RATE, whole, bound="joint"),
        "single_task": Row("seq_ft", RATE, whole, bound="single_task"),
        "replay": Row("replay", RATE, whole),
        "frozen": Row("frozen", RATE, whole),
        "ewc": Row("ewc", "method.ewc.strength", (0.35, 3.5e4)),
        "lwf": Row("lwf", "method.lwf.strength", (1.0, 10.0)),
        "gem": Row("gem", RATE, whole, (f"method.gem.size={each}",)),
        "agem": Row("agem", RATE, whole, (f"method.agem.size={each}",)),
        "piece_s": Row("piece_s", piece, few, first),
        "opr": Row("opr", RATE, whole, (budget,)),
        "pe": Row("pe", pe, few),
        "replay_online": Row("replay_online", RATE, whole, (f"method.replay_online.size={together}",)),
        "der": Row("der", "method.der.alpha", (0.5, 0.1), (f"method.der.size={together}",)),
        "replay+piece_s": Row("[replay,piece_s]", piece, few, first),
        "opr+piece_s": Row("[opr,piece_s]", piece, few, (*first, budget)),
        "multi_task": Row("multi_task", RATE, whole),
        "mas": Row("mas", "method.mas.strength", (1.0, 100.0)),
        "si": Row("si", "method.si.strength", (0.1, 1e4)),
        "ewc_online": Row("ewc_online", "method.ewc.strength", (0.35, 3.5e4)),
        "l2": Row("l2", "method.l2.strength", (0.01, 1.0)),
        "lwf_piece": Row("lwf_piece", "method.lwf.strength", (0.5, 5.0)),
        "masked_kl": Row("masked_kl", "method.masked_kl.strength", (1.0, 10.0)),
        "opr_sc": Row("opr_sc", RATE, whole, (budget,)),
        "ogd": Row("ogd", RATE, whole),
        "migu": Row("migu", RATE, whole),
        "migu_piece": Row("migu_piece", RATE, whole),
        "head_only": Row("head_only", RATE, head, ("training.rates=null",)),
        "last_layers": Row("last_layers", RATE, whole),
        "layer_norm": Row(
            "layer_norm", "method.layer_norm.learning_rate", few, (f"method.layer_norm.first_task={first_task}",)
        ),
        "piece_f": Row("piece_f", piece, few, first),
        "piece_rand": Row("piece_rand", piece, few, first),
        "magnitude_largest": Row("magnitude_largest", piece, few, first),
        "magnitude_smallest": Row("magnitude_smallest", pe, few),
        "pe_rand": Row("pe_rand", pe, few),
        "pe_select": Row("pe_select", pe, few),
        "seq_lora": Row("seq_lora", "method.seq_lora.learning_rate", adapters),
        "inc_lora": Row("inc_lora", "method.inc_lora.learning_rate", adapters),
        "o_lora": Row("o_lora", "method.o_lora.learning_rate", adapters),
        "lora": Row("lora", "method.lora.learning_rate", adapters),
        "osf": Row("osf", "method.osf.learning_rate", whole),
        "lwf+seq_lora": Row("[lwf,seq_lora]", "method.seq_lora.learning_rate", adapters),
        "ewc+o_lora": Row("[ewc,o_lora]", "method.o_lora.learning_rate", adapters),
        "prompt_tuning": Row("prompt_tuning", "method.prompt_tuning.learning_rate", prompts, LONGER),
        "prog_prompt": Row("prog_prompt", "method.prog_prompt.learning_rate", prompts, LONGER),
        "prompt_per_task": Row("prompt_per_task", "method.prog_prompt.learning_rate", prompts, LONGER),
        "l2p": Row("l2p", "method.l2p.learning_rate", prompts, LONGER),
        "ewc_lwf": Row("ewc_lwf", "method.lwf.strength", (1.0, 10.0)),
    }


#: In percent, and in nats per token: of all tasks after the last one.
mean_accuracy, mean_loss = Criterion(), Criterion("task_loss")


ENCODERS = Study(
    "cl_text",
    ("cl_text_4", "cl_text_6"),
    {
        **rows((1e-4, 3e-5), (3e-3, 1e-2), (1e-3, 3e-3), (1e-2, 1e-1), (1e-2, 3e-2), (32, 96), "whole"),
        "bitfit": Row("bitfit", "method.parts.learning_rate", (3e-3, 1e-2)),
        "slm": Row("slm", "method.slm.learning_rate", (1e-3, 3e-3)),
        "slm_ti": Row("slm_ti", "method.slm.learning_rate", (1e-3, 3e-3)),
    },
    mean_accuracy,
)
DECODERS = Study(
    "trace_english",
    ("trace_english",),
    {
        **rows((1e-3, 3e-3), (1e-2, 3e-2), (3e-3, 1e-2), (3e-1, 1.0), (1e-3, 3e-3), (10, 30), "selected"),
        "icl": Row("icl", "method.icl.shots", (1, 6)),
        "first_layers": Row("first_layers", RATE, (1e-3, 3e-3)),
        "lamol": Row("lamol", RATE, (1e-3, 3e-3)),
    },
    mean_loss,
    ("probe.task_loss.split=validation",),
)
#: SLM's table of BERT: the same cut on four orders. 40 steps a task are few for what comes every 100 or every 10.
SLM_BERT = Study(
    "cl_text",
    ("cl_text_4", "cl_text_5", "cl_text_6", "cl_text_7"),
    {
        **{name: ENCODERS.rows[name] for name in ("seq_ft", "replay")},
        "mbpa": Row(
            "mbpa",
            "method.mbpa.local_rate",
            (2e-3, 5e-4),
            ("method.mbpa.every=4", "method.mbpa.neighbours=8", "method.mbpa.local_steps=5"),
        ),
        "idbr": Row(
            "idbr",
            RATE,
            (1e-4, 3e-5),
            ("method.idbr.share=0.1", "method.idbr.every=4", "training.rates={classifier.*: 3.0e-3}"),
        ),
        **{name: ENCODERS.rows[name] for name in ("prog_prompt", "slm", "slm_ti", "single_task")},
    },
    mean_accuracy,
    name="slm_bert",
)
#: SLM's table of few-shot T5. Keys learn as in the results of `slm_few_shot`; LFPT5 has a shorter prompt, fewer tries.
SLM_T5 = Study(
    "few_shot",
    ("few_shot_1",),
    {
        "seq_ft": Row("seq_ft", RATE, (1e-3, 3e-3)),
        **{name: dataclasses.replace(DECODERS.rows[name], given=()) for name in ("prompt_tuning", "prog_prompt")},
        "ewc": Row("ewc", "method.ewc.strength", (0.35, 3.5e4)),
        "lfpt5": Row(
            "lfpt5",
            "method.lfpt5.learning_rate",
            (5e-1, 5e-2),
            ("method.lfpt5.length=50", "method.lfpt5.tries=32", "method.lfpt5.max_new_tokens=64"),
        ),
        "slm": Row(
            "slm",
            "method.slm.learning_rate",
            (1e-3, 3e-3),
            (
                "method.slm.key_epochs=10",
                "method.slm.key_learning_rate=1e-2",
                "method.slm.key_decay_every=6",
                "method.slm.targets=[attention_output,query,key,value]",
                "method.slm.rank=16",
            ),
        ),
        "single_task": Row("seq_ft", RATE, (1e-3, 3e-3), bound="single_task"),
    },
    mean_accuracy,
    name="slm_t5",
)
STUDIES = {study.name or study.experiment: study for study in (ENCODERS, DECODERS, SLM_BERT, SLM_T5)}


def line(study: Study, row: Row, asked: Sequence[str]) -> list[str]:
    """A multirun of a row: what every run of it has, and what is asked besides."""
    return ["-m", f"experiment=baselines/{study.experiment}", f"method={row.method}", *row.given, *asked]


def tries_line(study: Study, row: Row, added: Sequence[str]) -> list[str]:
    """The tries of a row, scored on validation examples."""
    tries = f"{row.key}={','.join(f'{value:g}' for value in row.tries)}"
    place = ["seed=0", "evaluation.split=validation", *study.of_tries, f"root={study.tried}"]
    return line(study, row, [tries, f"task_order={row.order(study.orders[0])}", *place, *added])


def runs_line(study: Study, row: Row, value: float, seeds: str, added: Sequence[str]) -> list[str]:
    """The runs of a row at the chosen value."""
    orders = ",".join(row.order(name) for name in study.orders)
    chosen = [f"{row.key}={value:g}", f"task_order={orders}", f"seed={seeds}", f"root={study.root}"]
    return line(study, row, [*chosen, *added])


def chosen(study: Study, row: Row) -> tuple[float, dict[float, float]] | None:
    """The value with the best score, and the score of each, more being better; None while a try is missing."""
    scores = {float(identity(run)[row.key]): study.score(run) for run in completed_tries(study, row)}
    if set(row.tries) - set(scores):
        return None
    found = {value: scores[value] for value in row.tries}
    return pick(found), found


def completed_tries(study: Study, row: Row) -> list[Run]:
    """The completed tries of a row."""
    root = study.tried / "+".join([study.orders[0], *([row.bound] if row.bound else [])])
    method = row.method.strip("[]").replace(",", "+")
    folders = [folder / method for folder in sorted(root.glob("*")) if (folder / method).is_dir()]
    return find_runs(folders)[0] if folders else []


def record(study: Study, rows: Collection[Row]) -> None:
    """chosen.json beside the runs, of the rows whose tries are all there: reports of the runs name it."""
    places = {(row.key, value): place for row in rows for place, value in enumerate(row.tries)}
    done = [run for row in rows if chosen(study, row) is not None for run in completed_tries(study, row)]
    if done:
        found = choose(done, study.score, order=lambda values: [places.get(pair, -1) for pair in values.items()])
        write_record(study.root, found, study.score)


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
        if not asked.show:
            record(study, study.rows.values())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
