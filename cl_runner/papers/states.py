"""Figures of texts inside the model: untouched, and after several methods (PIECE 4)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from cl_runner.matrix import START
from cl_runner.papers.figures import Figure
from cl_runner.papers.picture import Asked, Drawn, Picture, Selection, by_order, caption
from cl_runner.report.folder import Run
from cl_runner.report.representations import NEEDED, Maps, compared, draw_maps, kept_after, read_states
from cl_runner.report.text_table import Table

HEADER = ["figure", "order", "line", "seed", "layer", "task", "text", "x", "y", "source"]
HOW = {"pca": "PCA", "tsne": "t-SNE"}


def lack(run: Run) -> str:
    """What a run has not that the figure is made of; empty if it has all.

    Raises:
        Damaged: its states are not what they were.
    """
    if kept_after(run) != [START, *run.tasks]:
        return "it did not keep states after every task"
    for after in (START, run.tasks[-1]):
        read_states(run, after)
    return ""


def representations(figure: Figure, selection: Selection, asked: Asked) -> Drawn:
    """Texts in the untouched model and after the last task of each setting's first run, in one projection."""
    drawn = Drawn()
    for order, settings in by_order(selection):
        first = {setting.label: next(iter(setting.runs.values())) for setting in settings}
        for each in compared(first):
            try:
                shown = each.maps(asked.projection)
            except ImportError:
                raise ValueError(NEEDED) from None
            runs = list(each.runs.values())
            seeds = {label: run.seed for label, run in each.runs.items()}
            of = ", ".join(f"{label} seed {seed}" for label, seed in seeds.items() if label in shown.columns)
            more = (
                f"{HOW[asked.projection]} of all columns together, block by block; {of}. Grey: where the "
                "untouched model had the texts. CKA: 1 where they lie to each other as they did there"
            )
            said = caption(figure, selection, runs, order, more, *each.notes)
            rows = _rows(figure, order, shown, each.runs, runs[0])
            table = Table(HEADER, rows, figure.data.title)
            drawn.pictures.append(Picture((order, runs[0].backbone), partial(_draw, shown, said), table))
            drawn.notes += each.notes
    return drawn


def _rows(figure: Figure, order: str, shown: Maps, runs: Mapping[str, Run], first: Run) -> list[list[str]]:
    """A line for each text in each block and column; the untouched model is the first run's."""
    return [
        [
            figure.name,
            order,
            column,
            str(run.seed),
            block,
            task,
            str(text + 1),
            repr(float(x)),
            repr(float(y)),
            str(run.folder),
        ]
        for block, places in shown.places.items()
        for column, points in zip(shown.columns, places, strict=True)
        for run in [runs.get(column, first)]
        for text, (task, (x, y)) in enumerate(zip(shown.tasks, points, strict=True))
    ]


def _draw(shown: Maps, said: str, path: Path) -> None:
    draw_maps(shown, path, said)
