"""What a figure's pictures are made of: the runs that it shows, what sets them apart from the paper's, their data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cl_runner.papers.figures import Figure
from cl_runner.papers.measured import nearest_cells
from cl_runner.papers.protocol import differences
from cl_runner.papers.settings import configuration
from cl_runner.report.design import Design, Setting, designs_of
from cl_runner.report.folder import Run
from cl_runner.report.grouping import Group
from cl_runner.report.sections import UNUSABLE, not_of_a_run
from cl_runner.report.text_table import Table


@dataclass(frozen=True)
class Picture:
    """One picture and its data.

    Attributes:
        parts: what sets it apart from a figure's other pictures, such as the order.
        draw: writes it, in the format the path ends with.
    """

    parts: tuple[str, ...]
    draw: Callable[[Path], None]
    data: Table


@dataclass
class Drawn:
    """All pictures of a figure, and what is not drawn and why."""

    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """What was asked for beside the figure and its runs: options of the command."""

    task: str | None = None
    ability: str | None = None
    queries: bool = False
    projection: Literal["pca", "tsne"] = "pca"


@dataclass(frozen=True)
class Beside:
    """A group of runs beside the paper's own.

    Attributes:
        row: of the figure's table, the nearest; empty where none has its methods.
        differs: what sets it apart.
        place: the row and column that it would fill if nothing differed; None where the order is another one.
    """

    row: str
    differs: tuple[str, ...]
    place: tuple[str, str] | None


@dataclass(frozen=True)
class Selection:
    """The runs that a figure shows.

    Attributes:
        beside: the first run's folder of each group -> where it stands beside the paper.
        others: groups that are not shown: the figure has no line of their methods.
        left_out: groups whose configuration cannot be set beside the paper's, and why.
    """

    groups: list[Group]
    beside: Mapping[Path, Beside]
    others: list[Group]
    left_out: list[str] = field(default_factory=list)

    @property
    def designs(self) -> list[Design]:
        """Of the groups shown."""
        return designs_of(self.groups)

    @property
    def exact(self) -> set[tuple[str, str]]:
        """Cells of the figure's commands that there are exact runs of."""
        return {each.place for each in self.beside.values() if each.place is not None and not each.differs}

    def differs(self, run: Run) -> tuple[str, ...]:
        """What sets a run apart from the paper's."""
        group = next(group for group in self.groups if any(run is each for each in group.runs))
        return self.beside[group.runs[0].folder].differs

    def notes(self, figure: Figure) -> list[str]:
        """What sets the groups apart: of all first, then of each what it has besides."""
        several = [self.beside[group.runs[0].folder] for group in self.groups]
        if not several:
            return []
        common = [text for text in several[0].differs if all(text in each.differs for each in several)]
        said = [f"what is drawn differs from {figure.name}: {'; '.join(common)}"] if common else []
        for group, each in zip(self.groups, several, strict=True):
            own = [text for text in each.differs if text not in common]
            if own:
                beside = f" beside {each.row}" if each.row else ""
                said.append(f"{group.axes['method']} on {group.axes['task_order']}{beside} differs: {'; '.join(own)}")
        return said or [f"nothing that {figure.name} says of its runs is otherwise here"]


def select(figure: Figure, groups: Sequence[Group], every: bool) -> Selection:
    """The groups whose methods are those of a figure's lines.

    Args:
        every: take all others as well.
    """
    shown: list[Group] = []
    others: list[Group] = []
    beside: dict[Path, Beside] = {}
    left_out: list[str] = []
    for group in groups:
        first = group.runs[0].folder
        try:
            found = _beside(figure, group)
        except UNUSABLE as error:
            left_out.append(f"left out {first}: {not_of_a_run(first / 'config.yaml', error)}")
            continue
        if found is None and not every:
            others.append(group)
            continue
        shown.append(group)
        beside[first] = found or Beside("", ("the figure has no line of its method",), None)
    return Selection(shown, beside, others, left_out)


def _beside(figure: Figure, group: Group) -> Beside | None:
    """Where a group stands beside the paper's runs; None where no line has its methods."""
    nearest = nearest_cells(figure.runs, group.runs[0])
    if nearest is None:
        return None
    setting, cells = next(iter(nearest.cells.items()))
    place, cell = cells[0]
    apart = differences(group.runs, configuration(setting), cell.protocol, cell.measure, nearest.among)
    return Beside(place[0], apart, place if nearest.among else None)


def by_order(selection: Selection) -> list[tuple[str, list[Setting]]]:
    """The settings over each order of each benchmark, those that have runs over it."""
    found = []
    for design in selection.designs:
        for order in design.orders:
            found.append((order, [setting for setting in design.over(order).settings if setting.runs]))
    return found


def seeds_of(settings: Iterable[Setting]) -> str:
    """How many runs each of some settings has over an order."""
    counts = sorted({len(setting.runs) for setting in settings})
    if counts == [1]:
        return "one run each"
    return f"{counts[0]} runs each" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} runs each"


def caption(figure: Figure, selection: Selection, runs: Sequence[Run], order: str, *more: str) -> str:
    """What stands below a picture: which figure it is beside, what was measured, whether as in the paper."""
    backbones = ", ".join(dict.fromkeys(run.backbone for run in runs))
    title = figure.about.title.partition(",")[0]
    lines = [
        f"{title}, figure {figure.data.number}; measured: {', '.join(part for part in (backbones, order) if part)}"
    ]
    if not runs:
        lines = [f"{title}, figure {figure.data.number}; published numbers alone"]
    elif any(selection.differs(run) for run in runs):
        protocol = figure.about.protocol.over(figure.runs.data.protocol)
        lines[0] += f". Not the paper's setting ({protocol.backbone})"
    return "\n".join([*lines, *more])
