"""The commands submit, status, cancel, resubmit: they answer at once, from files, after a closed terminal too."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cl_runner.arguments import Parser
from cl_runner.overrides import COMMAND, check_once, command_line
from cl_runner.sweeps import launch, slurm
from cl_runner.sweeps.folder import MANIFEST, Sweep, load, made
from cl_runner.sweeps.frozen import freeze
from cl_runner.sweeps.jobs import requests_of
from cl_runner.sweeps.states import STATES, JobState, alive, states_of


def submit_main(arguments: Sequence[str]) -> int:
    """The command `submit`."""
    return _caught(_submit, arguments)


def status_main(arguments: Sequence[str]) -> int:
    """The command `status`."""
    return _caught(_status, arguments)


def cancel_main(arguments: Sequence[str]) -> int:
    """The command `cancel`."""
    return _caught(_cancel, arguments)


def resubmit_main(arguments: Sequence[str]) -> int:
    """The command `resubmit`."""
    return _caught(_resubmit, arguments)


def _caught(command: Callable[[list[str]], int], arguments: Sequence[str]) -> int:
    try:
        return command(list(arguments))
    except ValueError as error:
        print(f"cl_runner: {error}", file=sys.stderr)
        return 2


def _submit(arguments: list[str]) -> int:
    parser = Parser(prog="python -m cl_runner submit", description=submit_main.__doc__)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path)
    given = parser.parse_intermixed_args(arguments)
    sweep = prepared(given.overrides, given.config_dir)
    states = states_of(sweep)
    free = [number for number, state in enumerate(states) if state.state not in ("done", "waiting", "running")]
    print(f"{sweep.name}: {len(sweep.jobs)} jobs, {_counts(states) or 'none begun'}", flush=True)
    if free:
        give(sweep, free)
    _say_how(sweep)
    return 0


def prepared(overrides: Sequence[str], folders: Sequence[Path]) -> Sweep:
    """The sweep of a line, with its code frozen and its manifest written; one that was submitted before goes on.

    Raises:
        ValueError: a job's request is wrong, or SLURM is asked for where there is none.
    """
    check_once(overrides, folders, multirun=True)
    requests = requests_of(overrides, folders)
    for line in dict.fromkeys(line for request in requests for line in request.replaced):
        print(line, file=sys.stderr, flush=True)
    sweep = made(requests, overrides)
    kinds = {job.slurm is not None for job in sweep.jobs}
    if len(kinds) > 1:
        raise ValueError("some jobs of this line go to SLURM and some do not. Submit them by two lines")
    if kinds == {True} and not slurm.has():
        line = command_line([o for o in overrides if not o.startswith("hardware")], folders, multirun=True)
        raise ValueError(
            f"this machine has no sbatch: type the line on a machine of the cluster, or run it here: {line}"
        )
    if (sweep.path / MANIFEST).is_file():
        before = load(sweep.path)
        jobs = {job.folder: job for job in sweep.jobs}
        if jobs.keys() == {job.folder for job in before.jobs}:
            sweep.jobs = tuple(jobs[job.folder] for job in before.jobs)  # numbers stay what they are
            sweep.submissions = before.submissions
    sweep.code = str(freeze(sweep.path, requests, folders).relative_to(sweep.path))
    sweep.save()
    return sweep


def give(sweep: Sweep, numbers: Sequence[int]) -> None:
    """Submit jobs, and say where they are."""
    for submission in launch.submit(sweep, numbers):
        several = "1 job" if len(submission.jobs) == 1 else f"{len(submission.jobs)} jobs"
        if ":" in submission.id:
            logs = f"{sweep.path}/logs/<number>.log"
            print(f"{several} for process {submission.id}, {sweep.processes} at once; logs: {logs}", flush=True)
        else:
            logs = f"{sweep.path}/logs/{submission.id}_*.log"
            print(f"{several} submitted as {submission.id}; logs: {logs}", flush=True)
    asked = sweep.jobs[numbers[0]].slurm
    if asked is not None and asked["requeues"]:
        print(
            f"A job saves {asked['signal_seconds']} s before its limit of {asked['minutes']} min, or up to a minute "
            "earlier, waits again and goes on",
            flush=True,
        )


def _say_how(sweep: Sweep) -> None:
    print(f"See how they stand: {sweep.line('status')}\nStop them: {sweep.line('cancel')}")


def _status(arguments: list[str]) -> int:
    parser = Parser(prog="python -m cl_runner status", description=status_main.__doc__)
    parser.add_argument(
        "place", nargs="?", default=Path("outputs"), type=Path, help="a sweep's folder, or what holds some"
    )
    given = parser.parse_args(arguments)
    sweeps = _sweeps(given.place)
    if len(sweeps) > 1:
        for sweep in sweeps:
            print(f"{os.path.relpath(sweep.path)}: {_counts(states_of(sweep))}")
        print(f"One of them: {COMMAND} status FOLDER")
        return 0
    (sweep,) = sweeps
    states = states_of(sweep)
    show(sweep, states)
    again = [state for state in states if state.state in ("failed", "missing", "planned")]
    if again:
        print(f"What failed or is missing runs again by: {sweep.line('resubmit')}")
    elif all(state.state == "done" for state in states):
        print(f"Their report: {COMMAND} report {os.path.relpath(sweep.path.parents[1])}")
    return 0


def show(sweep: Sweep, states: Sequence[JobState]) -> None:
    """A line for each job, and how many stand how."""
    console = Console()
    table = Table(title=f"{sweep.name}: {_counts(states)}", title_justify="left")
    for column in ("", "job", "state", "where"):
        table.add_column(column, overflow="fold")
    for number, (job, state) in enumerate(zip(sweep.jobs, states, strict=True)):
        said = f"{state.state}: {state.why}" if state.why else state.state
        table.add_row(*map(Text, (str(number), job.varied or "(the only one)", said, state.place)))
    console.print(table)
    print(f"What they print: {os.path.relpath(sweep.path / 'logs')}", flush=True)


def _counts(states: Sequence[JobState]) -> str:
    counts = Counter(state.state for state in states)
    return ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])


def _sweeps(place: Path) -> list[Sweep]:
    """The sweep of a folder, or those below it."""
    if (place / MANIFEST).is_file():
        return [load(place)]
    found = sorted(place.glob(f"**/sweeps/*/{MANIFEST}")) if place.is_dir() else []
    if not found:
        raise ValueError(f"no submitted sweep lies in {place}. Submit one: {COMMAND} submit seed=0,1")
    return [load(path.parent) for path in found]


def _one(place: Path, command: str) -> Sweep:
    """The only sweep of a place."""
    sweeps = _sweeps(place)
    if len(sweeps) > 1:
        lines = "\n".join(sweep.line(command) for sweep in sweeps)
        raise ValueError(f"{place} holds {len(sweeps)} sweeps. Type one of:\n{lines}")
    return sweeps[0]


def _chosen(parser: Parser, arguments: list[str], command: str) -> tuple[Sweep, list[int], argparse.Namespace]:
    """A sweep, and which of its jobs are meant."""
    parser.add_argument("place", nargs="?", default=Path("outputs"), type=Path, help="the sweep's folder")
    parser.add_argument("--jobs", metavar="NUMBERS", help="of these, by commas, as status counts them")
    given = parser.parse_args(arguments)
    sweep = _one(given.place, command)
    if given.jobs is None:
        return sweep, list(range(len(sweep.jobs))), given
    words = given.jobs.split(",")
    wrong = [word for word in words if not word.isdigit() or int(word) >= len(sweep.jobs)]
    if wrong:
        raise ValueError(f"--jobs {wrong[0]}: {sweep.name} has jobs 0 to {len(sweep.jobs) - 1}")
    return sweep, sorted({int(word) for word in words}), given


def _cancel(arguments: list[str]) -> int:
    parser = Parser(prog="python -m cl_runner cancel", description=cancel_main.__doc__)
    sweep, numbers, _ = _chosen(parser, arguments, "cancel")
    states = states_of(sweep)
    of_slurm = [states[n].place for n in numbers if states[n].state in ("waiting", "running") and sweep.jobs[n].slurm]
    slurm.cancel(of_slurm)
    stopped = len(of_slurm) + _stop_here(sweep, numbers, states)
    print(
        f"{sweep.name}: {stopped} of {len(numbers)} jobs told to stop. What runs saves first.\n{sweep.line('status')}"
    )
    return 0


def _stop_here(sweep: Sweep, numbers: Sequence[int], states: Sequence[JobState]) -> int:
    """Stop jobs of this machine's worker: all of them by the worker, some by their own processes."""
    local = [n for n in numbers if sweep.jobs[n].slurm is None and states[n].state in ("waiting", "running")]
    if not local:
        return 0
    everything = [n for n, state in enumerate(states) if state.state in ("waiting", "running")]
    if local == everything:
        targets = {submission.id for submission in sweep.submissions if ":" in submission.id and alive(submission.id)}
    else:
        waiting = [n for n in local if states[n].state == "waiting"]
        if waiting:
            raise ValueError(
                f"job {waiting[0]} waits in a queue that runs all others too. Stop all and submit the rest again: "
                f"{sweep.line('cancel')}"
            )
        targets = {states[n].place for n in local}
    for target in targets:
        with suppress(ProcessLookupError):
            os.kill(int(target.rpartition(":")[2]), signal.SIGTERM)
    return len(local)


def _resubmit(arguments: list[str]) -> int:
    parser = Parser(prog="python -m cl_runner resubmit", description=resubmit_main.__doc__)
    parser.add_argument("--new-code", action="store_true", help="by the program and configuration as they are now")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path, help="with --new-code")
    sweep, numbers, given = _chosen(parser, arguments, "resubmit")
    if given.new_code:
        os.chdir(sweep.cwd)
        sweep = prepared(sweep.typed, given.config_dir)
    states = states_of(sweep)
    again = [n for n in numbers if states[n].state in ("failed", "missing", "planned")]
    if not again:
        print(f"{sweep.name}: nothing failed or is missing ({_counts(states)})")
        return 0
    give(sweep, again)
    _say_how(sweep)
    return 0
