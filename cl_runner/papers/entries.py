"""Every table and figure of the papers as an entry: the runs that make it, and the line that shows it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cl_runner.overrides import COMMAND, command_line, jobs_of
from cl_runner.papers.figures import Figure, figures
from cl_runner.papers.missing import SEEDS, Command, commands
from cl_runner.papers.published import OtherData, Published, papers, tables
from cl_runner.report.text_table import Table

#: What the runs of an entry lie in, as its lines have it.
OUTPUTS = "outputs"


@dataclass(frozen=True)
class Entry:
    """A table or figure of a paper, or several that are shown alike.

    Attributes:
        paper: the name of its file.
        name: by which the commands `table` and `figure` know it; empty if they do not.
        place: where it stands in the paper.
        runs: overrides of a multirun each, several values by commas, without seeds and without the place of data.
        seeds: runs of each setting.
        shown: what is typed behind the program's name to see it; empty if nothing shows it, and `none` says why.
    """

    paper: str
    name: str
    place: str
    title: str
    runs: tuple[tuple[str, ...], ...]
    seeds: int
    shown: str
    none: str

    def lines(self, data_root: str | None = None) -> list[str]:
        """The lines to type, in their order: those of its runs, then the one that shows it."""
        beside = [*([f"data_root={data_root}"] if data_root else []), f"seed={','.join(map(str, range(self.seeds)))}"]
        made = [command_line([*each, *beside], multirun=True) for each in self.runs]
        return [*made, *([f"{COMMAND} {self.shown}"] if self.shown else [])]


def entries(names: Collection[str] = ()) -> list[Entry]:
    """All tables and figures of all papers, as far as they are known here: tables first, then by their numbers.

    Args:
        names: papers, or tables and figures such as pe/1, that are wanted alone.
    """
    return [each for each in _entries() if not names or each.paper in names or (each.name and each.name in names)]


@functools.cache
def _entries() -> tuple[Entry, ...]:
    found: list[tuple[str, int, int, Entry]] = [
        (each.paper, 0 if each.data.printed else 2, each.data.number, _of_table(each)) for each in tables()
    ]
    found += [(each.paper, 1, each.data.number, _of_figure(each)) for each in figures()]
    for name, paper in papers().items():
        for other in paper.others:
            kind, numbers = (0, other.tables) if other.tables else (1, other.figures)
            found.append((name, kind if numbers else 3, numbers[0] if numbers else 0, _other(name, other)))
    return tuple(each for *_, each in sorted(found, key=lambda line: line[:3]))


def joined(lines: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Multiruns with the same runs as the given ones, in fewer lines: two that differ in one value become one."""
    left = [list(line) for line in lines]
    pairs = [(place, other) for place in range(len(left)) for other in range(place + 1, len(left))]
    for place, other in pairs:
        one = _one_line(left[place], left[other])
        if one is not None:
            return joined([*left[:place], one, *left[place + 1 : other], *left[other + 1 :]])
    return [tuple(line) for line in left]


def _one_line(first: Sequence[str], second: Sequence[str]) -> list[str] | None:
    """Both as one line, if they say the same keys and differ in the value of one of them alone."""
    keys = [[text.partition("=")[0] for text in line] for line in (first, second)]
    differ = [place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]]
    if keys[0] != keys[1] or len(differ) != 1:
        return None
    (at,) = differ
    return [*first[:at], f"{first[at]},{second[at].partition('=')[2]}", *first[at + 1 :]]


def _of_table(table: Published) -> Entry:
    made = commands(table, (), None, every=True)
    place = table.in_the_paper if table.data.printed else f"numbers of {table.name}"
    return _entry(table.paper, table.name, place, table.data.title, made, "table", table.data.none)


def _of_figure(figure: Figure) -> Entry:
    place = f"figure {figure.data.number}"
    return _entry(figure.paper, figure.name, place, figure.data.title, figure.commands(), "figure", "")


def _entry(paper: str, name: str, place: str, title: str, made: Sequence[Command], verb: str, none: str) -> Entry:
    """Of a table that no run makes, the published numbers alone are shown."""
    seeds = max(
        (len(jobs_of([text for text in each.overrides if text.startswith("seed=")])) for each in made), default=0
    )
    runs = joined([[text for text in each.overrides if not text.startswith("seed=")] for each in made])
    shown = f"{verb} {name}" + (f" {OUTPUTS}" if runs else "")
    return Entry(paper, name, place, title, tuple(runs), seeds, shown, none)


def _other(paper: str, other: OtherData) -> Entry:
    place = other.place or ", ".join(
        f"{kind[: -1 if len(numbers) == 1 else None]} {_spans(numbers)}"
        for kind, numbers in (("tables", other.tables), ("figures", other.figures))
        if numbers
    )
    runs = tuple(tuple(line.split()) for line in other.runs)
    return Entry(paper, "", place, other.title, runs, SEEDS, other.shown, other.none)


def _spans(numbers: Sequence[int]) -> str:
    """Consecutive numbers in short: 1 to 4."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return " and ".join(map(str, numbers))


def as_table(found: Sequence[Entry]) -> Table:
    """Entries as the rows of a page: what is typed behind the program's name, runs with -m, seeds left out."""
    start = len(command_line([], multirun=True)) + 1
    rows = []
    for each in found:
        runs = [command_line(line, multirun=True)[start:] for line in each.runs]
        shown = f"`{each.shown}`" if each.shown else each.none
        rows.append([f"{each.paper}: {each.place}", each.title, "<br>".join(f"`{line}`" for line in runs), shown])
    header = ["table or figure", "what it shows", f"runs: `{COMMAND} -m`", f"shown by `{COMMAND}`"]
    return Table(header, rows, "Every table and figure of PE, SLM and PIECE", left=4)
