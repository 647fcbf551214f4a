"""A submitted sweep on disk: its jobs, what was submitted, and what its jobs said when they began and ended.

<root>/sweeps/<name>/sweep.json      the line that was typed, the jobs, what was submitted when
                     code/<digest>/  the program and the configuration as they were then
                     jobs/<n>.jsonl  a line when job n begins and one when it ends, each time it is tried
                     logs/           what the jobs print
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cl_runner.compose import Request
from cl_runner.config import Slurm
from cl_runner.digests import replace_file
from cl_runner.overrides import COMMAND, quoted
from cl_runner.sweeps.devices import count_of
from cl_runner.sweeps.jobs import varied_of

MANIFEST = "sweep.json"


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        folder: of the run, below the folder where the sweep was submitted if the root is.
        varied: the overrides that not all jobs have.
        slurm: what it asks of a cluster; None = it runs on the machine where it is submitted.
    """

    overrides: tuple[str, ...]
    folder: str
    varied: str
    slurm: Slurm | None = None


@dataclass(frozen=True)
class Submission:
    """Jobs that were given to SLURM as one array, or to a worker of this machine.

    Attributes:
        id: SLURM's number of the array, or of the worker's process as `host:pid`.
        jobs: their numbers in the sweep, by their place in the array.
        time: when, in seconds since 1970.
    """

    id: str
    jobs: tuple[int, ...]
    time: float

    @property
    def here(self) -> bool:
        """Whether a worker has them; SLURM's numbers have no colon."""
        return ":" in self.id


@dataclass(frozen=True)
class Attempt:
    """One try of a job, as its process wrote it.

    Attributes:
        place: SLURM's number of the job, or `host:pid` of its process.
        ended: None while it runs, and for ever if it was killed.
        status: its exit status.
        requeued: it gave itself back to the queue.
        saved: what told its saved state when it ended, if it was interrupted; None = nothing was saved.
    """

    place: str
    log: str
    begun: float
    ended: float | None = None
    status: int | None = None
    requeued: bool = False
    saved: str | None = None


@dataclass
class Sweep:
    """What sweep.json holds.

    Attributes:
        path: the sweep's folder.
        typed: the overrides of the line that was typed.
        cwd: where it was typed; jobs run there.
        code: the copy of the program that jobs run which are submitted from now on, below `path`.
    """

    path: Path
    typed: tuple[str, ...]
    cwd: str
    jobs: tuple[Job, ...]
    code: str = ""
    processes: int = 1
    on_error: str = "continue"
    submissions: list[Submission] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As in W&B."""
        return self.path.name

    def run_folder(self, number: int) -> Path:
        """Where a job's run lies."""
        return Path(self.cwd) / self.jobs[number].folder

    def save(self) -> None:
        """Write sweep.json in one step."""
        content = dataclasses.asdict(self)
        del content["path"]
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, default=Slurm.model_dump)
        replace_file(self.path / MANIFEST, text + "\n")

    def add(self, submission: Submission) -> None:
        """Note what was submitted, before anything else is."""
        self.submissions.append(submission)
        self.save()

    def line(self, command: str, *more: str) -> str:
        """A command about this sweep, as it is typed."""
        return " ".join([COMMAND, command, quoted(os.path.relpath(self.path)), *more])

    def attempts(self, number: int) -> list[Attempt]:
        """What a job's processes wrote, in their order."""
        path = self.path / "jobs" / f"{number}.jsonl"
        found: list[Attempt] = []
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            try:
                content = json.loads(line)
            except ValueError:
                continue  # a line that a killed process did not finish
            if "begun" in content:
                found.append(Attempt(**content))
            elif found:
                found[-1] = dataclasses.replace(found[-1], **content)
        return found

    def note(self, number: int, **content: Any) -> None:
        """A line about a job, which is on the disk when this returns."""
        path = self.path / "jobs" / f"{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def begin(self, number: int, place: str, log: str) -> None:
        """A job's process begins."""
        self.note(number, place=place, log=log, begun=time.time())

    def end(self, number: int, status: int, requeued: bool = False, saved: str | None = None) -> None:
        """It ends."""
        self.note(number, ended=time.time(), status=status, requeued=requeued, saved=saved)


def place_of(pid: int) -> str:
    """A process of this machine, as `host:pid`."""
    return f"{socket.gethostname()}:{pid}"


def made(requests: Sequence[Request], typed: Sequence[str]) -> Sweep:
    """The sweep of these jobs, not yet written."""
    first = requests[0]
    assert first.sweep is not None
    jobs = [
        Job(request.overrides, str(request.folder), varied, request.config.hardware.slurm)
        for request, varied in zip(requests, varied_of(requests), strict=True)
    ]
    settings = first.config.sweep
    return Sweep(
        Path(first.config.root) / "sweeps" / first.sweep,
        tuple(typed),
        os.getcwd(),
        tuple(jobs),
        processes=count_of(settings.processes),
        on_error=settings.on_error,
    )


def load(path: Path) -> Sweep:
    """A sweep of a folder.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise ValueError(f"{path} is no submitted sweep: it has no {MANIFEST}. See which there are: {COMMAND} status")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        jobs = tuple(
            Job(tuple(one["overrides"]), one["folder"], one["varied"], one["slurm"] and Slurm(**one["slurm"]))
            for one in content.pop("jobs")
        )
        given = [Submission(one["id"], tuple(one["jobs"]), one["time"]) for one in content.pop("submissions")]
        typed = tuple(content.pop("typed"))
        return Sweep(path=path, typed=typed, jobs=jobs, submissions=given, **content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}). Submit the sweep again: it goes on where it is") from None
