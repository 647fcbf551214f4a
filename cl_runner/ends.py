"""How a run ends: done, with its numbers, report and last screen; failed, with advice; interrupted."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress

import numpy as np

from cl_runner import checkpoint, digests, distributed
from cl_runner.compose import Request
from cl_runner.damage import what_to_type
from cl_runner.digests import Damaged
from cl_runner.evaluate import evaluation_examples, told_apart
from cl_runner.failures import advice
from cl_runner.full_disk import is_full
from cl_runner.interrupt import Interrupted, Stop
from cl_runner.journal import Journal, Scene
from cl_runner.matrix import START, headline, headline_column
from cl_runner.planning.begun import memory_advice
from cl_runner.planning.memory import DoesNotFit, is_out_of_memory
from cl_runner.prepared import Prepared
from cl_runner.record import tables, write_summary
from cl_runner.report.sections import Incomplete
from cl_runner.tracked import tell_end
from cl_runner.tracking.clock import Clock
from cl_runner.tracking.console import Console
from cl_runner.tracking.pace import duration
from cl_runner.tracking.progress import Shown

#: Tasks of a matrix that a screen does not show.
MANY = 100
#: Numbers of the last screen below the matrix, beside what the run reached in all.
LAST_SCREEN = {
    "plasticity/diagonal": "each task right after it was learned",
    "forgetting/first_minus_last": "points lost since then, mean over the tasks before the last",
    "retained_share": "kept of what those tasks scored then",
}


def guarded(request: Request, prepared: Prepared, story: Callable[[Scene], None]) -> int:
    """The story with its ends, as an exit status. Call it holding the run's lock.

    Raises:
        ValueError: a file that the run reads back is damaged, or the run does not fit into memory.
    """
    if distributed.first():
        (request.folder / "FAILED").unlink(missing_ok=True)
    stop, clock = Stop(), Clock()
    with Console(request.folder / "log.txt" if distributed.first() else None) as console, stop:
        shown = Shown(console, stop.check)
        try:
            with ExitStack() as closing:
                story(Scene(console, shown, stop, clock, closing))
            return 0
        except Damaged as error:
            shown.close()
            raise ValueError(what_to_type(request.folder, error)) from None
        except DoesNotFit:
            shown.close()
            raise
        except (Interrupted, KeyboardInterrupt):
            shown.close()
            console.line(f"{_saved(request, prepared)}: {request.command}{distributed.launcher()}")
            return 75
        except distributed.Elsewhere as error:
            shown.close()
            return _lost(error, request, console)
        except Exception as error:
            shown.close()
            distributed.part()
            if not distributed.first():
                if distributed.say(f"{type(error).__name__}: {error}"):
                    traceback.print_exc()
                return 1
            distributed.speaks()
            return _failed(error, request, prepared, clock, console)


def _saved(request: Request, prepared: Prepared) -> str:
    """What an interrupted run goes on from: at times it is not where it was stopped."""
    found = checkpoint.reached(request.folder / "state")
    if found is None:
        return "Interrupted before anything was saved. The same command begins again"
    stage, task, steps = found
    names = [one.name for one in prepared.tasks]
    if task == len(names):
        place = "with all tasks learned"
    elif stage == "training":
        place = f"as of step {steps} of {names[task]}"
    else:
        place = f"as of the {'beginning' if stage == 'begin' else 'first step'} of {names[task]}"
    return f"Interrupted, and saved {place}. The same command goes on"


def _lost(error: distributed.Elsewhere, request: Request, console: Console) -> int:
    """Another process of the run ended: what is saved is whole, and the same command goes on."""
    if error.interrupted:
        return 75
    if distributed.first():
        why = "without a word, as if it was killed" if distributed.speaks() else "with the message above"
        text = f"Another of the run's {distributed.size()} processes ended {why}."
        with suppress(OSError):
            digests.replace_file(request.folder / "FAILED", text)
        console.error(text)
        console.line(f"The same command goes on from what was saved: {request.command}{distributed.launcher()}")
    return 1


def _failed(error: Exception, request: Request, prepared: Prepared, clock: Clock, console: Console) -> int:
    """Say why, keep the trace, and say what to do. On a full disk it may be kept nowhere; the screen has the reason."""
    text, kept = traceback.format_exc(), False
    with suppress(OSError):
        with (request.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(text)
        kept = True
    with suppress(OSError):
        digests.replace_file(request.folder / "FAILED", text)
    console.error(f"{type(error).__name__}: {error}")
    if is_out_of_memory(error):
        console.line(memory_advice(request, prepared, clock))
    else:
        if not is_full(error):
            console.line("\n".join(text.splitlines()[-7:-1]))
        console.line(advice(error, request))
    if kept:
        console.line(f"The whole trace is in {request.folder}/log.txt.")
    return 1


def finish(request: Request, prepared: Prepared, journal: Journal, scene: Scene) -> None:
    """Write and show what a finished run is worth."""
    # What draws, and reads many runs: only when there is something to show.
    from cl_runner.report.beside import beside_table
    from cl_runner.report.folder import read_run
    from cl_runner.report.page import write_run_report
    from cl_runner.report.text_table import as_text

    config, tasks, console = request.config, prepared.own_tasks, scene.console
    names = [task.name for task in tasks]
    sizes = {task.name: len(evaluation_examples(task, config.evaluation.split)) for task in tasks}
    summary = write_summary(
        request,
        sizes,
        {task.name: task.scored_by(config.evaluation.scoring) for task in tasks},
        journal.rows,
        journal.details,
        scene.clock,
        journal.changes.weights,
        journal.ability,
        {task.name: told_apart(task, config.evaluation.scoring) for task in tasks},
    )
    try:
        page = write_run_report(request.folder)
    except Incomplete as error:
        page = error.path
        console.line(f"Note: {error}")
    answered = summary["tasks_detail"][-1].get("milliseconds_per_example")
    told = {"online_seconds": summary["online_seconds"], "milliseconds_per_example": answered}
    numbers = {**summary["metrics"], **told}
    tell_end(journal.trackers, request, numbers, ["after", *names], tables(names, journal.rows))
    shown = [
        (after, [None if math.isnan(cell) else cell for cell in row])
        for after, row in zip([START, *names], journal.rows, strict=True)
    ]
    weights = list(sizes.values()) if "union_accuracy" in summary["metrics"] else None
    column = headline_column(np.array(journal.rows), weights)
    if len(names) > MANY:
        console.line(f"The matrix of {len(names)} tasks is in accuracy.csv; its first row and its last:")
        shown, column = [shown[0], shown[-1]], {name: [values[0], values[-1]] for name, values in column.items()}
    console.matrix(names, shown, column)
    for name in (headline(summary["metrics"]), *LAST_SCREEN):
        if name in summary["metrics"]:
            console.line(f"{name} {summary['metrics'][name]:.2f}: {LAST_SCREEN.get(name, 'at the end, all tasks')}")
    online = [detail["online_seconds"] for detail in summary["tasks_detail"][1:]]
    console.line(
        f"offline {duration(summary['offline_seconds'])}, online {duration(summary['online_seconds'])}"
        + (f" (each later task at most {duration(max(online))})" if online else "")
    )
    beside = beside_table(read_run(request.folder))
    if beside is not None:
        console.line(as_text(beside))
    console.line(f"report: {page}; all {len(summary['metrics'])} numbers: summary.json beside it")
    digests.record(request.folder, {"metrics.jsonl": journal.log_digest()})
    for sums in digests.sums_of(request.folder):
        digests.settle(sums.parent)
    digests.replace_file(request.folder / "COMPLETED", "")
    checkpoint.remove(request.folder / "state")
