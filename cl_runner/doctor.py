"""The command `doctor`: whether this machine can run what it is asked to, in a form to paste into a bug report."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import util
from pathlib import Path

import cl_runner
from cl_runner.arguments import Parser
from cl_runner.overrides import COMMAND
from cl_runner.plain import plain_lines

#: A small run of the default methods: three tasks, a random model.
RUN = (
    "backbone=tiny_bert",
    "task_order=reviews",
    "task_order.tasks=[{name: base, domains: [novels]}, {name: kettles}, {name: software}]",
    "task_order.base.train=32",
    "task_order.base.test=10",
    "task_order.incremental.train=16",
    "task_order.incremental.test=10",
    "training.base.epochs=1",
    "training.incremental.epochs=1",
    "wandb=disabled",
)
#: What an installation may have beside what it needs, by the module that tells.
EXTRAS = {
    "lm-eval": "lm_eval",
    "bertscore": "bert_score",
    "faiss": "faiss",
    "optuna": "optuna",
    "datasets": "datasets",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
}
#: Less free disk than this is said.
FEW_BYTES = 5_000_000_000


def _parser() -> Parser:
    parser = Parser(
        prog=f"{COMMAND} doctor",
        description="Versions, devices, memory, disk, locks, offline data, and a run of some seconds.",
        allow_abbrev=False,
    )
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="where runs will write (outputs)")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where their data lie (data)")
    parser.add_argument("--without-run", action="store_true", help="leave the small run out")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 all is well, 1 something is not, 2 after one message for a wrong request."""
    try:
        asked = _parser().parse_args(list(arguments))
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    return examine(asked)


def examine(asked: argparse.Namespace) -> int:
    """Print every finding; the exit status."""
    bad = 0
    for check in _checks(asked):
        try:
            for well, line in check():
                bad += not well
                print(f"{'ok  ' if well else 'BAD '} {line}", flush=True)
        except Exception as error:  # a doctor does not fall ill
            bad += 1
            print(f"BAD  {check.__name__.strip('_')}: {type(error).__name__}: {error}", flush=True)
    print(f"{bad} of these need attention." if bad else "All is well.")
    return int(bad > 0)


Finding = tuple[bool, str]


def _checks(asked: argparse.Namespace) -> Iterator[Callable[[], Iterator[Finding]]]:
    def root() -> Iterator[Finding]:
        return _root(asked.root)

    def data() -> Iterator[Finding]:
        there = asked.data_root.is_dir()
        yield True, f"data root {asked.data_root}: {'there' if there else 'not there; generated reviews need none'}"

    yield from (_versions, _devices, root, data, _offline, _cluster)
    if not asked.without_run:
        yield _small_run


def _versions() -> Iterator[Finding]:
    from cl_runner.tracking.environment import describe_environment

    said = describe_environment("")
    packages = ", ".join(f"{name} {version}" for name, version in said["packages"].items())
    git = said["git"]
    commit = f", commit {git['commit'][:12]}{' and changes' if git['dirty'] else ''}" if git else ""
    yield True, f"cl_runner {cl_runner.__version__} (code {said['code'][:12]}{commit}), Python {said['python']}"
    yield True, f"{said['platform']}: {said['hardware']['cpu']}, {said['hardware']['cores']} cores"
    yield True, packages
    extras = [name for name, module in EXTRAS.items() if util.find_spec(module) is not None]
    yield True, f"beside them: {', '.join(extras) or 'none of ' + ', '.join(EXTRAS)}"


def _devices() -> Iterator[Finding]:
    import torch

    from cl_runner.planning.fitting import free_bytes
    from cl_runner.planning.memory import gigabytes
    from cl_runner.tracking.environment import has_bf16

    known = has_bf16()
    bf16 = {True: "with", False: "without", None: "it does not say whether with"}[known]
    yield True, f"memory: {gigabytes(free_bytes('cpu') or 0)} free; {bf16} instructions for bfloat16"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        nothing = "no GPU: runs compute on the CPU"
        yield True, f"{nothing} (torch is built for CUDA {built}, and sees none)" if built else nothing
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        said = f"GPU {number}: {torch.cuda.get_device_name(number)}, {gigabytes(free)} of {gigabytes(total)} free"
        there = torch.ones(64, 64, device=f"cuda:{number}")
        yield bool((there @ there)[0, 0] == 64), said


def _root(root: Path) -> Iterator[Finding]:
    from cl_runner.lock import HELD, locked
    from cl_runner.planning.memory import gigabytes

    above = next(place for place in (root.absolute(), *root.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(above).free
    yield free >= FEW_BYTES, f"disk of {root}: {gigabytes(free)} free"
    with tempfile.TemporaryDirectory(dir=above, prefix=".doctor_") as folder, locked(Path(folder)) as by_system:
        without = f"locks: this file system has none; a run holds the file state/{HELD} instead"
        yield True, "locks: there, so that no run is started twice" if by_system else without


def _offline() -> Iterator[Finding]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    held = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    names = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_MODE") if os.environ.get(name)]
    said = f" ({', '.join(f'{name}={os.environ[name]}' for name in names)})" if names else ""
    yield True, f"hub: {'no network is asked' if constants.HF_HUB_OFFLINE else 'the network may be asked'}{said}"
    yield True, f"models in {cache}: {held}"


def _cluster() -> Iterator[Finding]:
    from cl_runner.distributed import launched

    found = [name for name in ("sbatch", "squeue", "sacct", "scontrol") if shutil.which(name)]
    needed = {"sbatch", "squeue", "scontrol"}
    if found:
        missing = sorted(needed - set(found))
        yield not missing, f"SLURM: {', '.join(found)}" + (f"; without {', '.join(missing)}" if missing else "")
    else:
        yield True, "SLURM: none"
    _, size, _ = launched(os.environ)
    yield True, f"processes of one run here: {size}"


def _small_run() -> Iterator[Finding]:
    from cl_runner.compose import compose
    from cl_runner.job import run_request

    with tempfile.TemporaryDirectory(prefix="doctor_") as folder:
        began, said = time.perf_counter(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = run_request(compose([*RUN, f"root={folder}"]))
        seconds = time.perf_counter() - began
    lines = "" if status == 0 else "\n" + "\n".join(said.getvalue().splitlines()[-12:])
    yield status == 0, f"a run of three small tasks: {seconds:.0f} s, exit status {status}{lines}"
