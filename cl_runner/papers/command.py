"""`python -m cl_runner table [NAME] [RUN_OR_FOLDER ...]`: published tables, and what runs measured beside them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_runner.arguments import Parser
from cl_runner.overrides import COMMAND
from cl_runner.papers.published import Published, table, tables
from cl_runner.papers.shown import lines_to_copy, on_the_terminal
from cl_runner.plain import plain, plain_lines
from cl_runner.report.text_table import Table, as_csv, as_markdown, show

FORMATS = ("terminal", "markdown", "csv", "latex", "html")
#: Endings of files -> the format that is written where none is typed.
ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".html": "html"}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} table",
        description="Without a name: all published tables. With one: its numbers, how they are known, its protocol, "
        "and what the runs named measured, with its interval and what they do otherwise.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="PAPER/NUMBER", help="a table, such as pe/1")
    parser.add_argument("folders", nargs="*", type=Path, metavar="RUN_OR_FOLDER", help="runs to be set beside it")
    parser.add_argument(
        "--missing", action="store_true", help="the commands that would fill its cells, with their cost"
    )
    parser.add_argument("--data-root", metavar="DIR", help="of the commands of --missing: where data lie")
    parser.add_argument("--format", choices=FORMATS, help="csv has one line per cell, with its protocol")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there; its ending says the format")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0, or 2 after one message for a wrong request.
    """
    try:
        asked = _parser().parse_intermixed_args(list(arguments))
        form = _format(asked)
        if asked.name is None:
            if asked.missing:
                raise ValueError(
                    f"--missing is about one table. Type: {COMMAND} table pe/1 --missing, or see: {COMMAND} table"
                )
            _listing(form, asked.output)
            return 0
        rest = [word for word in arguments if word != asked.name]
        found = table(asked.name, rest)
        if asked.data_root is not None and not asked.missing:
            raise ValueError("--data-root belongs to the commands of --missing")
        _print(_made(found, asked, form), form, asked.output)
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    return 0


def _format(asked: argparse.Namespace) -> str:
    ending = ENDINGS.get(asked.output.suffix) if asked.output else None
    form = asked.format or ending or "terminal"
    if asked.output and form == "terminal":
        raise ValueError(f"--output {asked.output} needs --format {', '.join(FORMATS[1:-1])} or {FORMATS[-1]}")
    return str(form)


def _made(found: Published, asked: argparse.Namespace, form: str) -> Table:
    filling = None
    if asked.folders:
        from cl_runner.papers.measured import fill
        from cl_runner.report.command import usable
        from cl_runner.report.folder import find_runs

        runs, notes = find_runs(asked.folders)
        runs, unusable = usable(runs)
        for note in [*notes, *unusable]:
            print(plain(note), file=sys.stderr)
        if not runs:
            raise ValueError(f"no completed run in {', '.join(map(str, asked.folders))}")
        filling = fill(found, runs)
    if asked.missing:
        from cl_runner.papers.missing import commands, missing_table

        return missing_table(found, commands(found, filling.exact if filling else (), asked.data_root))
    from cl_runner.papers.shapes import in_shape, one_line_per_cell

    return one_line_per_cell(found, filling) if form == "csv" else in_shape(found, filling)


def _listing(form: str, output: Path | None) -> None:
    from cl_runner.papers.shapes import listing

    listed = listing(tables())
    if form != "terminal":
        _print(listed, form, output)
        return
    on_the_terminal(listed, f"One of them: {COMMAND} table pe/1; with runs: {COMMAND} table pe/1 outputs")


def _print(made: Table, form: str, output: Path | None) -> None:
    if form == "terminal":
        if made.header[-1] == "command":
            lines_to_copy(made)
        else:
            show(made)
        return
    text = _text(made, form)
    if output is None:
        print(text, end="")
        return
    from cl_runner.report.command import writing
    from cl_runner.report.html import write

    with writing(output):
        write(output, text)
    print(output)


def _text(made: Table, form: str) -> str:
    if form == "csv":
        return as_csv(made)
    if form == "markdown":
        return as_markdown(made)
    if form == "latex":
        from cl_runner.papers.latex import as_latex

        return as_latex(made)
    from cl_runner.report.html import render

    return render("table.html.j2", shown=made)
