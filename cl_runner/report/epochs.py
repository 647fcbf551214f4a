"""Scores at the end of every epoch (evaluation.every_epoch): curves of one run, and of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from cl_runner.matrix import Floats
from cl_runner.report.drawing import COLOURS, drawing, short, thinned
from cl_runner.report.folder import Run
from cl_runner.report.plots import draw_lines, legend_columns, name_steps
from cl_runner.report.retrieval import task_colours
from cl_runner.report.text_table import Table


@dataclass(frozen=True)
class Course:
    """Scores of a run over all epochs.

    Attributes:
        places: [P] epochs from the run's beginning; a task's end is its row of the matrix.
        within: which task trained there, and the epochs of it that were done, of each place.
        scores: [P, T] percent; NaN of tasks that are still to come.
        ends: epochs from the run's beginning at which each task was learned.
    """

    places: Floats
    within: list[tuple[str, float]]
    scores: Floats
    ends: list[float]

    @property
    def mean(self) -> Floats:
        """[P] of the tasks so far, the one under way included."""
        found: Floats = np.nanmean(self.scores, axis=1)
        return found


def course(run: Run) -> Course | None:
    """The epochs of a run; None where it was not asked at their ends.

    A task that another run trained has no epochs of its own here, but its end.
    """
    lines = [line for line in run.log if line["kind"] == "epoch"]
    if not lines:
        return None
    length = {line["task"]: float(line["epoch"]) for line in run.log if line["kind"] == "train"}  # the last one stays
    places, within, rows, ends, begin = [], [], [], [], 0.0
    for number, task in enumerate(run.tasks[: run.done + 1]):
        found = [(float(line["epoch"]), line["epoch_scores"]) for line in lines if line["task"] == task]
        if number < run.done:
            found.append((length.get(task, 0.0), dict(zip(run.tasks, run.rows[number + 1], strict=True))))
        for epoch, scores in found:
            places.append(begin + epoch)
            within.append((task, epoch))
            rows.append([scores.get(one, np.nan) for one in run.tasks[: number + 1]])
            rows[-1] += [np.nan] * (len(run.tasks) - number - 1)
        begin = places[-1] if found else begin
        ends.append(begin)
    return Course(np.array(places), within, np.array(rows, dtype=float), ends)


def epoch_values(run: Run) -> tuple[Path, Table] | None:
    """The picture and the table of a run's page; None where there is nothing to show."""
    found, path = course(run), run.folder / "plots" / "epochs.png"
    if found is None:
        return None
    draw_course(run.tasks, found, path, run.measure)
    cells = [
        [task, f"{epoch:g}", *("" if np.isnan(score) else f"{score:.2f}" for score in row), f"{mean:.2f}"]
        for (task, epoch), row, mean in zip(found.within, found.scores, found.mean, strict=True)
    ]
    return path, Table(["while learning", "epochs", *run.tasks, "mean"], cells)


def draw_course(tasks: Sequence[str], found: Course, path: Path, what: str) -> None:
    """A line per task from its first epoch on, and their mean; tasks apart by lines."""
    colours = task_colours(len(tasks))
    tall = max(3.9, 0.19 * len(tasks) + 1.2)
    with drawing(path, 9.6, tall) as figure:
        axes = figure.add_subplot()
        for place, (task, colour) in enumerate(zip(tasks, colours, strict=True)):
            there = ~np.isnan(found.scores[:, place])
            if there.any():
                axes.plot(
                    found.places[there],
                    found.scores[there, place],
                    "o-",
                    color=colour,
                    markersize=3.5,
                    label=short(task),
                )
        axes.plot(found.places, found.mean, "-", color="black", linewidth=2.2, label="mean so far", zorder=3)
        for end in found.ends[:-1]:
            axes.axvline(end, color="#999999", linewidth=0.8, linestyle="--")
        begins = [0.0, *found.ends[:-1]]
        for place in thinned(len(begins)):
            axes.annotate(
                short(tasks[place], 18),
                (begins[place], 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=7.5,
                rotation=20 if len(begins) > 3 else 0,
                color=colours[place],
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epochs, of all tasks one after the other")
        axes.set_ylabel(f"{what}, %")
        figure.legend(title="test set of", loc="outside right upper", fontsize=8)


def compared_epochs(labelled: Mapping[str, Sequence[Run]], path: Path, what: str) -> bool:
    """The means over the tasks so far at every epoch's end, a line per setting; whether there was something to draw.

    Args:
        labelled: what runs are called -> one per seed. Those with other epochs than the first ones are left out.
    """
    found = {label: [one for one in map(course, runs) if one is not None] for label, runs in labelled.items()}
    several = [one for each in found.values() for one in each]
    if not several:
        return False
    first = several[0]
    curves: dict[str, Floats] = {}
    for label, each in found.items():
        same = [one.mean for one in each if one.within == first.within]
        if same:
            curves[label] = np.stack(same)
    names = [f"{short(task, 14)} {epoch:g}" for task, epoch in first.within]
    labels = list(curves)
    columns = legend_columns(labels)
    with drawing(path, max(6.8, min(0.34 * len(names) + 2.0, 14.0)), 4.2 + 0.2 * -(-len(labels) // columns)) as figure:
        axes = figure.add_subplot()
        draw_lines(axes, curves, labels)
        for place in (
            place for place, (task, _) in enumerate(first.within) if place and task != first.within[place - 1][0]
        ):
            axes.axvline(place - 0.5, color=COLOURS[6], linewidth=0.6, linestyle="--", alpha=0.5)
        name_steps(axes, names)
        axes.set_xlabel("task under way, and its epochs done")
        axes.set_ylabel(f"mean {what} on tasks so far, %")
        figure.legend(loc="outside upper center", ncols=columns)
    return True
