"""What a run costs: numbers with names, means over the tasks after the first, which come in a stream; and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from statistics import fmean
from typing import Any

from cl_runner.loss_course import MOST_TURNS, TURN, courses
from cl_runner.report.folder import Run
from cl_runner.report.text_table import Table

COSTS = {
    "trainable_weights/later_tasks": "weights that train, mean over the tasks after the first",
    "trainable_share/later_tasks": "100 x trainable / all parameters, mean over the tasks after the first",
    "stored_weights/later_tasks": "weights that a snapshot holds, mean over the tasks after the first",
    "stored_bytes/later_tasks": "bytes of a snapshot, mean over the tasks after the first",
    "method_bytes/most": "bytes that methods hold when a task is done, of the task where they are most",
    "replayed_examples/later_tasks": "examples of earlier tasks that steps trained on or took the gradient of, each "
    "time counted, mean over the tasks after the first",
    "steps_times_rate/later_tasks": "the sum of the learning rates of all optimizer steps, about how far AdamW moves a "
    "weight at most, mean over the tasks after the first",
    "peak_memory/largest_phase": "the largest peak of memory of a run's phases: of the device, on a CPU of the process",
    "online_seconds/later_tasks": "preparation and training, mean over the tasks after the first",
    "offline_seconds/later_tasks": "all between tasks, such as importance, mean over the tasks after the first",
    "milliseconds_per_example/at_test": "from a question to its answer, mean over the test sets after the last task: "
    "wall time of that evaluation, with all that was done for its questions, such as encoding, retrieval, local steps",
}
#: What a task costs; None of a run of an earlier version, which did not note it.
_OF_A_TASK: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "trainable_weights/later_tasks": lambda task: task["trainable"],
    "trainable_share/later_tasks": lambda task: 100 * task["trainable"] / task["model_parameters"],
    "stored_weights/later_tasks": lambda task: task["stored"],
    "stored_bytes/later_tasks": lambda task: task["stored_bytes"],
    "replayed_examples/later_tasks": lambda task: task.get("replayed_examples"),
    "steps_times_rate/later_tasks": lambda task: task.get("steps_times_rate"),
    "online_seconds/later_tasks": lambda task: task["online_seconds"],
    "offline_seconds/later_tasks": lambda task: task["offline_seconds"],
}


def costs(run: Run) -> dict[str, float]:
    """The numbers of `COSTS` that are known; empty if the run has no task after the first, or is unfinished."""
    later = run.details[1:]
    if not later:
        return {}
    found: dict[str, float] = {}
    for name, cost in _OF_A_TASK.items():
        values = [value for task in later if (value := cost(task)) is not None]
        if len(values) == len(later):
            found[name] = sum(values) / len(later)
    held = [task["method_bytes"] for task in run.details if "method_bytes" in task]
    if held:
        found["method_bytes/most"] = max(held)
    peaks = run.summary.get("peak_memory_mib")
    if peaks:
        found["peak_memory/largest_phase"] = 2**20 * max(peaks.values())
    answered = run.details[-1].get("milliseconds_per_example")
    if answered is not None:
        found["milliseconds_per_example/at_test"] = answered
    return {name: found[name] for name in COSTS if name in found}


def cost_text(name: str, value: float, unit: bool = True) -> str:
    """A cost as people read it."""
    if name.startswith(("stored_bytes", "method_bytes", "peak_memory")):
        return bytes_text(value)
    if name.startswith(("trainable_weights", "stored_weights", "replayed_examples")):
        return f"{value:,.0f}"
    if name.startswith("trainable_share"):
        return f"{value:.3g} %" if unit else f"{value:.3g}"
    if name.startswith("steps_times_rate"):
        return f"{value:.2g}"
    if name.startswith("milliseconds_per_example"):
        return f"{value:.1f} ms" if unit else f"{value:.1f}"
    return f"{value:.1f} s" if unit else f"{value:.1f}"


def bytes_text(size: float) -> str:
    """A number of bytes in the largest unit of which it has at least one."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 1000 else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def storage_table(details: Sequence[Mapping[str, Any]]) -> Table:
    """What every task trains, changes and stores (`tasks_detail` of summary.json)."""
    rows = [
        [
            str(task["name"]),
            f"{task['trainable']:,}",
            f"{100 * task['trainable'] / task['model_parameters']:.3g}",
            f"{task['changed']:,}",
            f"{task['stored']:,}",
            bytes_text(task["stored_bytes"]),
            f"{task['stored_share_percent']:.3g}",
        ]
        for task in details
    ]
    header = ["task", "trainable", "trainable, % of the model", "changed", "stored values", "stored"]
    return Table([*header, "stored, % of the model's bytes"], rows)


def answers_table(details: Sequence[Mapping[str, Any]]) -> Table | None:
    """What every task changed of the answers to test sets that were asked before and after it; None if not known."""
    rows = []
    for task in details:
        found: Mapping[str, Mapping[str, Any]] = task.get("answers") or {}
        if found:
            own, every = found.get("own"), found["all"]
            moved = [each and each["largest_logit_change"] for each in (own, every)]
            rows.append(
                [
                    str(task["name"]),
                    f"{task['trainable']:,}",
                    f"{task['changed']:,}",
                    f"{own['changed']:,} of {own['examples']:,}" if own else "-",
                    f"{every['changed']:,} of {every['examples']:,}",
                    *("-" if value is None else f"{value:.3g}" for value in moved),
                ]
            )
    header = ["task", "weights trained", "changed", "own answers changed", "all answers changed"]
    return Table([*header, "largest change of a logit, own", "of all"], rows) if rows else None


#: What `tasks_detail` may say of training -> column, and how a value reads.
THROUGHPUT: dict[str, tuple[str, Callable[[float], str]]] = {
    "optimizer_steps": ("optimizer steps", lambda value: f"{value:,.0f}"),
    "examples_seen": ("examples seen, replayed too", lambda value: f"{value:,.0f}"),
    "tokens": ("training tokens", lambda value: f"{value:,.0f}"),
    "tokens_per_second": ("tokens / s", lambda value: f"{value:,.0f}"),
    "padding_share": ("padding, %", lambda value: f"{100 * value:.1f}"),
    "model_flops_share": ("model FLOPs, % of the device's", lambda value: f"{100 * value:.1f}"),
    "milliseconds_per_example": ("milliseconds_per_example, test", lambda value: f"{value:.1f}"),
}


def time_table(details: Sequence[Mapping[str, Any]]) -> Table:
    """What every task's training and evaluation took, and of `THROUGHPUT` what some task knows."""
    known = {name: form for name, form in THROUGHPUT.items() if any(task.get(name) is not None for task in details)}
    taken = any(task.get("trained_by") for task in details)
    rows = [
        [
            str(task["name"]),
            f"{task['train_examples']:,}",
            f"{task['steps']:,}",
            f"{task['offline_seconds']:.1f}",
            f"{task['online_seconds']:.1f}",
            f"{task['phases'].get('evaluate', 0.0):.1f}",
            *("-" if task.get(name) is None else form(task[name]) for name, (_, form) in known.items()),
            *([_taken(task)] if taken else []),
        ]
        for task in details
    ]
    header = ["task", "training examples", "steps", "offline, s", "online, s", "evaluation, s"]
    return Table([*header, *(head for head, _ in known.values()), *(["trained by"] if taken else [])], rows)


def _taken(task: Mapping[str, Any]) -> str:
    """Which run trained a task, without where it lies, and the first digits of the weights that came of it."""
    if not task.get("trained_by"):
        return "this run"
    run = "/".join(PurePath(task["trained_by"]).parts[-4:])
    return f"{run}, to {task['trained_weights'][:12]}" if "trained_weights" in task else run


#: Where a loss went, in words.
_WENT = {"down": "fell", "up": "rose", "nowhere": "did not move"}


def learning_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """How far each task's steps could move a weight, and where its loss went; empty before the first step.

    Args:
        lines: of metrics.jsonl's steps.
    """
    rows = [
        [
            task,
            f"{found['optimizer_steps']:,}",
            f"{found['learning_rate']:.3g}",
            f"{found['steps_times_rate']:.2g}",
            f"{found['loss_first']:.3g}",
            f"{found['loss_last']:.3g}",
            _WENT.get(found["loss_went"], "-"),
        ]
        for task, found in courses([line for line in lines if "learning_rate" in line]).items()
    ]
    header = ["task", "optimizer steps", "peak rate", "steps x rate", "loss, first third", "last third", "the loss"]
    return Table(header, rows)


def turns_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """The loss of each turn of the assistant in chats, by task, at the beginning and at the end; empty without chats.

    Args:
        lines: of metrics.jsonl's steps.
    """
    found = {name for line in lines for name in line if name.startswith(TURN)}
    names = sorted(found, key=lambda name: int(name.removeprefix(TURN)))
    rows = []
    for task in dict.fromkeys(str(line["task"]) for line in lines):
        steps = [line for line in lines if line["task"] == task]
        third = max(1, len(steps) // 3)
        for when, part in (("first third", steps[:third]), ("last third", steps[-third:])):
            losses = [[float(line[name]) for line in part if name in line] for name in names]
            if any(losses):
                rows.append([task, when, *(f"{fmean(each):.3g}" if each else "" for each in losses)])
    turns = [f"turn {name.removeprefix(TURN)}" for name in names]
    if names and names[-1] == f"{TURN}{MOST_TURNS}":
        turns[-1] += " and later"
    return Table(["task", "steps", *turns], rows, left=2)


def notes_of(details: Sequence[Mapping[str, Any]]) -> list[str]:
    """What runs said of tasks whose loss did not fall."""
    return [str(task["loss_note"]) for task in details if task.get("loss_note")]


def certificate_text(proof: Mapping[str, Any]) -> str:
    """What a task's certificate in summary.json says: all bits outside the selection were compared."""
    others = "others bitwise unchanged" if proof["holds"] else "others were to stay bitwise, but did NOT"
    return (
        f"{proof['changed']:,} of {proof['selected']:,} selected weights changed; "
        f"{proof['untouched']:,} {others}, SHA-256 {proof['untouched_sha256'][:16]}…"
    )


def certificate_table(details: Sequence[Mapping[str, Any]]) -> Table | None:
    """The certificate of every task that has one; None where none has."""
    rows = [[str(task["name"]), certificate_text(task["certificate"])] for task in details if task.get("certificate")]
    return Table(["task", "what training changed"], rows, left=2, long=1) if rows else None


def zero_fisher_table(details: Sequence[Mapping[str, Any]]) -> Table | None:
    """Percent of exact zeros in each layer's Fisher information, a column per task; None where it is not known."""
    zeros = {str(task["name"]): task["zero_fisher_fraction"] for task in details if task["zero_fisher_fraction"]}
    if not zeros:
        return None
    layers = list(next(iter(zeros.values())))
    return Table(["", *zeros], [[layer, *(f"{100 * zero[layer]:.2f}" for zero in zeros.values())] for layer in layers])


def planned_tables(run: Run) -> list[Table]:
    """What plan.json predicted beside what was measured: phases, then the rest; empty without a plan.

    Of an unfinished run there is only the prediction.
    """
    if not run.plan:
        return []
    seconds, peak = run.summary.get("phases", {}), run.summary.get("peak_memory_mib") or {}
    phases = []
    for phase, predicted in run.plan["phases"].items():
        memory = predicted["bytes"] / 2**20, peak.get(phase)
        taken = seconds.get(phase)
        if phase == "importance" and taken is not None:  # a plan counts the selection to it
            taken += seconds.get("selection", 0.0)
        phases.append([phase, *_compared(*memory, "{:,.0f}"), *_compared(predicted["seconds"], taken)])
    head = ["phase", "peak memory predicted, MiB", "measured", "measured / predicted"]
    head += ["time predicted, s", "measured", "measured / predicted"]
    files = [path for part in ("snapshots", "predictions") for path in (run.folder / part).glob("*")]
    kept = sum(path.stat().st_size for path in files) if run.summary else None
    others = [["snapshots and predictions on disk", *_compared(run.plan["disk_bytes"], kept, "bytes")]]
    trainable = run.plan["trainable"]
    measured = {str(task["name"]): task["trainable"] for task in run.details}
    if isinstance(trainable, list):
        for name, count in zip(run.tasks or measured, trainable, strict=False):
            others.append([f"trained weights, {name}", *_compared(count, measured.get(name), "{:,.0f}")])
    else:
        largest = max(measured.values(), default=None)
        others.append(["trained weights, largest task", *_compared(trainable, largest, "{:,.0f}")])
    return [Table(head, phases), Table(["", "predicted", "measured", "measured / predicted"], others)]


def _compared(predicted: float | None, measured: float | None, form: str = "{:,.1f}") -> list[str]:
    """Predicted, measured and their ratio as text; "-" for what is not known."""
    texts = [
        "-" if value is None else bytes_text(value) if form == "bytes" else form.format(value)
        for value in (predicted, measured)
    ]
    return [*texts, f"{measured / predicted:.2f}" if predicted and measured is not None else "-"]
