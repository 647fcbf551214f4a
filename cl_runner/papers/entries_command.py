"""`python -m cl_runner papers [NAME ...]`: every table and figure of the papers, its runs and what shows it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cl_runner.arguments import Parser
from cl_runner.overrides import COMMAND, nearest, quoted
from cl_runner.papers.entries import as_table, entries
from cl_runner.papers.published import papers
from cl_runner.plain import plain, plain_lines
from cl_runner.report.text_table import as_markdown


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} papers",
        description="Every table and figure of the papers, or of those named: the lines that run what it is made of, "
        "and the line that shows it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a paper, or one of its tables and figures: pe, pe/1; all by default"
    )
    parser.add_argument("--data-root", metavar="DIR", help="of the lines: where data lie")
    parser.add_argument("--markdown", action="store_true", help="as the table of a page, without seeds")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0, or 2 after one message for a wrong request.
    """
    try:
        asked = _parser().parse_intermixed_args(list(arguments))
        known = [*papers(), *dict.fromkeys(each.name for each in entries() if each.name)]
        for name in asked.names:
            if name not in known:
                raise ValueError(_unknown(name, known, asked.names))
        found = entries(asked.names)
        if asked.markdown:
            if asked.data_root is not None:
                raise ValueError("--data-root belongs to lines, which --markdown leaves without it")
            print(as_markdown(as_table(found)), end="")
            return 0
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    about = ""
    for each in found:
        if each.paper != about:
            about = each.paper
            print(f"{'' if each is found[0] else chr(10)}# {plain(papers()[about].title)}. {papers()[about].source}")
        print(f"\n# {about}: {each.place}. {plain(each.title)}" + (f". No line: {plain(each.none)}" * bool(each.none)))
        for line in each.lines(asked.data_root):
            print(line)
    return 0


def _unknown(name: str, known: Sequence[str], typed: Sequence[str]) -> str:
    """What to say of a name that is not here."""
    close = nearest(name, known)
    if close is None:
        return f"there is no paper, table or figure {name!r}; papers: {', '.join(papers())}. See all: {COMMAND} papers"
    right = " ".join(quoted(close if each == name else each) for each in typed)
    return f"there is no paper, table or figure {name!r}. Nearest: {close!r}. Type: {COMMAND} papers {right}"
