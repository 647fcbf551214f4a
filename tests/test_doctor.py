"""The command `doctor`: what it says of this machine, and of one that is not well."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import run_command


def test_a_machine_that_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    line = ["doctor", "--root", str(tmp_path / "runs"), "--data-root", str(tmp_path / "data")]
    assert run_command(line) == 0
    said = capsys.readouterr().out
    for part in ("cl_runner", "torch", "memory:", "disk of", "locks: there", "data root", "hub:", "exit status 0"):
        assert part in said, part
    assert said.endswith("All is well.\n") and "BAD" not in said
    assert not list(tmp_path.rglob("*doctor*")), "nothing is left"


def test_what_is_wrong_is_marked_and_the_rest_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cl_runner.doctor.FEW_BYTES", 10**18)
    monkeypatch.setattr("cl_runner.doctor.util.find_spec", lambda name: 1 / 0)
    assert run_command(["doctor", "--root", str(tmp_path), "--without-run"]) == 1
    said = capsys.readouterr().out
    assert "BAD  disk of" in said and "BAD  versions: ZeroDivisionError" in said
    assert "ok   locks: there" in said and "2 of these need attention" in said and "exit status" not in said


def test_a_run_that_fails_shows_its_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("cl_runner.doctor.RUN", ("backbone=tiny_bert", "method=pe", "method.pe.fraction=2"))
    assert run_command(["doctor"]) == 1
    assert "small_run: ValueError" in capsys.readouterr().out
