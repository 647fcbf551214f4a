"""`python -m cl_runner report RUN_OR_FOLDER ...`: one run's page, or a table over many."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cl_runner.arguments import Parser, unwritable
from cl_runner.choosing.record import chosen_tables
from cl_runner.digests import Damaged
from cl_runner.plain import plain, plain_lines
from cl_runner.report.ability import changes
from cl_runner.report.folder import Run, every_run, is_run, read_run
from cl_runner.report.grouping import group_runs, names_of
from cl_runner.report.numbers import interval_text, value_text, values_of
from cl_runner.report.sections import UNUSABLE, Incomplete, Sections, not_of_a_run
from cl_runner.report.tables import all_tables, check_metric, exact_csv, headline_of, table_shape
from cl_runner.report.text_table import Table, as_csv, as_markdown, show
from cl_runner.report.where import where

PUBLISHED = Path("outputs/published")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m cl_runner report",
        description="One run: its report.html again. Several runs, or a folder: tables over seeds, with report.html, "
        "report.csv and report.md.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_FOLDER")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with this value of task_order, backbone, method or a key of their config.yaml; again for more",
    )
    parser.add_argument("--rows", metavar="KEY", help="rows of one table: task_order, backbone, method or a key")
    parser.add_argument("--columns", metavar="KEY", help="its columns, such as method or method.pe.fraction")
    parser.add_argument("--metric", metavar="NAME", help="its cells; union_accuracy (or average_accuracy) by default")
    parser.add_argument(
        "--format",
        choices=("terminal", "csv", "markdown", "html"),
        default="terminal",
        help="what is printed; of html, the path of the page",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the chosen format there, and nothing else")
    parser.add_argument("--publish", metavar="NAME", help=f"write {PUBLISHED}/NAME/results.json and results.md")
    parser.add_argument(
        "--beside",
        action="store_true",
        help="with --publish: runs of the same setting show these numbers (cl_runner/report/beside.json)",
    )
    parser.add_argument("--command", metavar="LINE", help="the command that made the runs, for --publish")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0, or 2 after one message for a wrong request, or for each file of a run that cannot be used.
    """
    try:
        asked = _parser().parse_args(list(arguments))
        if bool(asked.publish) != bool(asked.command):
            raise ValueError(
                '--publish and --command belong together: --publish NAME --command "python -m cl_runner ..."'
            )
        if asked.beside and not asked.publish:
            raise ValueError("--beside goes with --publish NAME --command LINE: it shows published numbers")
        if asked.publish and "/" in asked.publish:
            raise ValueError(f"--publish takes a name without /, got {asked.publish!r}")
        single = len(asked.folders) == 1 and is_run(asked.folders[0])
        tabled = (asked.rows, asked.columns, asked.metric, asked.publish, asked.output, asked.where)
        if single and not any(tabled):
            return _single(read_run(asked.folders[0]))
        _joined(asked)
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make one message of a file that cannot be written, and leave no half of it behind.

    Raises:
        ValueError: `path` cannot be written.
    """
    if os.path.isdir(path):
        raise ValueError(f"cannot write {path}: it is a folder, not a file")
    temporary = path.with_name(path.name + ".tmp")  # what `write` begins with
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # known before any picture is drawn beside it
        yield
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _single(run: Run) -> int:
    """The page of one run, and its matrix on the terminal; the exit status."""
    from cl_runner.report.beside import beside_table
    from cl_runner.report.page import matrix_table, write_run_report

    said: list[str] = []
    with writing(run.folder / "report.html"):
        try:
            path = write_run_report(run.folder)
        except Incomplete as error:
            path, said = error.path, error.lines
    make = Sections(run.folder).make  # what cannot be used is said by the page

    def number(name: str, value: float) -> str:
        bounds = make("", "", lambda: interval_text(run, name), "")
        return f"{name} {value_text(name, value)}" + (f" (95 % interval {bounds})" if bounds else "")

    notes = [run.protocol_note] if run.marks else []
    notes += [table.notes[0] for table in make("", "", lambda: chosen_tables([run]), list[Table]())]
    nothing: dict[str, float] = {}
    notes += [number(name, value) for name, value in make("", "", lambda: run.metrics, nothing).items()]
    notes += [
        f"{name} {value_text(name, value)}" for name, value in make("", "", lambda: changes(run), nothing).items()
    ]
    title = f"{run.method} on {run.task_order}, seed {run.seed}, {run.status}: {run.measure} in %"
    show(Table(["", *run.tasks], matrix_table(run).rows, title, notes=notes))
    beside = make("", "", lambda: beside_table(run), None)
    if beside is not None:
        show(beside)
    for line in said:
        print(f"cl_runner: {plain(line)}", file=sys.stderr)
    print(path)
    return 2 if said else 0


def usable(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs of which tables can be made, and a note for every other one."""
    found, notes = [], []
    for run in runs:
        try:
            (
                values_of(run),
                names_of(run),
                run.intervals,
                run.access,
                run.retrieval_accuracy,
                run.served("served_percent"),
                run.served("own_weight_percent"),
            )
            found.append(run)
        except UNUSABLE as error:
            notes.append(f"left out {run.folder}: {not_of_a_run(run.folder / 'summary.json', error)}")
    return found, notes


def _joined(asked: argparse.Namespace) -> None:
    """Tables over all runs found, on the terminal and as files."""
    every, notes = every_run(asked.folders)
    notes += [f"left out {run.folder}: {run.status}" for run in every if run.status != "completed"]
    sound, unusable = usable(every)
    runs = [run for run in sound if run.status == "completed"]
    others = [run for run in sound if run.status != "completed"]
    notes += unusable
    for note in notes:
        print(plain(note), file=sys.stderr)
    if not runs:
        places = ", ".join(map(str, asked.folders))
        raise ValueError(f"no completed run in {places}. The page of an unfinished one: name its own folder, seed...")
    if asked.where:
        count, runs = len(runs), where(runs, asked.where)
        notes = [*notes, f"only {len(runs)} of {count} runs: {', '.join(asked.where)}"]
        print(notes[-1], file=sys.stderr)
        kept: list[Run] = []
        with suppress(ValueError):  # the conditions are right, as some run fulfils them, and none of these does
            kept = where(others, asked.where)
        others = kept
    groups = group_runs(runs)
    if asked.metric:
        check_metric(groups, asked.metric)
    if asked.rows or asked.columns:
        metric = asked.metric or headline_of(groups)
        tables = [table_shape(groups, asked.rows or "task_order", asked.columns or "method", metric)]
    else:
        tables = all_tables(groups, asked.metric)
        try:
            tables += chosen_tables(runs)
        except Damaged as error:
            notes = [*notes, f"what settings were chosen by is not shown: {error}"]
            print(plain(notes[-1]), file=sys.stderr)
    pivoted = bool(asked.rows or asked.columns)
    csv = as_csv(tables[0]) if pivoted else exact_csv(groups)
    markdown = "\n".join(as_markdown(table) for table in tables)
    if asked.publish:
        from cl_runner.report.publish import published

        folder = PUBLISHED / asked.publish
        with writing(folder / "results.json"), writing(folder / "results.md"):
            paths = published(runs, folder, asked.command)
        if asked.beside:
            from cl_runner.report.beside import add

            paths.append(add(runs, asked.publish, asked.command))
        for path in paths:
            print(path)
        return
    from cl_runner.report.html import write

    if asked.output and asked.format in ("csv", "markdown"):
        with writing(asked.output):
            write(asked.output, csv if asked.format == "csv" else markdown)
        print(asked.output)
        return
    from cl_runner.report.joined import write_joined_report

    if asked.output:
        if asked.format == "terminal" and asked.output.suffix != ".html":
            raise ValueError(f"--output {asked.output} needs --format csv, markdown or html")
        with writing(asked.output):
            write_joined_report(groups, tables, notes, asked.output, others)
        print(asked.output)
        return
    folder = asked.folders[0]
    if asked.format == "csv":
        print(csv, end="")
    elif asked.format == "markdown":
        print(markdown, end="")
    elif asked.format == "terminal":
        for table in tables:
            show(table)
    if not is_run(folder):
        with writing(folder / "report.html"):
            page = write_joined_report(groups, tables, notes, folder / "report.html", others)
        for name, text in (("report.csv", csv), ("report.md", markdown)):
            with writing(folder / name):
                write(folder / name, text)
        # What is piped into a file stays the table alone.
        print(page, file=sys.stderr if asked.format in ("csv", "markdown") else sys.stdout)
