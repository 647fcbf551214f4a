"""A table of texts, and its forms on the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from cl_runner.plain import plain


@dataclass(frozen=True)
class Table:
    """Rows of texts below a header."""

    header: list[str]
    rows: list[list[str]]
    title: str = ""
    left: int = 1  # columns that name things and are aligned left
    notes: list[str] = field(default_factory=list)
    long: int | None = None  # the column of sentences, which may wrap on a page
    below: list[list[str]] = field(default_factory=list)  # rows of signs, which a CSV of numbers has not


def safe_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: what begins like one, and is no number, begins with a quote."""
    shown = plain(text)
    if text[:1] not in ("=", "+", "-", "@", "\t", "\r") or text == "-":
        return shown
    try:
        float(text)
    except ValueError:
        return f"'{shown}"
    return shown


def as_csv(table: Table) -> str:
    """The cells alone, without those below."""
    text = io.StringIO()
    rows = [[safe_cell(cell) for cell in row] for row in [table.header, *table.rows]]
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def as_markdown(table: Table) -> str:
    """With title and notes."""
    return "\n".join([f"### {plain(table.title)}", "", rows_as_markdown(table), "", *map(plain, table.notes), ""])


def rows_as_markdown(table: Table) -> str:
    """The header and the rows."""
    lines = ["| " + " | ".join(map(_piped, table.header)) + " |"]
    lines.append("|" + "|".join("---" if place < table.left else "--:" for place in range(len(table.header))) + "|")
    lines += ["| " + " | ".join(map(_piped, row)) + " |" for row in [*table.rows, *table.below]]
    return "\n".join(lines)


def as_text(table: Table) -> str:
    """Aligned columns below the title, and the notes, as lines."""
    lines = [[plain(cell) for cell in row] for row in [table.header, *table.rows, *table.below]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(
            cell.ljust(width) if place < table.left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in lines
    ]
    return "\n".join([plain(table.title), *shown, *map(plain, table.notes)])


def _piped(cell: str) -> str:
    return plain(cell).replace("|", "\\|")


def show(table: Table) -> None:
    """Print it in blocks of columns that fit the terminal's width; piped elsewhere in one piece."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    heads = [plain(name).replace("/", "/\n") for name in table.header]
    rows = [[plain(cell) for cell in row] for row in [*table.rows, *table.below]]
    # Three blanks between columns.
    widths = [
        max(len(line) for cell in column for line in cell.split("\n")) + 3 for column in zip(heads, *rows, strict=True)
    ]
    parts = blocks(widths, table.left, console.width - 2 if console.is_terminal else sum(widths))
    if not console.is_terminal:
        console = Console(highlight=False, width=sum(widths) + 2)
    for number, block in enumerate(parts):
        title = Text("" if number else plain(table.title))
        shown = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for place in block:
            shown.add_column(Text(heads[place]), justify="left" if place < table.left else "right", no_wrap=True)
        for row in rows:
            shown.add_row(*(Text(row[place]) for place in block))
        console.print(shown)
    for note in table.notes:
        console.print(Text(plain(note), style="dim"), soft_wrap=True)


def blocks(widths: Sequence[int], left: int, room: int) -> list[list[int]]:
    """Column numbers of each block: the first `left` ones in all, the others in order as they fit into `room`."""
    named = list(range(left))
    found = [list(named)]
    for place in range(left, len(widths)):
        if len(found[-1]) > left and sum(widths[p] for p in found[-1]) + widths[place] > room:
            found.append(list(named))
        found[-1].append(place)
    return found
