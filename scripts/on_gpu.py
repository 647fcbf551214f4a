"""Every method on a GPU beside the same run on the CPU: what it learns, selects and answers.

    python scripts/on_gpu.py [--only pe,slm] [--every-family true] [--workers 8] [--output FILE]

For a machine with a GPU, as tests need none. Each preset of conf/method runs on a tiny random backbone of a family that
it claims, in fp32 on both; then some runs of two processes beside one (by gloo on one GPU, as NCCL wants a GPU for
each; where there are two, with weights in parts as well), and what changes where things lie, beside the same run
without. Told of each: the largest difference of two losses of a step by their size, whether the selected entries are
the same set, and the share of equal answers. Exit status 1 if a run fails on the GPU that does not on the CPU.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP), str(TOP / "scripts"), str(TOP / "scripts" / "bench")]
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from golden_rows import changes_of, losses_of, once, write_encoder, write_pictures  # noqa: E402
from golden_table import RETRIEVAL, SEEING, SMALL  # noqa: E402
from harness import arguments, keep, show  # noqa: E402

#: Tiny backbones by the kind of family that a method claims.
BACKBONES = {"causal": ("llama", "gpt2"), "classifier": ("bert",), "seq2seq": ("t5",), "image_text": ("llava",)}
#: In SMALL's place: rates are the methods' own, and drawn pictures of reports take most of a run's time.
OWN = ("backbone.max_length=48", "evaluation.batch_size=8")
PASSES = ("training.base.micro_batch=2", "training.incremental.micro_batch=2", "backbone.dropout=0.1")
SHARD, ALWAYS = "hardware.shard=true", "hardware.shard=always"
#: What runs as two processes: name -> (method and backbone, what else the two are told).
TWO: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pe": (("method=pe", "backbone=tiny_bert", *PASSES), ()),
    "piece_s": (("method=piece_s", "backbone=tiny_llama", *PASSES), ()),
    "gem": (("method=gem", "backbone=tiny_bert", *PASSES), ()),
    "slm": (("method=slm", "backbone=tiny_t5", *PASSES), ()),
    "seq_ft in parts": (("method=seq_ft", "backbone=tiny_llama", *PASSES), (SHARD,)),
    "piece_s in parts": (("method=piece_s", "backbone=tiny_gpt2", *PASSES), (SHARD,)),
    "ewc_lwf in parts": (("method=ewc_lwf", "backbone=tiny_bert", *PASSES), (SHARD,)),
    "piece_s always in parts": (("method=piece_s", "backbone=tiny_gpt2", *PASSES), (ALWAYS,)),
    "ewc_online always in parts": (("method=ewc_online", "backbone=tiny_llama", *PASSES), (ALWAYS,)),
}
#: What changes where things lie, and no result: beside the same run without.
ELSEWHERE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "offload": (("method=seq_ft", "backbone=tiny_llama", "backbone.dtype=bfloat16"), ("hardware.offload=optimizer",)),
    "checkpointing": (("method=piece_s", "backbone=tiny_llama"), ("hardware.gradient_checkpointing=true",)),
    "sums in main memory": (("method=piece_s", "backbone=tiny_t5"), ("importance.accumulate=cpu",)),
    "importance in passes": (("method=pe", "backbone=tiny_bert"), ("importance.passes=2",)),
}


def line_of(chosen: Sequence[str], place: Path, hardware: str, root: Path) -> list[str]:
    """A whole command line: what is chosen, tiny."""
    said = dict(o.partition("=")[::2] for o in (*SMALL, *OWN) if "learning_rate" not in o)
    if "backbone=tiny_llava" in chosen:
        said |= dict(o.partition("=")[::2] for o in SEEING) | {"data_root": str(once(place / "seen", write_pictures))}
    if any(o.startswith("method=slm") for o in chosen):
        encoder = once(place / "encoder", write_encoder) / "whole"
        said |= dict(
            o.replace("{encoder}", str(encoder)).partition("=")[::2] for o in RETRIEVAL if "learning_rate" not in o
        )
    said |= dict(o.partition("=")[::2] for o in chosen)
    return [*(f"{key}={value}" for key, value in said.items()), f"hardware={hardware}", f"root={root}"]


def no_plan(*asked: object) -> NoReturn:
    raise ValueError("it takes most of a tiny run's time")


def ended(line: Sequence[str], whole: bool) -> tuple[Path | None, str]:
    """The folder of a run that ended well, else None and its last words.

    Args:
        whole: with its plan and its report, which take most of a tiny run's time.
    """
    from matplotlib.figure import Figure

    from cl_runner.__main__ import main as command

    said = io.StringIO()
    with contextlib.ExitStack() as kept, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        kept.enter_context(mock.patch.object(Figure, "savefig", lambda figure, target, **_: Path(target).touch()))
        if not whole:
            kept.enter_context(mock.patch("cl_runner.planning.begun.plan_run", no_plan))
            kept.enter_context(mock.patch("cl_runner.report.page.write_run_report", lambda folder: folder))
        try:
            status = command(list(line))
        except Exception as error:  # told as a row: the others run
            import traceback

            status, _ = 1, said.write("\n".join(traceback.format_exception(error)[-4:]))
    root = Path(line[-1].partition("=")[2])
    folders = [path.parent for path in root.rglob("COMPLETED")]
    return (folders[0], "") if status == 0 and folders else (None, said.getvalue()[-1500:])


def answers_of(folder: Path) -> list[str]:
    """All predictions, in order."""
    paths = sorted((folder / "predictions").glob("*.jsonl"))
    return [str(json.loads(line)["prediction"]) for path in paths for line in path.read_text("utf-8").splitlines()]


def beside(left: Path, right: Path) -> dict[str, Any]:
    """How far two runs are apart."""
    losses = list(zip(losses_of(left), losses_of(right), strict=True))
    answers = list(zip(answers_of(left), answers_of(right), strict=True))
    masks = [
        {task: {name: places for name, (_, places) in found.items()} for task, found in changes_of(one).items()}
        for one in (left, right)
    ]
    summary = json.loads((right / "summary.json").read_text(encoding="utf-8"))
    return {
        "steps": len(losses),
        "loss_difference": max((abs(a - b) / max(abs(a), 1e-6) for a, b in losses), default=0.0),
        "first_loss_difference": max((abs(a - b) / max(abs(a), 1e-6) for a, b in losses[:1]), default=0.0),
        "same_selection": masks[0] == masks[1],
        "equal_answers": sum(a == b for a, b in answers) / max(1, len(answers)),
        "peak_mib": summary["peak_memory_mib"],
    }


def two_processes(line: Sequence[str]) -> tuple[Path | None, str]:
    """The run of two processes by torchrun: its folder, or None and what was said."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cl_runner"]
    told = subprocess.run([*start, *line], capture_output=True, text=True, check=False, cwd=TOP)
    folders = [path.parent for path in Path(line[-1].partition("=")[2]).rglob("COMPLETED")]
    return (folders[0], "") if told.returncode == 0 and folders else (None, (told.stdout + told.stderr)[-2500:])


def one(job: tuple[str, str, tuple[str, ...], tuple[str, ...]]) -> dict[str, Any]:
    """A row: two runs and what is between them."""
    kind, name, chosen, more = job
    began = time.perf_counter()
    place = Path(tempfile.gettempdir()) / f"on_gpu_{os.getpid()}"
    root = place / name.replace(" ", "_")
    root.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"kind": kind, "name": name}
    first = line_of(chosen, place, "cpu" if kind == "gpu" else "gpu", root / "one")
    left, said = ended(first, whole=False)
    if left is None:
        return row | {"refused": said.strip().splitlines()[-1][-300:] if said.strip() else "", "said": said}
    second = line_of((*chosen, *more), place, "gpu", root / "other")
    right, said = two_processes(second) if kind == "two processes" else ended(second, whole=kind == "elsewhere")
    if right is None:
        return row | {"failed": said}
    return row | beside(left, right) | {"seconds": time.perf_counter() - began}


def jobs(only: Sequence[str], every_family: bool) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """(kind, name, what is chosen, what the other run is told) of all rows."""
    import torch

    from cl_runner.groups import nodes_of, options
    from cl_runner.parts import method_spec

    found: list[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = []
    for number, method in enumerate(options("method")):
        claims = [method_spec(node).families for node in nodes_of(method)]
        claimed = [
            family
            for kind, families in BACKBONES.items()
            for family in families
            if all(kind in claim for claim in claims)
        ]
        for family in claimed if every_family else claimed[number % len(claimed) :][:1]:
            found.append(("gpu", f"{method}-{family}", (f"method={method}", f"backbone=tiny_{family}"), ()))
    several = torch.cuda.device_count() > 1
    found += [("two processes", name, *of) for name, of in TWO.items() if several or "in parts" not in name]
    found += [("elsewhere", name, *of) for name, of in ELSEWHERE.items()]
    return [job for job in found if not only or any(job[1].startswith(part) for part in only)]


def main() -> int:
    given = arguments(__doc__ or "", only="", every_family=False, workers=8)
    asked = jobs([part for part in given.only.split(",") if part], given.every_family)
    import sentence_transformers  # noqa: F401  # once, before the workers are made
    import transformers  # noqa: F401

    import cl_runner.__main__
    import cl_runner.run  # noqa: F401

    with multiprocessing.get_context("fork").Pool(given.workers, maxtasksperchild=None) as pool:
        rows = []
        for row in pool.imap_unordered(one, asked):
            rows.append(row)
            if "failed" in row:
                print(f"== {row['kind']}, {row['name']} failed:\n{row['failed']}", flush=True)
    rows.sort(key=lambda row: (row["kind"], row["name"]))
    done = [row for row in rows if "steps" in row]
    shown = [
        [
            row["kind"],
            row["name"],
            f"{row['loss_difference']:.1e}",
            "same" if row["same_selection"] else "other",
            f"{row['equal_answers']:.3f}",
        ]
        for row in done
    ]
    show("on a GPU", ("beside", "method and backbone", "losses", "selection", "equal answers"), shown)
    for row in rows:
        if "refused" in row:
            print(f"not run on the CPU either: {row['name']}: {row['refused']}")
    failed = [row["name"] for row in rows if "failed" in row]
    print(f"{len(done)} rows ended; {len(failed)} failed on the GPU: {', '.join(failed)}")
    keep(given.output, {"rows": [{k: v for k, v in row.items() if k != "said"} for row in rows]})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
