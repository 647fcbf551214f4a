"""A published table as texts: in the paper's shape, with what runs measured beside it, and one line per cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_lowercase

from cl_runner.overrides import command_line
from cl_runner.papers.measured import Filling, Measured
from cl_runner.papers.published import GRADES, UNVERIFIED, WRONG, Cell, Protocol, Published
from cl_runner.report.costs import COSTS, bytes_text, cost_text
from cl_runner.report.text_table import Table

#: What a protocol says, in the order in which it is said.
FIELDS = ("backbone", "data", "cut", "order", "metric", "epochs", "selection", "formula", "seeds")
NOT_SAID = "not said"


def listing(tables: Sequence[Published]) -> Table:
    """A line for each table."""
    rows = [
        [
            each.name,
            each.in_the_paper,
            each.data.title,
            "; ".join(row.name for row in each.data.rows),
            "; ".join(column.name for column in each.data.columns),
        ]
        for each in tables
    ]
    about = {each.paper: each.about for each in tables}
    notes = [f"{name}: {paper.title}. {paper.source}" for name, paper in about.items()]
    notes += [f"not here, of {name}: {'; '.join(paper.missing)}" for name, paper in about.items() if paper.missing]
    return Table(["table", "in the paper", "title", "rows", "columns"], rows, "Published tables", left=5, notes=notes)


def marks_of(filling: Filling) -> dict[tuple[str, ...], str]:
    """What sets measured numbers apart from the protocol -> the letter that marks it."""
    every = [*filling.cells.values(), *(found for rows in filling.beside.values() for found in rows.values())]
    apart = dict.fromkeys(found[0].differs for found in every if found and found[0].differs)
    return {differs: _letter(place) for place, differs in enumerate(apart)}


def _letter(place: int) -> str:
    more, last = divmod(place, len(ascii_lowercase))
    return (_letter(more - 1) if more else "") + ascii_lowercase[last]


def in_shape(table: Published, filling: Filling | None) -> Table:
    """Rows and columns as published; columns of which something was measured have that beside them."""
    data = table.data
    marks = marks_of(filling) if filling else {}
    header, across = [""], []
    for column in data.columns:
        header.append(column.name)
        across.append((column.name, False))
        if filling and any(name == column.name for _, name in filling.cells):
            header.append(f"{column.name}, measured")
            across.append((column.name, True))
    rows = []
    for row in data.rows:
        texts = [row.name]
        for name, is_measured in across:
            cell = table.cells[row.name, name]
            found = filling.cells.get((row.name, name)) if filling and is_measured else None
            texts.append(measured_text(table, cell, found, marks) if is_measured else table.text(cell))
        rows.append(texts)
    for label, measured in filling.beside.items() if filling else ():
        header.append(f"{label} (not in the table), measured")
        for texts, row in zip(rows, data.rows, strict=True):
            cell = next(cell for (name, _), cell in table.cells.items() if name == row.name)
            texts.append(measured_text(table, cell, measured.get(row.name), marks))
    title = f"{table.name}: {data.title}"
    return Table(header, rows, title, notes=_notes(table, filling, marks))


def measured_text(
    table: Published, cell: Cell, found: Sequence[Measured] | None, marks: Mapping[tuple[str, ...], str]
) -> str:
    """Mean, interval, number of runs where there are several, and the letter of what differs."""
    if not found:
        return "-"
    first = found[0]
    shown = number_text(table, cell, first.mean)
    if first.low is not None and first.high is not None:
        shown += f" [{number_text(table, cell, first.low)}, {number_text(table, cell, first.high)}]"
    if len(first.runs) > 1:
        shown += f" n={len(first.runs)}"
    return shown + (f" {marks[first.differs]}" if first.differs else "")


def number_text(table: Published, cell: Cell, value: float) -> str:
    """A measured number as the table prints its own; costs in their units."""
    if cell.measure in COSTS:
        return cost_text(cell.measure, value)
    if cell.measure == "model_bytes":
        return bytes_text(value)
    return f"{value:.{max(table.data.decimals, 2)}f}"


def _notes(table: Published, filling: Filling | None, marks: Mapping[tuple[str, ...], str]) -> list[str]:
    data, about = table.data, table.about
    notes = [
        f"{about.title}. {about.source}; {table.in_the_paper}"
        + ", there with rows and columns exchanged" * data.transposed
    ]
    notes += _how_known(table)
    common = about.protocol.over(data.protocol)
    notes.append(f"protocol: {said(common)}")
    for kind, lines in (("row", data.rows), ("column", data.columns)):
        for line in lines:
            own = {name: getattr(line.protocol, name) for name in FIELDS if name in line.protocol.model_fields_set}
            if own:
                notes.append(
                    f"{kind} {line.name}: " + "; ".join(f"{key}: {value}" for key, value in own.items() if value)
                )
    for error in data.errors:
        where = " / ".join(", ".join(names) for names in (error.rows, error.columns) if names)
        notes.append(f"{WRONG} error of print, {where or 'all cells'}: {error.text}")
    notes += [f"{row.name}: {row.note}" for row in data.rows if row.note]
    notes += list(data.remarks)
    notes += [f"not here: {text}" for text in about.missing]
    notes += not_made(table)
    if data.deviates:
        notes.append("what our commands do otherwise, or do not know: " + "; ".join(data.deviates))
    if filling is not None:
        notes += _measured_notes(table, filling, marks)
    return notes


def _how_known(table: Published) -> list[str]:
    """Where the numbers are from; those from memory are marked."""
    rows: dict[str, list[str]] = {}
    for (row, _), cell in table.cells.items():
        if cell.value is not None and row not in rows.setdefault(cell.grade, []):
            rows[cell.grade].append(row)
    alone = len(rows) == 1
    return [
        (f"{UNVERIFIED} " if grade == "memory" else "")
        + ("all numbers" if alone else ", ".join(names))
        + f": {GRADES[grade]}"
        for grade, names in rows.items()
    ]


def not_made(table: Published) -> list[str]:
    """Rows and columns that no command makes, by the reason."""
    reasons: dict[str, list[str]] = {}
    for line in (*table.data.rows, *table.data.columns):
        if line.none:
            reasons.setdefault(line.none, []).append(line.name)
    if table.data.none:
        reasons.setdefault(table.data.none, []).append("all rows")
    return [f"no command for {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def said(protocol: Protocol) -> str:
    """A protocol in one line."""
    parts = {name: getattr(protocol, name) for name in FIELDS}
    return "; ".join(f"{'runs' if name == 'seeds' else name}: {value or NOT_SAID}" for name, value in parts.items())


def _measured_notes(table: Published, filling: Filling, marks: Mapping[tuple[str, ...], str]) -> list[str]:
    several = [found for found in filling.cells.values() if len(found[0].runs) > 1]
    notes = ["measured: [95 % interval]: Student's over several runs (n), of one run its bootstrap over test examples"]
    if not several and not filling.cells and not filling.beside:
        notes = ["none of these runs fills a cell"]
    notes += [f"{letter} differs: {'; '.join(differs)}" for differs, letter in marks.items()]
    if any(not found[0].differs for found in filling.cells.values()):
        notes.append("no letter: as the table's command, and as far as the paper says its protocol")
    for (row, column), found in filling.cells.items():
        for other in found[1:]:
            cell = table.cells[row, column]
            text = f"also {row} / {column}: {number_text(table, cell, other.mean)} ({other.runs[0].folder}"
            notes.append(f"{text}); differs: {'; '.join(other.differs) or 'nothing'}")
    return [*notes, *(f"fills no cell: {text}" for text in filling.unplaced)]


#: Columns of the long form.
LONG = ("table", "row", "column", "published", "known", "error of print", "measured", "low", "high", "runs", "differs")


def one_line_per_cell(table: Published, filling: Filling | None) -> Table:
    """Every cell with its protocol, the command that makes it, and all that was measured of it."""
    rows = []
    for place, cell in table.cells.items():
        found: list[Measured | None] = [*filling.cells.get(place, [])] if filling else []
        rows += [_line(table, place, cell, each) for each in found or [None]]
    for label, measured in filling.beside.items() if filling else ():
        for row, several in measured.items():
            cell = next(cell for (name, _), cell in table.cells.items() if name == row)
            rows += [_line(table, (row, f"{label} (not in the table)"), cell, each, True) for each in several]
    return Table([*LONG, *FIELDS, "command"], rows, table.data.title)


def _line(
    table: Published, place: tuple[str, str], cell: Cell, measured: Measured | None, beside: bool = False
) -> list[str]:
    known = not beside and cell.value is not None
    exact = ["", "", "", "", ""]
    if measured is not None:
        bounds = ["" if value is None else repr(value) for value in (measured.low, measured.high)]
        exact = [repr(measured.mean), *bounds, str(len(measured.runs)), "; ".join(measured.differs)]
    published = "" if not known else str(cell.value) if isinstance(cell.value, str) else table.text(cell).rstrip("?!")
    about = [str(getattr(cell.protocol, name) or NOT_SAID) for name in FIELDS]
    command = command_line(cell.overrides) if cell.overrides else cell.none or ""
    return [
        table.name,
        *place,
        published,
        GRADES[cell.grade] if known else "",
        "; ".join(cell.errors) if known else "",
        *exact,
        *about,
        "" if beside else command,
    ]
