"""The console's plain lines, its log, its bars and the time it says is left."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest

from cl_runner.tracking import console as console_module
from cl_runner.tracking.console import Console
from cl_runner.tracking.pace import duration


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def plain(text: str) -> list[str]:
    """Lines without their time of day."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]


def test_durations_as_people_read_them() -> None:
    spoken = [duration(seconds) for seconds in (0, 5.24, 59.96, 65, 3599.6, 3725)]
    assert spoken == ["0.0 s", "5.2 s", "1:00", "1:05", "1:00:00", "1:02:05"]


def test_plain_lines_at_phases_and_every_ten_seconds_with_the_time_left(clock: Clock, tmp_path: Path) -> None:
    file = io.StringIO()
    with Console(tmp_path / "log.txt", file=file) as console:
        console.plan({"books/train": 30.0, "kettles/train": 10.0})
        console.order(2)
        console.task(0, "books")
        with console.phase("train", total=30) as progress:
            for step in range(30):
                clock.now += 1
                progress.advance(1, loss=1.0 / (step + 1))
    # One unit a second: after 10 steps 20 of the phase and 30 of the whole order are left.
    assert plain(file.getvalue()) == [
        "task 1/2: books",
        "books: train 0/30",
        "books: train 10/30 loss 0.1 (20.0 s left) (all: 30.0 s left)",
        "books: train 20/30 loss 0.05 (10.0 s left) (all: 20.0 s left)",
        "books: train 30/30 loss 0.03333 (all: 10.0 s left)",
        "books: train 30/30 in 30.0 s loss 0.03333",
    ]
    log = (tmp_path / "log.txt").read_text()
    assert [line[20:] for line in log.splitlines()] == plain(file.getvalue())
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d task 1/2: books\n", log)


def test_a_resumed_run_tells_the_time_left_by_its_own_pace(clock: Clock) -> None:
    file = io.StringIO()
    with Console(file=file) as console:
        console.plan({"books/train": 100.0, "kettles/train": 40.0, "shoes/train": 20.0})
        console.order(3)
        console.task(1, "kettles")
        with console.phase("train", total=80, done=40) as progress:
            for _ in range(20):
                clock.now += 1
                progress.advance(1)
    # 20 steps in 20 s are 10 of the plan's units: 10 more of this task and 20 of the next take 60 s.
    assert "kettles: train 60/80 (20.0 s left) (all: 1:00 left)" in plain(file.getvalue())


def test_a_nested_phase_speaks_only_when_it_took_long(clock: Clock) -> None:
    file = io.StringIO()
    with Console(file=file) as console, console.phase("train", total=2) as progress:
        for seconds in (0.5, 3.0):
            with console.phase("checkpoint"):
                clock.now += seconds
            progress.advance()
    assert plain(file.getvalue()) == ["train 0/2", "checkpoint in 3.0 s", "train 2/2 in 3.5 s"]


def test_the_matrix_stars_the_task_just_learned_and_takes_named_columns() -> None:
    file = io.StringIO()
    with Console(file=file) as console:
        rows = [("start", [50.0, 20.0]), ("books", [81.26, 19.0]), ("dvd", [80.0, None])]
        console.matrix(["books", "dvd"], rows, {"union": [35.0, 50.1, None]})
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert lines[0] == ["after", "books", "dvd", "union"]
    assert lines[2:] == [
        ["start", "50.0", "20.0", "35.0"],
        ["books", "*81.3", "19.0", "50.1"],
        ["dvd", "80.0"],
    ]


def test_a_row_without_any_score_is_not_shown() -> None:
    file = io.StringIO()
    with Console(file=file) as console:
        console.row("start", {})
        console.row("books", {"books": 81.26})
    assert plain(file.getvalue()) == ["scores after books: books 81.3"]


def test_a_wide_matrix_is_split_and_no_number_is_cut() -> None:
    names = [f"a_long_name_of_a_task_{i}" for i in range(30)]
    file = io.StringIO()
    with Console(file=file) as console:
        console.matrix(names, [(name, [100.0] * 30) for name in names], {"union": [100.0] * 30})
    text = file.getvalue()
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= console_module.PLAIN_WIDTH
    assert text.count("100.0") == 30 * 31
    headings = [word for line in text.splitlines() if line.lstrip().startswith("after") for word in line.split()]
    assert [word for word in headings if word != "after"] == [*map(str, range(1, 31)), "union"]


def test_brackets_in_a_text_are_printed_as_they_are() -> None:
    file = io.StringIO()
    with Console(file=file) as console:
        console.line("method=[ewc,lwf] [bold]")
        console.header("run", [("method", "[red]pe[/red]")])
        console.error("no [x]")
    printed = plain(file.getvalue())
    assert printed[0] == "method=[ewc,lwf] [bold]"
    assert "[red]pe[/red]" in file.getvalue()
    assert printed[-1] == "error: no [x]"


def test_on_a_terminal_the_bars_show_task_and_phase_and_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    file = io.StringIO()
    with Console(file=file, terminal=True) as console:
        console.plan({"books/train": 1.0})
        console.order(1)
        console.task(0, "books")
        with console.phase("train", total=4) as progress:
            progress.advance(3, loss=0.5)
            console._bars.refresh()
            shown = file.getvalue()
        console.row("books", {"books": 81.26}, {"union": 70.0})
    assert "all tasks" in shown and "task 1" in shown
    assert "3/4" in shown and "loss 0.5" in shown
    assert re.search(r"after .*books.*81\.3.*union.*70\.0", file.getvalue())
    assert console._bars is None
    assert file.getvalue().endswith("\x1b[2K") or "\x1b[?25h" in file.getvalue()


def test_the_terminal_is_left_in_order_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), Console(file=io.StringIO(), terminal=True) as console:
        console.order(1)
        console.task(0, "books")
        with console.phase("train", total=4):
            raise KeyboardInterrupt
    assert console._bars is None
    assert console._phases == []
