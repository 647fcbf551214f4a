"""The command `choose`: the best try of each method by validation examples, and the lines of its test runs."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_runner.arguments import Parser, unwritable
from cl_runner.choosing.choice import SCORE, Choice, Criterion, choose
from cl_runner.choosing.record import CHOSEN, content, values_text, write_record
from cl_runner.overrides import COMMAND, command_line, key_of
from cl_runner.plain import plain, plain_lines
from cl_runner.report.folder import Run, find_runs
from cl_runner.report.text_table import Table, show
from cl_runner.report.where import where


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} choose",
        description="Of a sweep scored on validation examples (evaluation.split=validation) the best try of each "
        "method, among as many tries of every method: the lines of the test runs, and chosen.json beside "
        "them, which their report names.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="ROOT", help="of the tries")
    parser.add_argument(
        "--by",
        default=SCORE,
        metavar="NUMBER",
        help="score (default): the mean of the matrix's last row; a probe with a number per task, such as task_loss; "
        "or any number of a report",
    )
    parser.add_argument("--first", type=int, metavar="K", help="of the first K tasks after task K, not of all")
    parser.add_argument("--seeds", metavar="LIST", help="of the test runs; three that no try has by default")
    parser.add_argument("--root", type=Path, metavar="DIR", help="of the test runs; that of the tries + _chosen")
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="as of `report`")
    parser.add_argument("--unequal", action="store_true", help="whatever the numbers of tries are, which is recorded")
    parser.add_argument("--json", action="store_true", help="print the record and the lines as JSON")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0, or 2 after one message for a wrong request."""
    try:
        _run(_parser().parse_args(list(arguments)))
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    return 0


def _run(asked: argparse.Namespace) -> None:
    if asked.first is not None and asked.first < 1:
        raise ValueError(f"--first {asked.first}: a number of tasks from 1 on")
    runs, notes = find_runs(asked.folders)
    for note in notes:
        print(plain(note), file=sys.stderr)
    if not runs:
        raise ValueError(f"no completed run in {', '.join(map(str, asked.folders))}")
    if asked.where:
        runs = where(runs, asked.where)
    criterion = Criterion(asked.by, asked.first)
    choices = choose(runs, criterion, asked.unequal)
    root = asked.root or Path(f"{str(runs[0].config.get('root', 'outputs')).rstrip('/')}_chosen")
    seeds = _seeds(asked.seeds, runs)
    lines = [test_line(choice, criterion, seeds, root) for choice in choices]
    try:
        said = write_record(root, choices, criterion)
    except OSError as error:
        raise unwritable(root / CHOSEN, error) from None
    if asked.json:
        print(json.dumps({**content(choices, criterion), "lines": lines, "record": str(root / CHOSEN)}, indent=1))
    else:
        show(_table(choices, criterion))
        print("\n".join(["", *lines, "", f"recorded in {root / CHOSEN}, which the report of these runs names"]))
    for line in said:
        print(plain(f"Note: {line}"), file=sys.stderr)


def _seeds(text: str | None, runs: Sequence[Run]) -> str:
    tried = {run.seed for run in runs}
    if text is None:
        first = max(tried) + 1
        return ",".join(map(str, range(first, first + 3)))
    for seed in text.split(","):
        if not seed.strip().isdecimal():
            raise ValueError(f"--seeds {text}: whole numbers by commas, such as --seeds 1,2,3")
        if int(seed) in tried:
            raise ValueError(
                f"--seeds {text}: {int(seed)} is a seed of the tries. What was chosen by it would look better on it "
                f"than it is. Type: --seeds {_seeds(None, runs)}"
            )
    return text


def test_line(choice: Choice, criterion: Criterion, seeds: str, root: Path) -> str:
    """What to type to run the chosen try of a method on test examples."""
    best = choice.best
    left_out = {"seed", "root", "evaluation.split", f"probe.{criterion.by}.split"}
    values: dict[str, list[str]] = {}
    for run in best.runs:
        for override in run.overrides:
            key, equal, value = override.partition("=")
            found = values.setdefault(key + equal, [])
            if value not in found:
                found.append(value)
    overrides = [key + ",".join(found) for key, found in values.items() if key_of(key) not in left_out]
    return command_line([*overrides, f"seed={seeds}", f"root={root}"], _folders(best.runs[0]), multirun=True)


def _folders(run: Run) -> list[Path]:
    """The user's folders of configuration files that a run was typed with."""
    words = shlex.split(str(run.environment.get("command", "")))
    return [Path(after) for word, after in itertools.pairwise(words) if word in ("--config-dir", "-cd")]


def _table(choices: Sequence[Choice], criterion: Criterion) -> Table:
    rows = []
    for choice in choices:
        others = sorted((one.value for one in choice.tries if one is not choice.best), reverse=not criterion.lower)
        rows.append(
            [
                choice.name,
                str(len(choice.tries)),
                str(len(choice.best.runs)),
                values_text(choice.best.values),
                f"{choice.best.value:.3f}",
                f"{others[0]:.3f}" if others else "-",
            ]
        )
    header = ["method", "tries", "runs of each", "chosen", criterion.by, "next"]
    notes = [f"chosen by {criterion.text}, on validation examples; of equal tries the one with the lowest values"]
    if len({len(choice.tries) for choice in choices}) > 1:
        notes.append("UNEQUAL numbers of tries: the more a method was tried, the better its best try looks")
    return Table(header, rows, "Chosen", 1, notes)
