"""The command `methods`: a table of all methods, or one with its options, from the code and its files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cl_runner.access import UNSAID, mark
from cl_runner.arguments import Parser
from cl_runner.built_in import FAMILIES
from cl_runner.catalogue.entries import Entry, entry
from cl_runner.combinations import COMPANIONS
from cl_runner.groups import check_folders, options, options_with
from cl_runner.overrides import COMMAND, command_line, nearest, written
from cl_runner.plain import plain, plain_lines
from cl_runner.registry import installed
from cl_runner.said import OLD_DATA, TOLD

#: Characters of a line that the table takes, at least.
WIDE = 150


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} methods",
        description="Every method: its paper, what trains, what it keeps, whether it goes back to data of old tasks "
        "and is told a question's task, families of models, combinations that are tried. By name: its options.",
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="an option of group `method`, of which all is shown")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path, metavar="DIR")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0, or 2 after a message for a wrong request, or for each file of the user's that cannot be read.
    """
    wrong: list[ValueError] = []
    try:
        asked = _parser().parse_intermixed_args(list(arguments))
        check_folders(asked.config_dir)
        known = options("method", asked.config_dir)
        for name in asked.names:
            if name not in known:
                raise _unknown(name, known, asked.config_dir)
        found: list[Entry] = []
        for name in asked.names or known:
            try:
                found.append(entry(name, asked.config_dir))
            except ValueError as error:
                wrong.append(ValueError(f"method {name}: {error}"))
        if asked.json:
            content = [one.content() for one in found]
            print(
                json.dumps(content[0] if len(asked.names) == 1 and content else content, indent=1, ensure_ascii=False)
            )
        elif asked.names:
            for one in found:
                _show_one(one)
        else:
            _show_all(found)
    except ValueError as error:
        wrong.append(error)
    for mistake in wrong:
        print(f"cl_runner: {plain_lines(mistake)}", file=sys.stderr)
    return 2 if wrong else 0


def _unknown(name: str, known: Sequence[str], folders: Sequence[Path]) -> ValueError:
    """What to say of a method that is none."""
    line = command_line([], folders, command="methods")
    bringing = options_with(name, folders)
    if bringing:
        best = nearest(name, bringing) or bringing[0]
        return ValueError(f"{name!r} is the node of {', '.join(bringing)}. Type: {line} {best}")
    close = nearest(name.rpartition("=")[2].strip("[]"), known)
    said = f"there is no method {name!r}; there are: {', '.join(known)}."
    if close:
        said += f"\nNearest: {close!r}. Type: {line} {close}"
    return ValueError(said)


def _show_all(found: Sequence[Entry]) -> None:
    """A row each; texts wrap. On a narrow terminal the columns make two tables."""
    console = Console(highlight=False)
    heads = list(COLUMNS)
    narrow = console.is_terminal and console.width < WIDE
    for part in (heads[:3], heads[3:]) if narrow else (heads,):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("method", no_wrap=True)
        for head in part:
            table.add_column(head, overflow="fold")
        for one in found:
            table.add_row(*(Text(plain(text)) for text in (one.name, *(COLUMNS[head](one) for head in part))))
        (console if console.is_terminal else Console(highlight=False, width=WIDE)).print(table)
    for note in _notes(found):
        console.print(Text(plain(note)), soft_wrap=True)


def _notes(found: Sequence[Entry]) -> list[str]:
    lines = [
        "trains: - = what another method of its chain chooses, or all weights",
        f"old data: of earlier tasks, {_legend([one.old_data for one in found], OLD_DATA)}",
        f"task told: of a question in a test, {_legend([one.told for one in found], TOLD)}",
        f"tried beside: of {', '.join(COMPANIONS)} that the tests chain with it; others are it, or refused",
    ]
    brought = {node.key.partition(".")[2] for one in found for node in one.nodes}
    lines += [
        f"The installed {place} brings the method {name}. To choose it, a file method/{name}.yaml holds `{name}:` and "
        "its options, in a folder that --config-dir names."
        for name, place in installed("methods").items()
        if name not in brought
    ]
    return [*lines, f"All of one: {COMMAND} methods NAME"]


def _show_one(one: Entry) -> None:
    """What the row says in full, and its options."""
    console = Console(highlight=False)
    facts = {
        "from": one.source or "-",
        "trains": one.trains or "what another method of its chain chooses, or all weights",
        "keeps": "; ".join(one.keeps) or "nothing beside the weights",
        "old data": _said(one.old_data, OLD_DATA) or "not used",
        "task told": _said(one.told, TOLD) or "no",
        "families": ", ".join(one.families),
        "tried beside": _tried(one),
        **{f"beside {name}": reason for name, reason in (one.beside or {}).items() if reason},
    }
    console.print(Text(plain(f"{one.name}: {one.purpose}"), style="bold"), soft_wrap=True)
    console.print(Text(f"Type: {one.command}"), soft_wrap=True)
    for name, text in facts.items():
        console.print(Text(f"{name}: {plain_lines(text)}"), soft_wrap=True)
    for node in one.nodes:
        console.print()
        console.print(Text(plain(f"{node.key}: {node.defined_by}"), style="bold"), soft_wrap=True)
        if node.text:
            console.print(Text(plain_lines(node.text)), soft_wrap=True)
        for option in node.options:
            console.print()
            shown = "" if isinstance(option.value, Mapping) else f"={written(option.value)}"  # its parts follow
            console.print(Text(plain(f"  {option.key}{shown}")), soft_wrap=True)
            for line in (option.may_be, option.read, option.meaning):
                if line:
                    console.print(Text(plain(f"      {line}")), soft_wrap=True)


def _said(words: Sequence[str], meanings: Mapping[str, tuple[str, str]]) -> str:
    """Marks with what they stand for."""
    return ", ".join(" ".join(meanings.get(word, (word, "not said"))) for word in words)


def _legend(rows: Sequence[Sequence[str]], meanings: Mapping[str, tuple[str, str]]) -> str:
    """What the marks of a column stand for."""
    return _said([word for word in [*meanings, UNSAID] if any(word in row for row in rows)], meanings) or "none"


def _families(one: Entry) -> str:
    others = [family for family in FAMILIES if family not in one.families]
    if not others:
        return "all"
    return f"all but {others[0]}" if len(others) == 1 else ", ".join(one.families)


def _tried(one: Entry) -> str:
    if one.beside is None:
        return "not tried"
    return ", ".join(name for name, reason in one.beside.items() if reason is None) or "none"


#: Columns of the table behind the name.
COLUMNS: Mapping[str, Callable[[Entry], str]] = {
    "from": lambda one: one.source or "-",
    "trains": lambda one: one.trains or "-",
    "keeps": lambda one: "; ".join(one.keeps) or "-",
    "old data": lambda one: mark(one.old_data, OLD_DATA),
    "task told": lambda one: mark(one.told, TOLD),
    "families": _families,
    "tried beside": _tried,
}
