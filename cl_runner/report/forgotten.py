"""What is forgotten: items that were learned, lost and regained, and whether their form was lost or what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cl_runner.digests import read_text, readable
from cl_runner.intervals import read_answers, read_scores, read_texts
from cl_runner.matrix import Floats
from cl_runner.metrics.forms import has_form
from cl_runner.plain import plain
from cl_runner.report.folder import Run
from cl_runner.report.grouping import Group, label_of
from cl_runner.report.sections import UNUSABLE, not_of_a_run
from cl_runner.report.text_table import Table

#: An item counts as right from this score on: of accuracies 100 is the only one.
RIGHT = 50.0
#: A gold answer is still likely if its loss rose by no more, nats per token: its tokens are half as probable at least.
LIKELY = math.log(2)
#: Examples that a page shows of each task, and characters of a text.
SHOWN, LONG = 4, 160

OTHER_TASK, NO_FORM, WRONG = "another task's answer", "no answer of its form", "another answer"


@dataclass(frozen=True)
class Items:
    """The test examples of a task that was learned, each True or False, [n].

    Attributes:
        before: right before the task was learned; None where nobody asked.
        own: right once it was learned.
        last: right at the end.
        wrong_between: wrong at some evaluation after it was learned.
    """

    task: str
    before: NDArray[np.bool_] | None
    own: NDArray[np.bool_]
    last: NDArray[np.bool_]
    wrong_between: NDArray[np.bool_]

    @property
    def lost(self) -> NDArray[np.bool_]:
        """Right once learned, wrong at the end."""
        return self.own & ~self.last

    @property
    def regained(self) -> NDArray[np.bool_]:
        """Right once learned and at the end, wrong in between."""
        return self.own & self.last & self.wrong_between

    @property
    def gained(self) -> NDArray[np.bool_]:
        """Wrong once learned, right at the end."""
        return ~self.own & self.last


def items_of(scores: Mapping[int, Mapping[str, Floats]], tasks: Sequence[str], done: int) -> list[Items]:
    """The items of each task that others followed; nothing of tasks whose predictions are missing.

    Args:
        scores: row of the matrix -> task -> percent of each test example.
        done: tasks that were learned.
    """
    found = []
    for index, task in enumerate(tasks[: done - 1]):
        rows = [scores.get(row, {}).get(task) for row in range(index + 1, done + 1)]
        known = [row >= RIGHT for row in rows if row is not None]
        if len(known) < len(rows):
            continue
        before = scores.get(index, {}).get(task)
        wrong = ~np.logical_and.reduce(known)
        found.append(Items(task, None if before is None else before >= RIGHT, known[0], known[-1], wrong))
    return found


def forgotten(run: Run) -> dict[str, Any] | None:
    """What a page shows: counts by task, how items were lost, and examples; None where nothing could be lost."""
    found = items_of(run.scores, run.tasks, run.done) if run.done > 1 else []
    if not found:
        return None
    lost = _lost(run, found)
    return {
        "counts": _counts(found),
        "ways": _ways(run, found, lost),
        "likely": any(one.likely is not None for each in lost.values() for one in each),
        "examples": _examples(run, lost),
        "right": RIGHT,
    }


def _counts(found: Sequence[Items]) -> Table:
    header = ["task", "n", "right before", "learned", "right then", "kept", "regained", "lost", "gained later", "right"]
    rows = []
    for items in found:
        learned = "-" if items.before is None else str(int((items.own & ~items.before).sum()))
        kept = items.own & items.last & ~items.wrong_between
        counts = [items.own, kept, items.regained, items.lost, items.gained, items.last]
        before = "-" if items.before is None else str(int(items.before.sum()))
        rows.append([items.task, str(len(items.own)), before, learned, *(str(int(each.sum())) for each in counts)])
    return Table(header, rows)


@dataclass(frozen=True)
class Lost:
    """An item that was right once its task was learned and is wrong at the end.

    Attributes:
        place: among its task's test examples.
        way: `OTHER_TASK`, `NO_FORM` or `WRONG`.
        likely: whether the right answer is still about as likely as it was; None where no probe kept losses.
    """

    place: int
    answer: str
    then: str
    now: str
    way: str
    likely: bool | None


def _lost(run: Run, items: Sequence[Items]) -> dict[str, list[Lost]]:
    """What each task lost, of those that lost something; each file is read once."""
    items = [one for one in items if one.lost.any()]
    if not items:
        return {}
    last = read_answers(run.folder, run.done)
    labels, losses = labels_of(run, last), _losses(run, run.tasks[run.done - 1])
    everyones = set[str]().union(*labels.values())
    scored_by = run.scored_by
    found = {}
    for one in items:
        own = labels[one.task]
        then = read_texts(run.folder, run.tasks.index(one.task) + 1, one.task)
        both = [_losses(run, one.task).get(one.task, []), losses.get(one.task, [])]
        found[one.task] = _lost_of(one, (then, last[one.task]), both, scored_by[one.task], own, everyones - own)
    return found


def _lost_of(
    items: Items,
    texts: tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]],
    losses: Sequence[Sequence[float]],
    metric: str,
    own: set[str],
    others: set[str],
) -> list[Lost]:
    """What a task lost.

    Args:
        texts, losses: answer and prediction, and the answer's loss, of each example: once learned and at the end.
        own, others: as `way_of` takes them.
    """
    then, now = texts
    found = []
    for place in map(int, np.flatnonzero(items.lost)):
        (answer, before), (_, after) = then[place], now[place]
        likely = None
        if all(place < len(each) for each in losses):
            likely = losses[1][place] - losses[0][place] <= LIKELY
        way = way_of(after, answer, metric, own, others)
        found.append(Lost(place, answer, before, after, way, likely))
    return found


def way_of(prediction: str, answer: str, metric: str, own: set[str], others: set[str]) -> str:
    """How a wrong prediction is wrong.

    Args:
        own, others: labels of the task, and those of other tasks alone; empty where any text is an answer.
    """
    text = prediction.strip()
    if text in others:
        return OTHER_TASK
    if (own and text not in own) or not has_form(metric, prediction, answer):
        return NO_FORM
    return WRONG


def labels_of(run: Run, last: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, set[str]]:
    """The labels of each task whose answers are of a closed set and compared as such; nothing for others.

    Args:
        last: answer and prediction of each test example by task, after the last task.
    """
    order, found, scored_by = run.config["task_order"], {}, run.scored_by
    for task in order["tasks"]:
        name = task["name"]
        labels = run.config.get("task", {}).get(task.get("task") or order.get("task"), {}).get("labels")
        closed: set[str] = set()
        if scored_by[name] == "accuracy":
            if isinstance(labels, dict):
                closed = {str(label).strip() for label in labels.values() if label is not None}
            elif labels is not None:  # as the source's own schema names them: those that the test set has
                closed = {answer.strip() for answer, _ in last.get(name, [])}
        found[name] = closed
    return found


def _losses(run: Run, after: str) -> dict[str, list[float]]:
    """Loss of each example's right answer by task, if a probe kept it of the examples that are scored."""
    split = run.config.get("evaluation", {}).get("split", "test")
    if run.config["task_order"]["restart"]:  # answers of each task's own model, losses of the last one
        return {}
    for name, node in run.config.get("probe", {}).items():
        path = run.folder / "probes" / name / f"losses_{after}.json"
        if isinstance(node, dict) and node.get("split") == split and path.is_file():
            text = read_text(path)
            with readable(path):
                return {str(task): [float(each) for each in losses] for task, losses in json.loads(text).items()}
    return {}


def _ways(run: Run, found: Sequence[Items], lost: Mapping[str, Sequence[Lost]]) -> Table:
    """How items were lost, by task; with losses of right answers how many of each are still likely."""
    ways = (OTHER_TASK, NO_FORM, WRONG)
    known = any(one.likely is not None for each in lost.values() for one in each)
    heads = [head for way in ways for head in ((way, "still likely") if known else (way,))]
    rows = []
    for items in found:
        cells = []
        for way in ways:
            of_way = [one for one in lost.get(items.task, ()) if one.way == way]
            cells.append(str(len(of_way)))
            if known:
                cells.append(str(sum(bool(one.likely) for one in of_way)))
        rows.append([items.task, run.scored_by[items.task], str(int(items.lost.sum())), *cells])
    return Table(["task", "metric", "lost", *heads], rows, left=2)


def _examples(run: Run, lost: Mapping[str, Sequence[Lost]]) -> Table:
    """Some lost items of each task, spread over its test set: the right answer, what was said then and now."""
    rows = []
    for task, each in lost.items():
        step = max(1, len(each) // SHOWN)
        for one in each[::step][:SHOWN]:
            likely = "" if one.likely is None else "yes" if one.likely else "no"
            texts = [_clipped(text) for text in (one.answer, one.then, one.now)]
            rows.append([task, str(one.place), *texts, one.way, likely])
    last = run.tasks[run.done - 1]
    header = ["task", "example", "right answer", "once learned", f"after {last}", "lost as", "still likely"]
    return Table(header, rows, left=7)


def _clipped(text: str) -> str:
    shown = plain(" ".join(text.split()))
    return shown if len(shown) <= LONG else f"{shown[: LONG - 1]}…"


def forgotten_table(groups: Sequence[Group]) -> Table | None:
    """A row per group of runs: what became of the items that were right once their task was learned; None of none."""
    rows, notes = [], []
    for group in groups:
        shares = []
        for run in group.runs:
            try:
                shares += [found] if (found := _shares(run)) is not None else []
            except UNUSABLE as error:
                notes.append(f"{not_of_a_run(run.folder / 'predictions', error)}: this run is not counted")
        if shares:
            cells = ["-" if np.isnan(each).all() else f"{np.nanmean(each):.1f}" for each in zip(*shares, strict=True)]
            order = group.axes["task_order"]
            label = label_of(group, [other for other in groups if other.axes["task_order"] == order])
            rows.append([str(order), label, str(len(shares)), *cells])
    if not rows:
        return None
    header = ["task_order", "method", "n", "right then", "kept, %", "regained, %", "lost, %", "gained later, %"]
    header += [f"lost as {way}, %" for way in (OTHER_TASK, NO_FORM, WRONG)] + ["lost, still likely, %"]
    notes = [
        f"test items that were right (a score of {RIGHT:g} % or more) once their task was learned, mean number over "
        "runs; kept, regained (wrong in between) and lost at the end are shares of them, gained later of the others",
        "shares of the lost: with a label of another task, with a text that the metric finds no answer in, with "
        "another answer; still likely: the right answer's tokens are half as probable as then, at least (task_loss)",
        *notes,
    ]
    return Table(header, rows, "What is forgotten", 2, notes)


def _shares(run: Run) -> list[float] | None:
    """The cells of a run in `forgotten_table`; None where nothing could be lost."""
    found = items_of(read_scores(run.folder), run.tasks, run.done) if run.done > 1 else []
    if not found:
        return None
    own, kept, regained, lost, gained, items = (
        sum(int(one.sum()) for one in each)
        for each in zip(
            *((i.own, i.own & i.last & ~i.wrong_between, i.regained, i.lost, i.gained, i.own | True) for i in found),
            strict=True,
        )
    )
    how = [one for each in _lost(run, found).values() for one in each]
    known = [one for one in how if one.likely is not None]
    ways = [sum(one.way == way for one in how) for way in (OTHER_TASK, NO_FORM, WRONG)]
    return [
        float(own),
        *(_percent(count, own) for count in (kept, regained, lost)),
        _percent(gained, items - own),
        *(_percent(count, len(how)) for count in ways),
        _percent(sum(bool(one.likely) for one in known), len(known)),
    ]


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else math.nan
