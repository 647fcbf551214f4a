"""The run on screen: bars for order, task and phase in a terminal, plain timed lines elsewhere, and log.txt.

Usage::

    with Console(folder / "log.txt") as console:
        console.header("cl_runner", [("method", "pe"), ("folder", "outputs/...")])
        console.plan({"books/train": 60.0, "books/evaluate": 5.0, "kettles/train": 30.0})
        console.order(2)
        console.task(0, "books")
        with console.phase("train", total=190) as progress:
            progress.advance(1, loss=0.7)
        console.row("books", {"books": 81.2, "kettles": 74.0})
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from cl_runner.tracking.pace import Paces, duration

Shown = float | int | str

PLAIN_SECONDS = 10.0  # between two progress lines where there is no terminal
PLAIN_WIDTH = 120  # characters of a table where there is no terminal
LABEL_WIDTH = 28  # characters of a table's first column at most
NOTABLE_SECONDS = 1.0  # a phase shorter than this ends without a line of its own
LEAST_SHARE = 0.02  # of the whole order that must be done before its time left is worth guessing


def _values(shown: Mapping[str, Shown]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())


class Phase:
    """One phase under way; made by `Console.phase`."""

    def __init__(self, console: Console, name: str, total: int | None, done: int, nested: bool) -> None:
        self.name = name
        self.total = total
        self.done = done
        self.first = done  # steps that an earlier, interrupted process has done
        self.nested = nested
        self.started = time.monotonic()
        self.shown: dict[str, Shown] = {}
        self._console = console

    def advance(self, n: int = 1, **shown: Shown) -> None:
        """`n` more steps are done; `shown` are values to show beside the bar, such as loss=0.7."""
        self.done += n
        self.shown.update(shown)
        self._console._advanced(self)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the phase began in this process."""
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """Done share of the phase, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def count(self) -> str:
        """Done and total, as in `12/50`."""
        if self.total is None:
            return str(self.done) if self.done else ""
        return f"{self.done}/{self.total}"

    @property
    def left(self) -> str:
        """The time left at the pace so far, or nothing."""
        worked = self.done - self.first
        if self.total is None or worked <= 0 or self.done >= self.total:
            return ""
        return f"{duration(self.seconds / worked * (self.total - self.done))} left"


class Console:
    """Shows a run; a context manager, so that the terminal is left in order whatever happens.

    Args:
        log: file to which every line is also appended as plain text with date and time; None for no log.
        file: where to print; None is standard output.
        terminal: bars (True) or plain lines (False); None asks `file`.
    """

    def __init__(self, log: Path | None = None, file: TextIO | None = None, terminal: bool | None = None) -> None:
        file = file or sys.stdout
        rich = RichConsole(file=file, highlight=False, force_terminal=terminal)
        self.terminal = file.isatty() and not rich.is_dumb_terminal if terminal is None else terminal
        if not self.terminal:
            rich = RichConsole(file=file, highlight=False, width=PLAIN_WIDTH, force_terminal=False)
        self._rich = rich
        self._log = log.open("a", encoding="utf-8", buffering=1) if log else None
        self._bars: Progress | None = None
        self._order_bar: TaskID | None = None
        self._task_bar: TaskID | None = None
        self._phase_bars: list[TaskID] = []
        self._phases: list[Phase] = []
        self._plan: dict[str, float] = {}
        self._total_tasks = 0
        self._task: tuple[int, str] | None = None
        self._before = 0.0  # units of the plan that come before the current task
        self._within = 0.0  # units of the current task whose phases have ended
        self._worked = 0.0  # units done by this process, which alone tell its pace
        self._paces = Paces()
        self._started = time.monotonic()
        self._last_plain = self._started

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars away and close the log."""
        if self._bars:
            self._bars.stop()
            self._bars = None
        with suppress(OSError):
            (self._log or io.StringIO()).close()
        self._log = None

    def header(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """A small table of what is about to run."""
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        self._print(table)

    def plan(self, units: Mapping[str, float]) -> None:
        """Announce the work of the whole order, so that its time left can be told.

        Args:
            units: `<task>/<phase>`, or `<phase>` outside of tasks -> expected cost in any common unit, in
                running order. Phases that are not named count as free.
        """
        self._plan = dict(units)

    def order(self, total_tasks: int) -> None:
        """Begin a sequence of `total_tasks` tasks."""
        self._total_tasks = total_tasks
        self._started = time.monotonic()
        if self.terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[count]:>12}", markup=False, style="progress.percentage"),
                TextColumn("{task.fields[left]:>13}", markup=False, style="progress.remaining"),
                TextColumn("{task.fields[shown]}", markup=False, style="dim"),
                console=self._rich,
                transient=True,
                refresh_per_second=4,
            )
            self._bars.start()
            self._order_bar = self._bars.add_task(
                "all tasks", total=self._units or None, count=f"0/{total_tasks}", left="", shown=""
            )

    def task(self, index: int, name: str) -> None:
        """Begin task `index`, counted from 0. A resumed run begins with a later one than the first."""
        if self._plan:
            keys = list(self._plan)
            own = [i for i, key in enumerate(keys) if key.startswith(f"{name}/")]
            first = own[0] if own else len(keys)
            self._before = sum(self._plan[key] for key in keys[:first])
            units = sum(self._plan[keys[i]] for i in own)
        else:
            if self._task:
                self._worked += index - self._task[0]
            self._before, units = float(index), 1.0
        self._task = (index, name)
        self._within = 0.0
        self._plain(f"task {index + 1}/{self._total_tasks}: {name}")
        if self._bars:
            if self._task_bar is not None:
                self._bars.remove_task(self._task_bar)
            self._task_bar = self._bars.add_task(
                name, total=units, count=f"task {index + 1}", left="", shown="", visible=bool(self._plan)
            )
        self._update_order()

    @contextmanager
    def phase(self, name: str, total: int | None = None, done: int = 0) -> Iterator[Phase]:
        """Show one phase while the block runs; phases may nest (a checkpoint while training).

        Args:
            total: its steps, None if unknown.
            done: steps that an interrupted process has done before.
        """
        phase = Phase(self, name, total, done, nested=bool(self._phases))
        self._phases.append(phase)
        if not phase.nested:
            self._plain(f"{self._where(phase)} {phase.count}".rstrip())
        if self._bars:
            bar = self._bars.add_task(f"  {name}", total=total, completed=done, count=phase.count, left="", shown="")
            self._phase_bars.append(bar)
        try:
            yield phase
        finally:
            self._phases.pop()
            if self._bars:
                self._bars.remove_task(self._phase_bars.pop())
        if not phase.nested:
            units = self._units_of(phase)
            self._within += units
            worked = units * (1 - phase.first / phase.total if phase.total else 1)
            self._worked += worked
            self._paces.add(phase.name, phase.seconds, worked)
            self._update_order()
        if phase.seconds >= NOTABLE_SECONDS or (phase.shown and not phase.nested):
            said = [self._where(phase), phase.count, f"in {duration(phase.seconds)}", _values(phase.shown)]
            self._plain(" ".join(part for part in said if part))

    def line(self, text: str) -> None:
        """One line of text."""
        if self.terminal:
            self._rich.print(Text(text))
        self._plain(text)

    def row(self, after: str, scores: Mapping[str, float], extra: Mapping[str, float] | None = None) -> None:
        """The scores in percent, by task, after the task `after` (or `start`); without any, nothing is shown.

        Args:
            extra: further numbers by the name of their formula, such as {"union": 81.2}.
        """
        named = {**scores, **(extra or {})}
        if not named:
            return
        if self.terminal:
            # Beyond a line's width the tasks' names are left out; their order is the table's.
            brief = sum(len(name) + 8 for name in named) + len(after) + 6 > self._rich.width
            text = Text("after ").append(after, style="bold")
            for name, value in named.items():
                text.append(" " if brief and name in scores else f"  {name} ", style="dim")
                text.append(f"{value:.1f}", style="bold cyan" if name == after else "")
            self._rich.print(text)
        self._plain(f"scores after {after}: " + ", ".join(f"{k} {v:.1f}" for k, v in named.items()))

    def matrix(
        self,
        names: Sequence[str],
        rows: Sequence[tuple[str, Sequence[float | None]]],
        extra: Mapping[str, Sequence[float | None]] | None = None,
    ) -> None:
        """The final table in percent; a task just learned is bold, or starred where there is no terminal.

        Args:
            names: the T tasks, one column each.
            rows: (after, T scores), None for an empty cell.
            extra: further columns by the name of their formula, such as {"union": [...]}, one value per row.
        """
        columns = {name: [values[c] for _, values in rows] for c, name in enumerate(names)}
        columns |= {name: list(values) for name, values in (extra or {}).items()}
        narrowest = 5 if self.terminal else 6  # 100.0, *100.0
        labels = [after for after, _ in rows]
        headings = {name: name for name in columns}
        longest = min(LABEL_WIDTH, max(len(label) for label in labels))
        if longest + sum(max(len(name), narrowest) + 2 for name in columns) > self._rich.width:
            # Too wide: the tasks' columns get numbers, which the rows explain.
            headings |= {name: str(number) for number, name in enumerate(names, 1)}
            labels = [f"{headings[label]} {label}" if label in headings else label for label in labels]
            longest = min(LABEL_WIDTH, max(len(label) for label in labels))
        widths = {name: max(len(headings[name]), narrowest) + 2 for name in columns}
        for block in self._blocks(widths, self._rich.width - longest - 2):
            table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
            table.add_column("after", no_wrap=True, overflow="ellipsis", max_width=LABEL_WIDTH)
            for name in block:
                style = "" if name in names else "cyan"
                heading = Text(headings[name])
                table.add_column(heading, justify="right", no_wrap=True, min_width=narrowest, style=style)
            for r, label in enumerate(labels):
                cells = [self._cell(columns[name][r], name == rows[r][0]) for name in block]
                table.add_row(Text(label), *cells)
            self._print(table)

    def _cell(self, value: float | None, emphasised: bool) -> Text:
        text = "" if value is None else f"{value:.1f}"
        if self.terminal:
            return Text(text, style="bold underline" if emphasised else "")
        return Text(f"*{text}" if emphasised and text else text)

    @staticmethod
    def _blocks(widths: Mapping[str, int], available: int) -> list[list[str]]:
        """Columns in as few tables side by side as fit into `available` characters each."""
        blocks: list[list[str]] = [[]]
        used = 0
        for name, width in widths.items():
            if blocks[-1] and used + width > available:
                blocks.append([])
                used = 0
            blocks[-1].append(name)
            used += width
        return blocks

    def error(self, text: str) -> None:
        """A failure, in red on the terminal."""
        if self.terminal:
            self._rich.print(Text(f"error: {text}", style="bold red"))
        self._plain(f"error: {text}")

    @property
    def _units(self) -> float:
        return sum(self._plan.values()) if self._plan else float(self._total_tasks)

    def _units_of(self, phase: Phase) -> float:
        key = f"{self._task[1]}/{phase.name}" if self._task else phase.name
        return self._plan.get(key, self._plan.get(phase.name, 0.0))

    def _where(self, phase: Phase) -> str:
        return f"{self._task[1]}: {phase.name}" if self._task else phase.name

    def _advanced(self, phase: Phase) -> None:
        if self._bars:
            bar = self._phase_bars[self._phases.index(phase)]
            self._bars.update(bar, completed=phase.done, count=phase.count, left=phase.left, shown=_values(phase.shown))
            if not phase.nested:
                self._update_order(phase)
        if time.monotonic() - self._last_plain >= PLAIN_SECONDS:
            said = [self._where(phase), phase.count, _values(phase.shown)]
            left = [f"({text})" for text in (phase.left, self._order_left(phase)) if text]
            self._plain(" ".join(part for part in [*said, *left] if part))

    def _order_left(self, phase: Phase | None = None) -> str:
        """The time left of the whole order at this process's pace; nothing where it is too early to tell."""
        position, worked = self._before + self._within, self._worked
        paces = self._paces.copy()
        if phase is not None:
            units = self._units_of(phase)
            done = units * (phase.share - (phase.first / phase.total if phase.total else 0.0))
            position, worked = position + units * phase.share, worked + done
            paces.add(phase.name, phase.seconds, done)
        if worked < LEAST_SHARE * self._units or position >= self._units:
            return ""
        elapsed = time.monotonic() - self._started
        return f"all: {duration(paces.left(self._plan or {'': self._units}, position, elapsed, worked))} left"

    def _update_order(self, phase: Phase | None = None) -> None:
        if not self._bars or self._order_bar is None:
            return
        within = self._within + (self._units_of(phase) * phase.share if phase else 0.0)
        done = self._task[0] if self._task else 0
        self._bars.update(
            self._order_bar,
            completed=self._before + within,
            count=f"{done}/{self._total_tasks} done",
            left=self._order_left(phase).removeprefix("all: "),
        )
        if self._task_bar is not None:
            self._bars.update(self._task_bar, completed=within)

    def _plain(self, text: str) -> None:
        """A timed line in the log, and on screen where there is no terminal."""
        self._last_plain = time.monotonic()
        for line in text.splitlines() or [""]:
            if not self.terminal:
                self._rich.print(Text(f"{time.strftime('%H:%M:%S')} {line}"), soft_wrap=True)
            self._note(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def _print(self, table: Table) -> None:
        """A table on screen, and as plain text in the log."""
        if self.terminal:
            self._rich.print(table)
        plain = RichConsole(file=io.StringIO(), width=self._rich.width, force_terminal=False, highlight=False)
        with plain.capture() as captured:
            plain.print(table)
        lines = [line.rstrip() for line in captured.get().splitlines()]
        text = "\n".join(line for line in lines if line)
        if not self.terminal:
            self._rich.print(Text(text), soft_wrap=True)
        self._note(f"{text}\n")

    def _note(self, text: str) -> None:
        """Into the log, which may lose lines on a full disk."""
        with suppress(OSError):
            print(text, end="", file=self._log or io.StringIO())
