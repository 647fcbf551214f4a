"""The commands that would fill the empty cells of a published table, and what they are planned to cost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cl_runner.compose import Request, compose
from cl_runner.overrides import command_line, jobs_of, key_of
from cl_runner.papers.measured import Place
from cl_runner.papers.published import Cell, Published
from cl_runner.papers.shapes import not_made
from cl_runner.report.text_table import Table

#: Runs of a cell whose paper does not say how many it averages.
SEEDS = 3


@dataclass(frozen=True)
class Command:
    """A line to type.

    Attributes:
        rows, columns: that it fills.
        overrides: as typed, several values by commas.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def line(self) -> str:
        """The line, a multirun where it makes several runs."""
        return command_line(self.overrides, multirun=len(self.jobs) > 1)

    @property
    def jobs(self) -> list[list[str]]:
        """The runs that it makes."""
        return jobs_of(self.overrides)


def commands(table: Published, exact: Collection[Place], data_root: str | None, every: bool = False) -> list[Command]:
    """A command for each group of empty cells whose runs differ in one choice, such as the order.

    Args:
        exact: cells that runs fill from which nothing differs; all others are empty.
        every: cells without a published number as well.
    """
    empty: dict[tuple[str, ...], tuple[list[str], list[str], int]] = {}
    for (row, column), cell in table.cells.items() if every else _wanted(table):
        if cell.overrides is None or not cell.measure or (row, column) in exact:
            continue
        rows, columns, _ = empty.setdefault(cell.overrides, ([], [], 0))
        rows += [row] if row not in rows else []
        columns += [column] if column not in columns else []
        empty[cell.overrides] = rows, columns, cell.protocol.seeds or SEEDS
    joined: list[Command] = []
    taken: set[tuple[str, ...]] = set()
    for first, (rows, _, seeds) in empty.items():
        if first in taken:
            continue
        alike = [
            each for each in empty if each not in taken and _same_but_order(first, each) and empty[each][0] == rows
        ]
        taken.update(alike)
        orders = list(dict.fromkeys(text.partition("=")[2] for each in alike for text in each if _is_order(text)))
        kept = [text for text in first if not _is_order(text)]
        kept += [f"task_order={','.join(orders)}"] if orders else []
        kept += [f"data_root={data_root}"] if data_root else []
        names = list(dict.fromkeys(name for each in alike for name in empty[each][1]))
        joined.append(Command(tuple(rows), tuple(names), (*kept, f"seed={','.join(map(str, range(seeds)))}")))
    return joined


def _wanted(table: Published) -> Iterator[tuple[Place, Cell]]:
    """Cells that are published, and those that a published mean is made of."""
    for (row, column), cell in table.cells.items():
        means = [each for each in table.data.columns if column in each.mean_of]
        if cell.value is not None or any(table.cells[row, each.name].value is not None for each in means):
            yield (row, column), cell


def _is_order(text: str) -> bool:
    return key_of(text) == "task_order"


def _same_but_order(one: Sequence[str], other: Sequence[str]) -> bool:
    plain = [[text for text in each if not _is_order(text)] for each in (one, other)]
    return plain[0] == plain[1]


def missing_table(table: Published, found: Sequence[Command]) -> Table:
    """The commands with their costs."""
    rows = [
        [", ".join(each.rows), ", ".join(each.columns), str(len(each.jobs)), planned(each), each.line] for each in found
    ]
    title = f"{table.name}: commands for the cells that no run fills as published"
    return Table(["rows", "columns", "runs", "planned", "command"], rows, title, left=5, notes=not_made(table))


def planned(command: Command) -> str:
    """What all runs of a command take, by the plan of the first; or why it is not planned."""
    jobs = command.jobs
    try:
        request = compose(jobs[0])
        absent = _absent(request)
        if absent:
            raise ValueError(absent)
        return _plan(request, len(jobs))
    except ValueError as error:
        return f"not planned: {str(error).splitlines()[0]}"


def _absent(request: Request) -> str:
    """What a plan would read and is not on this machine; empty if all is there."""
    from cl_runner.pretrained.places import asked, is_folder

    backbone = request.config.backbone
    for each in asked(request.config):
        checkpoint = each.options.checkpoint
        packaged = getattr(each.options, "package", None)
        described = each.options is backbone and backbone.architecture is not None
        if checkpoint is None or packaged or described or is_folder(checkpoint) or each.options is not backbone:
            continue
        from huggingface_hub import try_to_load_from_cache

        revision = getattr(each.options, "revision", None)
        if not isinstance(try_to_load_from_cache(checkpoint, "config.json", revision=revision), str):
            return f"config.json of {checkpoint} is not on this machine"
    return ""


def _plan(request: Request, runs: int) -> str:
    from cl_runner.data.task import build_tasks

    config = request.config
    names = {task.task or config.task_order.task for task in config.task_order.tasks}
    on_hub = any(config.task[name].source == "hub" for name in names if name in config.task)
    tasks = (
        None if on_hub else build_tasks(config.task_order, config.task)
    )  # what is absent is said before torch is there
    from cl_runner.planning.command import planned_run
    from cl_runner.planning.memory import gigabytes
    from cl_runner.tracking.pace import duration

    _, _, plan = planned_run(request, tasks)
    seconds = [phase.seconds for phase in plan.phases.values() if phase.seconds is not None]
    time = f"{duration(runs * sum(seconds))} in all" if seconds else plan.basis
    peak = max(phase.bytes for phase in plan.phases.values())
    return f"{time}, {gigabytes(peak)} of memory, {gigabytes(runs * plan.kept_bytes)} stay on disk"
