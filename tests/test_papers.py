"""Every table and figure of PE, SLM and PIECE: that it is listed, and that its own command, made tiny, fills it."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import EVERY_FAMILY, run_command, without_report
from tiny_papers import each_value_once, tiny_form, write_data

from cl_runner.compose import compose
from cl_runner.job import run_request
from cl_runner.overrides import COMMAND, jobs_of
from cl_runner.papers.entries import Entry, as_table, entries, joined
from cl_runner.papers.figures import figures
from cl_runner.papers.measured import fill
from cl_runner.papers.published import Paper, papers, table
from cl_runner.report.folder import read_run
from cl_runner.report.text_table import as_markdown

TOP = Path(__file__).parents[1]
SEEDS = ("pe", "slm", "piece")
ENTRIES = entries(SEEDS)
#: Where every command is not run, these are: of each kind of run and of what is shown of it one.
FEW = ("pe: table 3", "pe: figure 4", "slm: table 13", "piece: figure 5")
#: The words of a run -> its folder, once it is done.
Runs = Callable[[tuple[str, ...]], Path]


def label(entry: Entry) -> str:
    return f"{entry.paper}: {entry.place}"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The folder of a command's tiny run, which all entries share that have the command."""
    root, data = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("data")
    write_data(data)

    def unplanned(*_: object, **__: object) -> None:
        raise ValueError("left out")

    @functools.cache
    def run(job: tuple[str, ...]) -> Path:
        request = compose(tiny_form(job, root, data))
        if not (request.folder / "COMPLETED").exists():  # another command may be the same one, made tiny
            assert run_request(request) == 0
        return request.folder

    with without_report(), pytest.MonkeyPatch.context() as patched:
        patched.setattr("cl_runner.planning.begun.plan_run", unplanned)  # its plan takes half of a tiny run's time
        yield run


def test_every_table_and_figure_is_listed_once() -> None:
    for name in SEEDS:
        assert papers()[name].has, name
    assert {each.name for each in figures() if each.paper in SEEDS} <= {each.name for each in ENTRIES}
    assert all(bool(each.shown) != bool(each.none) for each in ENTRIES)
    assert [label(each) for each in ENTRIES if each.none and "draw" not in each.none] == [
        "piece: figures 6 to 19",
        "slm: figure 3",
    ]
    content = papers()["pe"].model_dump(exclude_unset=True)
    with pytest.raises(ValueError, match=r"of 4 figures these are here: \[1, 2, 3\]"):
        Paper.model_validate(content | {"figures": content["figures"][:1]})
    with pytest.raises(ValueError, match="either a line that shows it, or why there is none"):
        Paper.model_validate(content | {"others": [{"title": "no line", "figures": [1]}]})


def test_the_page_has_the_list() -> None:
    """`python -m cl_runner papers pe slm piece --markdown` writes it."""
    text = (TOP / "conf" / "README.md").read_text(encoding="utf-8")
    title, _, rows = as_markdown(as_table(ENTRIES)).strip().partition("\n\n")
    assert title in text and rows in text, "conf/README.md lacks the list: papers pe slm piece --markdown prints it"


def test_lines_join_where_one_value_differs() -> None:
    lines = [["a=1", "b=1"], ["a=2", "b=1"], ["a=1", "b=2"], ["a=2", "b=2"], ["a=1", "c=1"]]
    assert joined(lines) == [("a=1,2", "b=1,2"), ("a=1", "c=1")]
    assert joined([["a=1", "b=1"], ["a=2", "b=2"]]) == [("a=1", "b=1"), ("a=2", "b=2")]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["papers", "slm/4", "--data-root", "DATA"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(COMMAND)]
    chosen = [each for each in ENTRIES if each.name == "slm/4"]
    assert lines == [line for each in chosen for line in each.lines("DATA")] and len(lines) == 4
    assert run_command(["papers", "slm"]) == 0
    assert "# slm: figure 8. Where the increments of low rank sit in a layer. No line: a drawing of the method" in (
        capsys.readouterr().out
    )
    assert run_command(["papers", "pe", "--markdown"]) == 0
    assert capsys.readouterr().out == as_markdown(as_table(entries(["pe"])))
    for typed, said in (
        (["slm/44"], "Nearest: 'slm/4'. Type: python -m cl_runner papers slm/4"),
        (["pee", "slm"], "Nearest: 'pe'. Type: python -m cl_runner papers pe slm"),
        (["figure 3"], "See all: python -m cl_runner papers"),
        (["--markdown", "--data-root", "D"], "--data-root belongs to lines"),
    ):
        assert run_command(["papers", *typed]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.filterwarnings("default")  # of the harness and its own packages
@pytest.mark.parametrize("entry", [each for each in ENTRIES if each.shown], ids=label)
def test_its_own_command_made_tiny_fills_it(
    entry: Entry, done: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each of its lines every value, of orders the first one with its first tasks; then the line that shows it."""
    if not EVERY_FAMILY and label(entry) not in FEW:
        pytest.skip("run with CL_RUNNER_EVERY_FAMILY=1")
    if any("zero_shot" in text for line in entry.runs for text in line):
        pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    jobs = [job for line in entry.runs for job in (each_value_once(line) if entry.name else each_value_once(line)[:1])]
    folders = list(dict.fromkeys(done(tuple(job)) for job in jobs))
    if not entry.name:  # runs on several backbones, of which the tiny one is the same: a report does not mix them
        folders = list({folder.parents[1].name: folder for folder in folders}.values())
    capsys.readouterr()
    words = [str(each) for word in shlex.split(entry.shown) for each in (folders if word == "outputs" else [word])]
    kind = words[0] if entry.name else ""
    assert run_command([*words, *(["--output", str(tmp_path)] if kind == "figure" else [])]) == 0
    shown = capsys.readouterr().out
    if kind == "table":
        found = table(entry.name)
        filling = fill(found, [read_run(each) for each in folders])
        filled = {row for row, _ in filling.cells}
        filled |= {row for rows in filling.beside.values() for row in rows}  # an order that is cut is not the table's
        for folder in folders:  # commands that differ in what is made tiny share a run, which fills the rows of one
            ran = {frozenset(job) for job in jobs if done(tuple(job)) == folder}
            cells = [cell for cell in found.cells.values() if cell.overrides]
            makes = [cell.row.name for cell in cells if frozenset(jobs_of(cell.overrides or ())[0]) in ran]
            assert filled.intersection(makes), folder
        assert "measured" in shown
    elif kind == "figure":
        drawn = list(tmp_path.glob("*.csv"))
        assert drawn and all(len(path.read_text(encoding="utf-8").splitlines()) > 1 for path in drawn)
    else:
        assert shown.strip()
