"""`python -m cl_runner figure [NAME] [RUN_OR_FOLDER ...]`: the figures of the papers from runs, with their data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_runner.arguments import Parser
from cl_runner.overrides import COMMAND, nearest
from cl_runner.papers.figures import READS, Figure, figure, figures
from cl_runner.papers.missing import missing_table
from cl_runner.papers.shown import lines_to_copy, on_the_terminal
from cl_runner.plain import plain, plain_lines
from cl_runner.report.text_table import Table

FORMATS = ("png", "svg", "pdf")
FOLDER = Path("outputs/figures")


def _formats(text: str) -> list[str]:
    found = list(dict.fromkeys(part.strip().lower().removeprefix(".") for part in text.split(",") if part.strip()))
    for each in found or [text]:
        if each not in FORMATS:
            close = nearest(each, FORMATS)
            said = f"--format {each!r} is none of {', '.join(FORMATS)}; several by commas"
            raise ValueError(said + (f". Nearest: --format {close}" if close else ""))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} figure",
        description="Without a name: all figures, and what runs they need. With one: the commands that make its runs. "
        "With runs: its pictures from them, each with its data as CSV beside it.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="PAPER/NUMBER", help="a figure, such as pe/3")
    parser.add_argument("folders", nargs="*", type=Path, metavar="RUN_OR_FOLDER", help="runs that it is drawn of")
    parser.add_argument("--format", metavar="FORMATS", help="png (default), svg, pdf; several by commas")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=f"where they are written; {FOLDER} by default")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this value, as in report"
    )
    parser.add_argument("--all", action="store_true", help="runs of methods that the figure has no line of as well")
    parser.add_argument("--task", metavar="NAME", help="of pe/3: the task whose scores are followed, not the first")
    parser.add_argument("--ability", metavar="PROBE/NUMBER", help="of piece/1: another number of a probe")
    parser.add_argument("--queries", action="store_true", help="of slm/4: queries of some texts beside the keys")
    parser.add_argument(
        "--projection", choices=("pca", "tsne"), help="of piece/4: how states become points; pca by default"
    )
    parser.add_argument(
        "--missing", action="store_true", help="the commands for runs that are not there, with their cost"
    )
    parser.add_argument("--data-root", metavar="DIR", help="of the commands that are printed: where data lie")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0, or 2 after one message for a wrong request.
    """
    try:
        asked = _parser().parse_intermixed_args(list(arguments))
        if asked.name is None:
            if asked.missing or asked.format or asked.output:
                raise ValueError(f"a figure's name is missing. Type: {COMMAND} figure pe/3, or see: {COMMAND} figure")
            on_the_terminal(_listing(), f"One of them: {COMMAND} figure pe/3; with runs: {COMMAND} figure pe/3 outputs")
            return 0
        found = figure(asked.name, [word for word in arguments if word != asked.name])
        _check(found, asked)
        formats = _formats(asked.format or "png")
        if asked.folders or ((asked.output or asked.format) and not asked.missing):
            _draw(found, asked, formats)
        else:
            _say_commands(found, asked, ())
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    return 0


def _listing() -> Table:
    rows = [
        [
            each.name,
            each.data.title,
            "; ".join(row.name for row in each.runs.data.rows),
            READS[each.data.draws],
            ", ".join(dict.fromkeys(f"{each.paper}/{part.table}" for part in each.data.published)) or "none",
        ]
        for each in figures()
    ]
    header = ["figure", "what it shows", "runs of", "what it reads of a run", "published numbers beside"]
    return Table(header, rows, "Figures of the papers", left=5)


def _check(found: Figure, asked: argparse.Namespace) -> None:
    """Options that another figure reads."""
    of = {"task": "first_task", "ability": "ability", "queries": "keys_map", "projection": "representations"}
    for option, kind in of.items():
        if getattr(asked, option) and found.data.draws != kind:
            name = next(each.name for each in figures() if each.data.draws == kind)
            raise ValueError(f"--{option} belongs to {name}, and {found.name} does not read it")
    if asked.data_root is not None and asked.folders and not asked.missing:
        raise ValueError("--data-root belongs to the commands that are printed: add --missing, or leave the runs out")


def _say_commands(found: Figure, asked: argparse.Namespace, exact: Sequence[tuple[str, str]]) -> None:
    """What the figure shows, and the lines that make its runs, with their cost if it is asked for."""
    made = found.commands(exact, asked.data_root)
    table = missing_table(found.runs, made) if asked.missing else _unplanned(found, asked)
    title = f"{found.name}: {found.data.title}"
    lines_to_copy(Table(table.header, table.rows, title, notes=_about(found)))


def _unplanned(found: Figure, asked: argparse.Namespace) -> Table:
    rows = [
        [", ".join(each.rows), ", ".join(each.columns), str(len(each.jobs)), "--missing says the cost", each.line]
        for each in found.commands((), asked.data_root)
    ]
    return Table(["rows", "columns", "runs", "planned", "command"], rows)


def _about(found: Figure) -> list[str]:
    notes = [f"reads of each run: {READS[found.data.draws]}"]
    sources = list(dict.fromkeys(point.source for point in found.points))
    notes.append(f"published numbers, drawn hollow: {'; '.join(sources)}" if sources else "prints no numbers")
    notes += found.data.remarks
    deviates = [*found.data.deviates, *found.runs.data.deviates]
    return notes + ([f"what is done otherwise here, or is not known: {'; '.join(deviates)}"] if deviates else [])


def _draw(found: Figure, asked: argparse.Namespace, formats: Sequence[str]) -> None:
    from cl_runner.papers.drawn import find, pictures, write_all
    from cl_runner.papers.picture import Asked, Selection

    selection = Selection([], {}, [])
    if asked.folders:
        runs = find(found, asked.folders, asked.where, asked.all)
        for note in runs.notes:
            print(plain(note), file=sys.stderr)
        if asked.missing:
            _say_commands(found, asked, sorted(runs.selection.exact))
            return
        if runs.nothing:
            raise ValueError(_with_commands(runs.nothing, found, asked))
        selection = runs.selection
    elif asked.where or asked.all or asked.task or asked.ability or asked.queries or asked.projection:
        raise ValueError(
            "--where, --all, --task, --ability, --queries and --projection are about runs: name their folders behind "
            f"{found.name}"
        )
    elif not found.data.published:
        raise ValueError(_with_commands(f"{found.name} prints no numbers, and is drawn of runs alone", found, asked))
    drawn = pictures(found, selection, Asked(asked.task, asked.ability, asked.queries, asked.projection or "pca"))
    for path in write_all(found, drawn.pictures, asked.output or FOLDER, formats):
        print(path)
    for note in [*drawn.notes, *selection.notes(found), *_about(found)[2:]]:
        print(plain(note))


def _with_commands(said: str, found: Figure, asked: argparse.Namespace) -> str:
    lines = "\n".join(each.line for each in found.commands((), asked.data_root))
    return f"{said}. Commands that make its runs (their costs: {COMMAND} figure {found.name} --missing):\n{lines}"
