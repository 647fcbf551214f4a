"""The command `cancel`."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from cl_runner.sweeps import slurm
from cl_runner.sweeps.asked import answered, chosen, parser_of
from cl_runner.sweeps.folder import Sweep
from cl_runner.sweeps.states import BUSY, JobState, alive, states_of


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0, or 2 after one message for a wrong request."""
    return answered(lambda: _cancel(_parser().parse_args(list(arguments))))


def _parser() -> argparse.ArgumentParser:
    return parser_of("cancel", "Stop the jobs of a submitted sweep that wait or run; what runs saves its state first.")


def _cancel(given: argparse.Namespace) -> int:
    sweep, numbers = chosen(given, "cancel")
    states = states_of(sweep)
    of_slurm = [states[n].place for n in numbers if states[n].state in BUSY and sweep.jobs[n].slurm]
    slurm.cancel(of_slurm)
    stopped = len(of_slurm) + _stop_here(sweep, numbers, states)
    print(
        f"{sweep.name}: {stopped} of {len(numbers)} jobs told to stop. What runs saves first.\n"
        f"See how they stand: {sweep.line('status')}"
    )
    return 0


def _stop_here(sweep: Sweep, numbers: Sequence[int], states: Sequence[JobState]) -> int:
    """Stop jobs of this machine's worker: all of them by the worker, some by their own processes."""
    local = [n for n in numbers if sweep.jobs[n].slurm is None and states[n].state in BUSY]
    if not local:
        return 0
    everything = [n for n, state in enumerate(states) if state.state in BUSY]
    if local == everything:
        targets = {submission.id for submission in sweep.submissions if submission.here and alive(submission.id)}
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
