"""The command `report` on damaged and foreign folders: what is wrong is named, the rest is shown, no traceback."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import MASKS, assert_self_contained, make_run, words

from cl_runner import digests
from cl_runner.report import command, plots
from cl_runner.report.page import write_run_report
from cl_runner.report.sections import Incomplete
from cl_runner.report.text_table import Table, as_csv, as_markdown, safe_cell, show

#: Content of a file -> what is left out; None: there is no page without it.
DAMAGED: dict[tuple[str, str], str | None] = {
    ("masks.json", '{"tasks": 5}'): "selections",
    ("masks.json", '{"tasks": [5]}'): "selections",
    ("masks.json", '{"tasks": [{"task": "a", "cells": [], "overlap": {"b": {}}}]}'): "selections",
    ("fisher.json", "{}"): "importance",
    ("fisher.json", '{"after": 5, "layers": [[]]}'): "importance",
    ("fisher.json", '{"after": "a", "layers": []}'): "importance",
    ("plan.json", '{"phases": 5}'): "plan and measurement",
    ("metrics.jsonl", "5\n"): "loss",
    ("metrics.jsonl", '{"kind": "train"}\n'): "loss",
    ("metrics.jsonl", '{"kind": "train", "lo\n'): "loss",
    ("ability.csv", "after,x\nstart,\xff\n"): "general ability",
    ("ability.csv", "before\n"): "general ability",
    ("data.json", '{"tasks": 5}'): "data",
    ("keys.safetensors", "x"): "retrieval",
    ("predictions/01_base.jsonl", "5\n"): "band of the first task",
    ("summary.json", '{"status": "completed", "metrics": 5}'): None,
    ("summary.json", '{"status": "completed", "tasks_detail": 5}'): None,
    ("summary.json", '{"status": "completed", "run": []}'): None,
    ("summary.json", '{"status": "completed", "scored_by": {"base": []}}'): None,
    ("summary.json", '{"tasks_detail": [{"name": "base"}]}'): "storage and time",
    ("accuracy.csv", "after,base\nstart,x\n"): None,
    ("accuracy.csv", "after,other\nstart,1.0\n"): None,
    ("accuracy.csv", 'after,"base\n'): None,
    ("config.yaml", "seed: 0\nbackbone: 5\n"): None,
    ("environment.json", "[]"): None,
    ("overrides.txt", "\xff"): None,
}


def empty(*given: Any) -> Path:
    """A file in the place of a picture."""
    path = next(one for one in given if isinstance(one, Path))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(24))
    return path


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time; their functions read what they are given first."""
    for name in ("accuracy_heat_map", "lines_over_tasks", "forgetting_heat_map", "storage_bars", "phase_bars"):
        monkeypatch.setattr(plots, name, empty)


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_a_damaged_file_is_named_and_the_rest_shown(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, tasks=["base", "b"])
    (folder / name).write_text(content, encoding="latin-1")
    assert command.main([str(folder)]) == 2
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert all(line.startswith("cl_runner: ") for line in lines) and str(folder / name) in shown.err, shown.err
    left_out = DAMAGED[name, content]
    assert (folder / "report.html").exists() == (left_out is not None)
    if left_out is not None:
        assert f"Left out: {left_out}" in shown.err or f", {left_out}" in shown.err or f"the {left_out}" in shown.err
        assert "80.00" in shown.out and "Left out" in words(folder / "report.html")
    if name == "summary.json":
        command.main([str(tmp_path), "--format", "csv"])  # told or left out, no traceback


def test_what_was_edited_since_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path, tasks=["base", "b"])
    digests.write(folder / "masks.json", json.dumps({"tasks": MASKS}))
    digests.write(folder / "summary.json", (folder / "summary.json").read_text())
    (folder / "masks.json").write_text(json.dumps({"tasks": MASKS[:1]}))
    with pytest.raises(Incomplete, match=r"masks\.json is not what it was when it was written"):
        write_run_report(folder)
    assert_self_contained(folder / "report.html")
    (folder / "summary.json").write_text((folder / "summary.json").read_text().replace("70.0", "90.0"))
    assert command.main([str(folder)]) == 2
    assert f"cl_runner: {folder}/summary.json is not what it was" in capsys.readouterr().err


STRANGE = '\x1b[2J\x07=cmd|"<script>alert(1)</script>\u202e\r\nx'


def test_names_of_strangers_are_shown_as_they_are_and_do_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, tasks=["base", "b"])
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    summary["run"] |= {"method": STRANGE, "backbone": "$\\frac", "task_order": "=cmd"}
    (folder / "summary.json").write_text(json.dumps(summary))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["evaluation"] = {"scoring": "\x1b]0;title\x07@x"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert command.main([str(folder)]) == 0
    assert "<script>" not in (folder / "report.html").read_text()
    shown = capsys.readouterr().out
    for flags in ([], ["--format", "csv"], ["--format", "markdown"], ["--columns", "backbone"]):
        assert command.main([str(tmp_path), *flags]) == 0
        shown += capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(shown)
    assert "\\x1b[2J" in shown
    (row,) = list(csv.reader(io.StringIO((tmp_path / "report.csv").read_text())))[1:]
    assert not any(cell[:1] in "=@\t\r" for cell in row if cell)


def test_cells_of_a_spreadsheet() -> None:
    formulas = ["=1+1", "+cmd", "-cmd|x", "@sum", "-1.5 ± 0.2", "\t=1", "\r=1"]
    plainly = ["-3.5", "+2", "-1e-5", "-", "", "base", "1=2", "a-b", "-inf"]
    assert [safe_cell(text)[0] for text in formulas] == ["'"] * len(formulas)
    assert [safe_cell(text) for text in plainly] == plainly
    table = Table(["=a", "b"], [["-3.5", "@x"]])
    assert as_csv(table) == "'=a,b\n-3.5,'@x\n"
    assert "\x1b" not in as_markdown(Table(["\x1b"], [["\x1b|"]]))


def test_the_terminal_gets_no_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    show(Table(["\x1b[1m"], [["\x1b[2J[red]x"]], "\x1btitle", notes=["\x1bnote"]))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "[red]x" in shown
