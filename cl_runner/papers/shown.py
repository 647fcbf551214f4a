"""Listings and commands of the papers' tables and figures on the terminal."""

from __future__ import annotations

import sys

from cl_runner.plain import plain
from cl_runner.report.text_table import Table


def on_the_terminal(listed: Table, last: str) -> None:
    """A listing whose texts wrap, with a last line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=150)
    shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, head in enumerate(listed.header):
        shown.add_column(head, overflow="fold", no_wrap=place == 0)
    for row in listed.rows:
        shown.add_row(*(Text(plain(cell)) for cell in row))
    console.print(shown)
    for note in listed.notes:
        console.print(Text(plain(note)), soft_wrap=True)
    console.print(Text(last), soft_wrap=True)


def lines_to_copy(made: Table) -> None:
    """Commands as lines to copy, each below what it fills and costs."""
    print(f"# {plain(made.title)}")
    for rows, columns, runs, planned, command in made.rows:
        print(f"\n# {plain(rows)}: {plain(columns)}; {runs} {'run' if runs == '1' else 'runs'}; {plain(planned)}")
        print(command)
    if not made.rows:
        print("# none")
    for note in made.notes:
        print(f"# {plain(note)}")
