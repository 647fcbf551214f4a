"""How the jobs of a sweep stand, from their files and SLURM's queue, whoever asks and whenever."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cl_runner.sweeps import slurm
from cl_runner.sweeps.folder import Attempt, Submission, Sweep
from cl_runner.sweeps.slurm import Queued

#: missing: it was submitted, is nowhere any more and has not failed: cancelled, interrupted or lost.
State = Literal["planned", "waiting", "running", "done", "failed", "missing"]
STATES: tuple[State, ...] = ("planned", "waiting", "running", "done", "failed", "missing")
#: How a job stands that may be submitted, and one that may be stopped.
FREE, BUSY = ("planned", "failed", "missing"), ("waiting", "running")
#: How SLURM calls jobs that nobody stopped and that did not do what they should.
_FAILED = ("FAILED", "OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")
#: Lines of a log that a failure is told by, where the run did not say why.
LAST_LINES = 5


@dataclass(frozen=True)
class JobState:
    """How one job stands.

    Attributes:
        why: what there is to say: why it waits, what it failed of.
        place: SLURM's number of the job, or `host:pid`; empty before there is one.
        log: what it prints, or would print; empty before it begins.
    """

    state: State
    why: str = ""
    place: str = ""
    log: str = ""


def states_of(sweep: Sweep) -> list[JobState]:
    """How every job stands.

    Raises:
        ValueError: SLURM was asked and does not answer.
    """
    given: dict[int, tuple[Submission, int]] = {}  # the last submission that a job was part of, and its place there
    for submission in sweep.submissions:
        for place, number in enumerate(submission.jobs):
            given[number] = (submission, place)
    arrays = [submission.id for submission in sweep.submissions if not submission.here]
    undone = any(not (sweep.run_folder(number) / "COMPLETED").is_file() for number in given)
    queue = slurm.queue(arrays) if undone else {}
    ends = _Ends(arrays)
    return [_state(sweep, number, given.get(number), queue, ends) for number in range(len(sweep.jobs))]


class _Ends:
    """How jobs of arrays ended by SLURM's word, which is asked once for all, when the first of them is wanted."""

    def __init__(self, arrays: Sequence[str]):
        self._arrays = arrays
        self._found: Mapping[str, str] | None = None

    def of(self, job: str) -> str | None:
        if self._found is None:
            self._found = slurm.ended(self._arrays)
        return self._found.get(job)


def _state(
    sweep: Sweep,
    number: int,
    given: tuple[Submission, int] | None,
    queue: Mapping[tuple[str, int], Queued],
    ends: _Ends,
) -> JobState:
    folder = sweep.run_folder(number)
    attempts = sweep.attempts(number)
    last = attempts[-1] if attempts else None
    log = last.log if last else ""
    if (folder / "COMPLETED").is_file():
        return JobState("done", place=last.place if last else "", log=log)
    if given is None:
        return JobState("planned")
    submission, index = given
    here = submission.here
    queued = queue.get((submission.id, index))
    name = submission.id if here else f"{submission.id}_{index}"
    if queued is not None and queued.runs:
        return JobState("running", _doing(log) if queued.state == "RUNNING" else queued.state, name, log)
    if queued is not None and queued.state == "PENDING":
        again = f"for the {len(attempts) + 1}. time; " if attempts else ""
        return JobState("waiting", f"{again}{queued.reason}", name, log)
    if last is None or not (last.begun >= submission.time if here else last.place == name):
        if here and alive(submission.id):
            return JobState("waiting", "for a process of this machine", name)
        ended = queued.state if queued else None if here else ends.of(name)
        if ended is not None and ended.startswith(_FAILED):
            log = str(sweep.path / "logs" / f"{name}.log")
            said = "\n".join([f"it ended before it began: {ended}", *_last_lines(Path(log))])
            return JobState("failed", said, name, log)
        return JobState("missing", f"it never began{f': {ended}' if ended else ''}", name)
    if last.ended is None and here and alive(last.place):
        return JobState("running", _doing(log), last.place, log)
    return _ended(last, folder, name, queued, ends)


def _ended(attempt: Attempt, folder: Path, name: str, queued: Queued | None, ends: _Ends) -> JobState:
    """Of a job that is over, and not done."""
    if attempt.ended is not None and attempt.status == 75:
        said = "it went back into the queue, and is not there" if attempt.requeued else "interrupted, and saved"
        return JobState("missing", said, name, attempt.log)
    if attempt.ended is not None:
        return JobState("failed", _reason(folder, attempt), name, attempt.log)
    ended = queued.state if queued else None if ":" in name else ends.of(name)
    if ended is not None and ended.startswith("CANCELLED"):
        return JobState("missing", "cancelled", name, attempt.log)
    said = "its process was killed, and could not say why" + (f": {ended}" if ended else "")
    return JobState("failed", "\n".join([said, *_last_lines(Path(attempt.log))]), name, attempt.log)


def _reason(folder: Path, attempt: Attempt) -> str:
    """The last line of the trace that a failed run leaves, or of its log."""
    said = failure_of(folder) or "\n".join(_last_lines(Path(attempt.log)))
    return said or f"exit status {attempt.status}"


def failure_of(folder: Path) -> str | None:
    """The last line of the trace that a failed run has left, empty if it could write none; None: it has not failed."""
    failed = folder / "FAILED"
    if not failed.is_file():
        return None
    return (failed.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[-1]


def _doing(log: str) -> str:
    """The last line that a running job printed."""
    return (_last_lines(Path(log)) or [""])[-1]


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.path.getsize(log) - 4096))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-LAST_LINES:]


def alive(place: str) -> bool:
    """Whether a process `host:pid` lives; of another machine it is believed to."""
    host, _, pid = place.rpartition(":")
    if host != socket.gethostname():
        return True
    with suppress(ProcessLookupError, PermissionError):
        os.kill(int(pid), 0)
        return True
    return False
