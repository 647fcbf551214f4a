"""The command `compare`: why two runs differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import run_command, tiny, without_report

from cl_runner.compare import differences
from cl_runner.compose import compose
from cl_runner.digests import write


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run twice, and one at another rate."""
    top = tmp_path_factory.mktemp("compared")
    rate = "training.incremental.learning_rate=0.01"
    lines = {"one": (), "again": (), "faster": (rate,)}
    found = {}
    for name, more in lines.items():
        line = tiny(top / name, "method=seq_ft", "task_order=reviews", *more)
        with without_report():
            assert run_command(line) == 0
        found[name] = compose(line).folder
    return found


def test_two_equal_runs_have_the_same_numbers(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = differences(runs["one"], runs["again"])
    assert list(found["not of a run's identity"]) == ["root"]
    assert not any(found[name] for name in ("configuration", "program and machine", "data", "numbers"))
    assert run_command(["compare", str(runs["one"]), str(runs["again"])]) == 0
    assert "Their numbers are the same" in capsys.readouterr().out


def test_another_option_and_where_it_shows(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = differences(runs["one"], runs["faster"])
    assert found["configuration"] == {"training.incremental.learning_rate": [1e-4, 0.01]}
    first = next(iter(found["numbers"]))
    # The base is learned alike: the first step at another rate is the first of the second task, its loss the next one.
    assert first == "loss, from step 14 (task kettles) on"
    assert "weights at the end" in found["numbers"]
    assert run_command(["compare", "--json", str(runs["one"]), str(runs["faster"])]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_another_machine_other_data_and_an_unfinished_run(runs: dict[str, Path]) -> None:
    folder = runs["again"]
    before = {name: (folder / name).read_text() for name in ("environment.json", "data.json", "summary.json")}
    environment, data = json.loads(before["environment.json"]), json.loads(before["data.json"])
    environment["packages"]["torch"] = "1.0"
    data["fingerprints"]["kettles"] = "0" * 64
    write(folder / "environment.json", json.dumps(environment))
    write(folder / "data.json", json.dumps(data))
    (folder / "summary.json").unlink()
    try:
        found = differences(runs["one"], folder)
        assert found["program and machine"]["torch"][1] == "1.0"
        assert list(found["data"]) == ["examples of kettles"]
        assert not found["numbers"], "what both have is the same"
    finally:
        for name, text in before.items():
            write(folder / name, text)


def test_a_folder_that_is_no_run_is_one_message(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["compare", str(runs["one"]), str(tmp_path)]) == 2
    assert "is no run: it has no config.yaml" in capsys.readouterr().err
