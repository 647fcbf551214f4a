"""What happened in a run, in plain words: what it learned, lost and kept, at which cost, and against which bound."""

from __future__ import annotations

import numpy as np

from cl_runner.matrix import headline
from cl_runner.report.ability import changes, describe
from cl_runner.report.costs import cost_text, costs
from cl_runner.report.folder import Run
from cl_runner.report.numbers import interval_text
from cl_runner.report.text_table import Table

#: Numbers of general ability that a sentence names.
NAMED = 3
#: Points that nobody would call a change.
NOTHING = 0.05


def in_words(run: Run, beside: Table | None) -> list[tuple[str, str]]:
    """Sentences of a run that has learned a task, each below its topic; empty before.

    Args:
        beside: published runs of its setting, as `beside_table` gives them, or None.
    """
    if not run.done:
        return []
    said = [("Learned", _learned(run)), ("Kept", _kept(run)), ("In all", _in_all(run)), ("General ability", _able(run))]
    said += [("Cost", _cost(run)), ("Against", _against(run, beside))]
    return [(topic, sentence) for topic, sentence in said if sentence]


def failure(run: Run, most: int) -> list[str]:
    """The last lines of what went wrong in a run that failed."""
    text = (run.folder / "FAILED").read_text(encoding="utf-8", errors="replace")
    return text.strip().splitlines()[-most:]


def _percent(run: Run, value: float) -> str:
    return f"{value:.1f} %" if run.measure == "accuracy" else f"{value:.1f}"


def _what(run: Run) -> str:
    """What a cell of the matrix says of a test set, after a task's name or "a task"."""
    if run.measure == "accuracy":
        return "answers {} of a task's test items right"
    name = "its task's own metric" if run.measure == "score" else run.measure
    return f"scores {{}} of 100 on a task's test items ({name})"


def _learned(run: Run) -> str:
    own = np.array([run.rows[t + 1, t] for t in range(run.done)])
    before = np.array([run.rows[0, t] for t in range(run.done)])
    if np.isnan(own).any():
        return ""
    tasks = "the task" if run.done == 1 else f"each of the {run.done} tasks"
    said = f"Right after learning {tasks} the model {_what(run).format(_percent(run, own.mean()))}"
    said += ", on average" if run.done > 1 else ""
    if not np.isnan(before).any():
        gain = (own - before).mean()
        at_first = f"before any training it was {_percent(run, before.mean())}"
        if abs(gain) < NOTHING:
            return f"{said}; {at_first}: it has learned nothing that its answers show."
        said += f"; {at_first}, so it has {'gained' if gain > 0 else 'lost'} {abs(gain):.1f} points by learning"
    return f"{said}."


def _kept(run: Run) -> str:
    earlier = run.tasks[: run.done - 1]
    lost = np.array([run.rows[t + 1, t] - run.rows[run.done, t] for t in range(len(earlier))])
    if not len(lost) or np.isnan(lost).any():
        return ""
    those = f"the {len(lost)} tasks before the last" if len(lost) > 1 else "the task before the last"
    mean, worst = lost.mean(), int(lost.argmax())
    if abs(lost).max() < NOTHING:
        return f"At the end, nothing of {those} is lost: the same scores as right after learning."
    name = "forgetting/first_minus_last"
    bounds = interval_text(run, name)
    within = f" (95 % interval of what is lost: {bounds})" if bounds else ""
    verb = "lost" if mean > 0 else "gained"
    average = " on average" if len(lost) > 1 else ""
    said = f"Since then {those} {'have' if len(lost) > 1 else 'has'} {verb} {abs(mean):.1f} points{average}{within}"
    if len(lost) > 1 and lost[worst] > NOTHING:
        said += f", most of all {run.tasks[worst]} ({lost[worst]:.1f})"
    if name in run.intervals:
        low, high = run.intervals[name]
        said += ". By its interval that is no difference" if low <= 0 <= high else ""
    return f"{said}."


def _in_all(run: Run) -> str:
    name = headline(run.metrics)
    if name not in run.metrics or run.done < 2:
        return ""
    bounds = interval_text(run, name)
    what = "all test items of all tasks together" if name == "union_accuracy" else "the tasks on average"
    when = "At the end" if run.done == len(run.tasks) else f"After {run.done} of {len(run.tasks)} tasks"
    right = " are answered right" if run.measure == "accuracy" and name == "union_accuracy" else ""
    within = f" (95 % interval {bounds})" if bounds else ""
    if right:
        return f"{when}, {_percent(run, run.metrics[name])} of {what}{right}{within}."
    return f"{when}, {what} reach {_percent(run, run.metrics[name])}{within}."


def _able(run: Run) -> str:
    found = changes(run)
    if not found:
        return ""
    names, rows = run.ability
    parts = [
        f"{describe(name)}: {rows[0, k]:.4g} before, {rows[-1, k]:.4g} now" for k, name in enumerate(names[:NAMED])
    ]
    more = f"; {len(names) - NAMED} more below" if len(names) > NAMED else ""
    return f"What it could do before the tasks. {'; '.join(parts)}{more}."


def _cost(run: Run) -> str:
    found = {name.partition("/")[0]: cost_text(name, value) for name, value in costs(run).items()}
    if not found:
        return ""
    said = (
        f"A task after the first trains {found['trainable_weights']} weights ({found['trainable_share']} of the "
        f"model), takes {found['online_seconds']} once its data are there and {found['offline_seconds']} before, and "
        f"leaves {found['stored_bytes']} on disk"
    )
    if "peak_memory" in found:
        said += f"; at most {found['peak_memory']} of memory were in use"
    return f"{said}."


def _against(run: Run, beside: Table | None) -> str:
    if beside is not None:
        place = beside.header.index(headline([name for name in beside.header if name in run.metrics]))
        others = [f"{row[0]} {row[place]}" for row in beside.rows[1:]]
        return f"Published runs of this setting reach in {beside.header[place]}: {', '.join(others)}."
    if run.done < len(run.tasks) or run.config["task_order"]["joint"]:
        return ""
    bounds = {"method=frozen": "no learning", "method=seq_ft": "plain fine-tuning", _joint(run): "all tasks at once"}
    bounds.pop(f"method={run.method}", None)
    return (
        f"Nothing is published of this setting. Its own line with {' or '.join(bounds)} shows a bound: "
        f"{', '.join(bounds.values())}."
    )


def _joint(run: Run) -> str:
    return f"task_order=[{','.join([*run.task_order.split('+'), 'joint'])}]"
