"""The first screen of a run's page in plain words, and the table of every run on the page of many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import assert_self_contained, make_run, words

from cl_runner.report import command
from cl_runner.report.folder import find_runs, read_run
from cl_runner.report.page import write_run_report
from cl_runner.report.runs_table import runs_table
from cl_runner.report.text_table import Table
from cl_runner.report.words import in_words


def said(folder: Path, beside: Table | None = None) -> dict[str, str]:
    return dict(in_words(read_run(folder), beside))


def test_a_run_is_told_in_words(tmp_path: Path) -> None:
    """50 percent at the start, 80 after a task, 60 everywhere after the last of three."""
    folder = make_run(tmp_path, last=60.0)
    found = said(folder)
    # 80, 80 and, as the last row says, 60; from 50 each.
    assert found["Learned"] == (
        "Right after learning each of the 3 tasks the model answers 73.3 % of a task's test items right, on average; "
        "before any training it was 50.0 %, so it has gained 23.3 points by learning."
    )
    assert found["Kept"].startswith("Since then the 2 tasks before the last have lost 20.0 points on average")
    assert "most of all base (20.0)" in found["Kept"]
    assert found["In all"].startswith("At the end, 60.0 % of all test items of all tasks together are answered right")
    assert "method=frozen or method=seq_ft or task_order=[fdu_mtl,joint]" in found["Against"]
    shown = words(write_run_report(folder))
    assert found["Learned"] in shown and found["Kept"] in shown
    assert_self_contained(folder / "report.html")


def test_words_of_gains_of_nothing_and_of_other_metrics(tmp_path: Path) -> None:
    gained = said(make_run(tmp_path / "gained", last=90.0))
    assert "have gained 10.0 points on average" in gained["Kept"] and "most of all" not in gained["Kept"]
    kept = said(make_run(tmp_path / "kept", last=80.0))
    assert kept["Kept"].startswith("At the end, nothing of the 2 tasks before the last is lost")
    other = said(make_run(tmp_path / "other", metrics=("accuracy", "rouge_l", "accuracy")))
    assert "of 100 on a task's test items (its task's own metric)" in other["Learned"]
    begun = said(make_run(tmp_path / "begun", done=1, marker=""))
    assert "Kept" not in begun and "Against" not in begun and "the task the model" in begun["Learned"]
    assert said(make_run(tmp_path / "none", done=0, marker="")) == {}


def test_published_runs_are_the_bound(tmp_path: Path) -> None:
    beside = Table(
        ["method", "runs", "union_accuracy"],
        [["pe", "this run, 1", "70.00"], ["joint", "published, 3", "88.10 ± 0.20"]],
    )
    against = said(make_run(tmp_path), beside)["Against"]
    assert against == "Published runs of this setting reach in union_accuracy: joint 88.10 ± 0.20."


def test_what_all_runs_were_typed_with_is_said_once(tmp_path: Path) -> None:
    for seed, rate in enumerate(("1e-3", "3e-3")):
        typed = (
            f"experiment=pe/table_1\nmethod=pe\nmethod.pe.learning_rate={rate}\nseed={seed}\nbackbone.max_length=32\n"
        )
        (make_run(tmp_path, seed=seed) / "overrides.txt").write_text(typed)
    table = runs_table(find_runs([tmp_path])[0], [], tmp_path)
    column = table.header.index("options")
    assert [row[column] for row in table.rows] == ["method.pe.learning_rate=1e-3", "method.pe.learning_rate=3e-3"]
    assert "all have options experiment=pe/table_1 backbone.max_length=32" in table.notes
    (alone,) = [runs_table(find_runs([tmp_path])[0][:1], [], tmp_path)]
    assert "options" not in alone.header and any("learning_rate=1e-3" in note for note in alone.notes)


def test_every_run_has_a_line_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, seed=0)
    failed, begun = make_run(tmp_path, seed=1, done=1, marker="FAILED"), make_run(tmp_path, seed=2, done=1, marker="")
    (failed / "FAILED").write_text("Traceback\nValueError: the loss is not a number\n")
    assert command.main([str(tmp_path)]) == 0
    page = tmp_path / "report.html"
    text, shown = page.read_text(), words(page)
    assert "Runs: 1 completed, 1 failed, 1 unfinished" in shown
    assert "ValueError: the loss is not a number" in shown and "1 of 3" in shown
    assert str(begun.relative_to(tmp_path)) in shown
    assert 'table class="sorted"' in text and "aria-sort" in text
    assert_self_contained(page)
    assert "failed" in capsys.readouterr().err


def test_runs_that_cannot_be_read_or_are_not_asked_for_have_no_line(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0)
    make_run(tmp_path, "ewc", seed=1, done=1, marker="")
    broken = make_run(tmp_path, seed=2, done=0, marker="")
    other = make_run(tmp_path, seed=3, done=1, marker="FAILED")
    (other / "FAILED").write_text("")
    (broken / "ability.csv").write_text("after,a\nstart,\xff")
    assert command.main([str(tmp_path), "--where", "method=pe"]) == 0
    shown = words(tmp_path / "report.html")
    assert "Runs: 1 completed, 1 failed<" in shown and "not said" in shown
    assert command.main([str(tmp_path)]) == 0
    assert "Runs: 1 completed, 1 failed, 1 unfinished<" in words(tmp_path / "report.html")


def test_names_carry_their_definitions(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    text = write_run_report(folder).read_text()
    assert '<abbr title="mean_t A[t,t]: each task right after training' in text
    summary = json.loads((folder / "summary.json").read_text())
    assert "plasticity/diagonal" in summary["metrics"]
