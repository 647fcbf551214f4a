"""SLURM by its own commands: arrays of jobs that are submitted, asked after, cancelled and put back into the queue."""

from __future__ import annotations

import getpass
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_runner.config import Slurm

#: States in which a job of the queue has its node; in all others of the queue it waits.
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
#: What an array holds at most where the cluster does not say.
MAX_ARRAY = 1001


@dataclass(frozen=True)
class Queued:
    """A job of the queue: whether it runs, its state and why it waits, in SLURM's words."""

    runs: bool
    state: str
    reason: str


def has(command: str = "sbatch") -> bool:
    """Whether this machine knows SLURM."""
    return shutil.which(command) is not None


def call(*words: str, given: str | None = None) -> str:
    """What a command of SLURM prints.

    Raises:
        ValueError: it failed; the text has what it said.
    """
    if not has(words[0]):
        raise ValueError(f"this machine has no {words[0]}: type the line on a machine of the cluster")
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ValueError(f"{words[0]} refused: {said or f'exit status {done.returncode}'}")
    return done.stdout


def directives(slurm: Slurm) -> list[str]:
    """What a job asks for, as options of sbatch."""
    given: Mapping[str, object | None] = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "gres": slurm.gres,
        "nodelist": slurm.nodelist,
        "exclude": slurm.exclude,
        "dependency": slurm.dependency,
        "time": slurm.minutes,
        "nodes": slurm.nodes,
        "ntasks": slurm.processes,
        "cpus-per-task": slurm.cpus,
        "mem": f"{slurm.memory_gb}G",
        "gpus-per-node": slurm.gpus or None,
    }
    found = [f"--{name}={value}" for name, value in given.items() if value is not None]
    # One process takes the place of the batch script; several are told themselves.
    told = "B:" if slurm.processes == 1 else ""
    return [*found, f"--signal={told}USR1@{slurm.signal_seconds}", "--requeue", "--open-mode=append"]


def script(slurm: Slurm, name: str, places: Sequence[int], sweep: Path, cwd: str, code: Path) -> str:
    """The batch script of an array, whose shell becomes the program, so that SLURM's signals reach it.

    Args:
        places: the numbers of its jobs in the sweep.
    """
    logs = sweep / "logs" / "%A_%a.log"
    limit = "" if slurm.at_once is None else f"%{slurm.at_once}"
    asked = [
        f"--job-name={name}",
        f"--array=0-{len(places) - 1}{limit}",
        f"--output={logs}",
        f"--chdir={cwd}",
        *directives(slurm),
    ]
    numbers = " ".join(map(str, places))
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {_directive(one)}" for one in asked),
            *slurm.setup,
            *(f"export {key}={shlex.quote(value)}" for key, value in slurm.environment.items()),
            f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"jobs=({numbers})",
            # Until the program listens, which takes a second: by default they end a process.
            "trap '' USR1 USR2",
            # -P: not what lies in the folder, but what was submitted.
            f"{_start(slurm)}{shlex.quote(sys.executable)} -P -m cl_runner job {shlex.quote(str(sweep))} "
            '"${jobs[$SLURM_ARRAY_TASK_ID]}"',
            "",
        ]
    )


def _start(slurm: Slurm) -> str:
    """How a batch script starts the program: in its own place, or once for each process of the run."""
    if slurm.processes == 1:
        return "exec "
    # One that ends does not end the others, which notice it and say so: the first one has more to do then.
    return f"srun --ntasks={slurm.processes} --cpus-per-task={slurm.cpus} --kill-on-bad-exit=0 --wait=0 "


def _directive(option: str) -> str:
    name, _, value = option.partition("=")
    return f'{name}="{value}"' if re.search(r"\s", value) else option


def submit(text: str) -> str:
    """Give a script to SLURM; the number of its array."""
    said = call("sbatch", "--parsable", given=text).strip()
    return said.partition(";")[0]


def largest_array() -> int:
    """Jobs of one array at most."""
    try:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    except ValueError:
        found = None
    return int(found[1]) if found else MAX_ARRAY


def queue(arrays: Iterable[str]) -> dict[tuple[str, int], Queued]:
    """Of each job of these arrays that SLURM has not forgotten: array and place in it -> how it stands.

    Raises:
        ValueError: SLURM does not answer.
    """
    wanted = set(arrays)
    if not wanted:
        return {}
    lines = call("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%F|%K|%T|%r").splitlines()
    found = {}
    for line in lines:
        array, place, state, reason = line.split("|", 3)
        if array in wanted and place.isdigit():
            found[array, int(place)] = Queued(state in RUNNING, state, reason)
    return found


def ended(jobs: Sequence[str]) -> dict[str, str]:
    """How SLURM says that jobs ended, such as TIMEOUT or OUT_OF_MEMORY; without those that it does not know any more.

    Args:
        jobs: `12` is every job of an array, `12_3` one of it. All are asked for at once.
    """
    found: dict[str, str] = {}
    if not jobs:
        return found
    # Without accounting only what the controller has not forgotten yet, array by array.
    asked = [["sacct", "-n", "-P", "-X", "-j", ",".join(jobs), "-o", "JobID,State"]]
    asked += [["scontrol", "-o", "show", "job", job] for job in jobs]
    for words in asked:
        try:
            said = call(*words)
        except ValueError:
            continue
        if words[0] == "sacct":
            rows = (line.partition("|")[::2] for line in said.splitlines())
            found |= {job: state.split()[0] for job, state in rows if state.strip()}
            if found:
                return found
        else:
            for line in said.splitlines():
                told = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
                array = told.get("ArrayJobId")
                job = f"{array}_{told.get('ArrayTaskId')}" if array else told.get("JobId", "")
                found[job] = told.get("JobState", "")
    return found


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs (`12` an array, `12_3` one of it) out of the queue."""
    if jobs:
        call("scancel", *jobs)


def requeue(job: str) -> None:
    """Put a job that runs back into the queue; SLURM ends its processes."""
    call("scontrol", "requeue", job)
