"""What the drills share: runs as processes, where they stand, and what of their ends must be equal bit for bit."""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

#: Runs the command line when its first argument is as-run.
AS_RUN = Path(__file__).with_name("drills.py")
#: What a run prints when it begins something before a task's training.
WORK = re.compile(r"^\S+ \S+ (?:\w+: )?(?!train|evaluate)[a-z][a-z ]* 0/\d+$")
EVALUATION = re.compile(r"^\S+ \S+ (?:\w+: )?evaluate 0/\d+$")
#: What a run imports that takes long.
IMPORTED = (
    "cl_runner.__main__",
    "cl_runner.job",
    "cl_runner.run",
    "cl_runner.ends",
    "cl_runner.compose",
    "cl_runner.planning.plan",
    "cl_runner.planning.begun",
    "cl_runner.report.page",
    "matplotlib.image",
    "torch.distributed",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
)
#: A real encoder at a size that takes well under a minute.
SMALL = (
    "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}, {name: software}]",
    "task_order.base.train=96",
    "task_order.base.test=20",
    "task_order.incremental.train=32",
    "task_order.incremental.test=10",
    "training.base.epochs=1",
    "training.incremental.epochs=3",
    "checkpoint.every_seconds=1",
    "wandb=disabled",
)


def start(root: Path, overrides: list[str]) -> subprocess.Popen[str]:
    """The run as a process of its own."""
    command = [sys.executable, "-m", "cl_runner", *SMALL, *overrides, f"root={root}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the run's end, which must be a good one."""
    shown, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"the run ended with status {process.returncode}:\n{shown}")


def as_run(overrides: list[str]) -> int:
    """The command line, with pictures of one pixel: they would take most of a drill's time."""
    import matplotlib.image
    from matplotlib.figure import Figure

    from cl_runner.__main__ import main as command_line

    Figure.savefig = lambda figure, target, **_: matplotlib.image.imsave(target, [[0.0]])  # type: ignore[method-assign]
    return command_line(overrides)


@dataclass
class Started:
    """A run as this script has started it.

    Attributes:
        own: the processes that it has started: those of the run, or their launcher.
    """

    own: Sequence[subprocess.Popen[bytes] | BaseProcess]

    def statuses(self, wait: float = 0) -> list[int | None]:
        """The exit status of each, None for one that is under way after so many seconds."""
        until = time.perf_counter() + wait
        while True:
            found = [one.exitcode if isinstance(one, BaseProcess) else one.poll() for one in self.own]
            if None not in found or time.perf_counter() >= until:
                return found
            time.sleep(0.01)

    def ended(self) -> bool:
        return None not in self.statuses()

    def all(self) -> list[psutil.Process]:
        """They and what they have started."""
        found = [one for one in map(_alive, (own.pid for own in self.own)) if one is not None]
        for one in list(found):
            with suppress(psutil.NoSuchProcess):
                found += one.children(recursive=True)
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes that compute the run, by their number in it."""
        if all(isinstance(one, BaseProcess) for one in self.own):
            return [one for one in map(_alive, (own.pid for own in self.own)) if one is not None]
        found: list[tuple[int, psutil.Process]] = []
        for one in self.all():
            with suppress(psutil.NoSuchProcess):
                if "as-run" in one.cmdline() and "torch.distributed.run" not in one.cmdline():
                    found.append((int(one.environ().get("RANK", "0")), one))
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _alive(number: int | None) -> psutil.Process | None:
    """A process by its number, if there is one."""
    try:
        return psutil.Process(number)
    except psutil.NoSuchProcess:
        return None


def launched(processes: int, overrides: Sequence[str], printed: Path) -> Started:
    """The command, below torchrun if it is to be several processes; what they print is added to a file."""
    begin = [sys.executable]
    if processes > 1:
        begin += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with printed.open("a", encoding="utf-8") as file:
        command = [*begin, str(AS_RUN), "as-run", *overrides]
        return Started([subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)])


def forked(processes: int, overrides: Sequence[str], printed: Path) -> Started:
    """The same without the time that it takes to import."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}

    def run(rank: int) -> None:
        if processes > 1:
            os.environ.update(group, RANK=str(rank), LOCAL_RANK=str(rank))
        with printed.open("a", encoding="utf-8") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            sys.stdout = sys.stderr = file
            sys.exit(as_run(list(overrides)))

    context = multiprocessing.get_context("fork")
    own = [context.Process(target=run, args=(rank,)) for rank in range(processes)]
    for one in own:
        one.start()
    return Started(own)


def import_all() -> None:
    """What runs import, so that those that are forked need not."""
    for name in IMPORTED:
        importlib.import_module(name)


class Watched:
    """A run that is under way, as its folder tells.

    Attributes:
        work, evaluations, steps: how often it has begun work before a task, has begun an evaluation, has trained.
        first, last: seconds from the start to the first line of metrics.jsonl, and to its newest one.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.began = root, time.perf_counter()
        self.work = self.evaluations = self.steps = 0
        self.first = self.last = 0.0
        self._sizes = (0, 0)
        self.folder: Path | None = None

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def look(self) -> None:
        """Read what is new."""
        if self.folder is None:
            self.folder = next((path.parent for path in self.root.rglob("log.txt")), None)
            if self.folder is None:
                return
        log, metrics = self.folder / "log.txt", self.folder / "metrics.jsonl"
        sizes = log.stat().st_size, metrics.stat().st_size if metrics.is_file() else 0
        if sizes == self._sizes:
            return
        if sizes[1] != self._sizes[1]:
            self.first, self.last = self.first or self.seconds, self.seconds
            self.steps = metrics.read_text(encoding="utf-8").count('"kind": "train"')
        self._sizes = sizes
        lines = log.read_text(encoding="utf-8").splitlines()
        self.work = sum(bool(WORK.match(line)) for line in lines)
        self.evaluations = sum(bool(EVALUATION.match(line)) for line in lines)

    def saves(self) -> bool:
        """Whether it is writing a file that is not in its place yet."""
        return self.folder is not None and any(self.folder.rglob("*.tmp"))


def end_of(root: Path) -> dict[str, str]:
    """Hashes of what must be equal, by name: weights, matrices, predictions, snapshots, all numbers but the speed."""
    (folder,) = (path.parent for path in root.rglob("COMPLETED"))
    end = {"weights": json.loads((folder / "summary.json").read_text())["weights_sha256"]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = json.dumps([{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines])
    end["metrics"] = hashlib.sha256(numbers.encode()).hexdigest()
    files = [folder / "accuracy.csv", folder / "forgetting.csv"]
    files += sorted(folder.glob("predictions/*")) + sorted(folder.glob("snapshots/*"))
    return end | {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def place_of(root: Path) -> str:
    """Where the killed run was, as its log says."""
    logs = list(root.rglob("log.txt"))
    lines = logs[0].read_text().splitlines() if logs else []
    return lines[-1][20:] if lines else "starting"
