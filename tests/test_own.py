"""conf/README.md's examples of a benchmark and of a method, exactly as printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from own import DOMAINS, SMALL, commands, finished, summary_of, write_blocks, write_tickets
from tiny import TINY, Death, run_command

from cl_runner import checkpoint
from cl_runner.compose import compose
from cl_runner.groups import CONF

pytestmark = pytest.mark.usefixtures("no_pictures")


# The printed examples ---------------------------------------------------------------------------------------


def test_the_printed_benchmark(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_blocks("A benchmark of your own", here)
    assert [len(text.splitlines()) <= 10 for text in files.values()] == [True]
    write_tickets(here / "data")
    (typed,) = commands("A benchmark of your own")
    assert run_command([*typed, *SMALL]) == 0
    summary = summary_of([*typed[2:], *SMALL], [here / "mine"])
    assert [detail["name"] for detail in summary["tasks_detail"]] == list(DOMAINS)
    assert (here / "outputs" / "tickets" / "tiny_bert" / "pe").is_dir()
    capsys.readouterr()
    assert run_command([*typed, "--cfg", "job", "task.tickets.max_rows=10"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / "task_defaults.yaml"))
    assert {**shown.task.tickets, "path": None, "labels": None} == {**defaults, "max_rows": 10}
    assert run_command([*typed, "--help"]) == 0
    assert re.search(r"^    tickets +Tickets of three products", capsys.readouterr().out, re.MULTILINE)
    assert run_command(["plan", *typed, *SMALL]) == 0
    rows = "task.tickets.max_rows=8,10"
    assert run_command(["-m", *typed, *SMALL, rows, "training.max_steps=1", "method=seq_ft"]) == 0
    assert len(list((here / "outputs" / "tickets" / "tiny_bert" / "seq_ft").iterdir())) == 2


def test_the_printed_method(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_blocks("A method of your own", here)
    assert len(files["l2_pull.py"].splitlines()) <= 25
    for typed in commands("A method of your own"):
        assert run_command([*typed, *TINY]) == 0
        assert run_command(["plan", *typed, *TINY]) == 0
        summary = summary_of([*typed[2:], *TINY], [here / "mine"])
        assert summary["run"]["method"] in ("l2_pull", "l2_pull+pe_select")
        assert len(summary["tasks_detail"]) == 3
        old_data = ["importance"] if summary["run"]["method"].endswith("pe_select") else []
        assert summary["access"] == {"old_data": old_data, "told": []}
        folder = compose([*typed[2:], *TINY], [here / "mine"]).folder
        assert run_command(["snapshot", "verify", str(folder)]) == 0
    capsys.readouterr()
    first = commands("A method of your own")[0]
    assert run_command([*first, "--help"]) == 0
    assert "L2 to the weights before the task" in capsys.readouterr().out
    assert run_command([*first, "--cfg", "job", "-p", "method"]) == 0
    assert "strength: 0.01" in capsys.readouterr().out
    assert run_command([*first, "method.l2_pull.strength=-1"]) == 2
    assert "method.l2_pull.strength must be greater than or equal to 0, got -1" in capsys.readouterr().err


def test_the_printed_method_pulls(here: Path) -> None:
    """By its gradient in later tasks, from their second step on: before it nothing has moved."""
    write_blocks("A method of your own", here)
    norms: dict[float, dict[str, list[float]]] = {}
    for strength in (0.0, 1000.0):
        typed = ["method=l2_pull", f"method.l2_pull.strength={strength}", *TINY]
        _, folder = finished(typed, here)
        norms[strength] = {"base": [], "kettles": [], "software": []}
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            numbers = json.loads(line)
            if numbers["kind"] == "train":
                norms[strength][numbers["task"]].append(numbers["gradient_norm"])
    free, pulled = norms.values()
    assert free["base"] == pulled["base"]
    assert free["kettles"][0] == pulled["kettles"][0] < free["kettles"][1] * 10 < pulled["kettles"][1]


@pytest.mark.parametrize("number", [8, 16, 18])
def test_the_printed_method_resumes(here: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write_blocks("A method of your own", here)
    typed = ["method=l2_pull", *TINY, "checkpoint.every_seconds=0"]
    assert run_command(["--config-dir", "mine", *typed]) == 0
    whole = summary_of(typed, [here / "mine"])["weights_sha256"]
    real, calls = checkpoint.save, iter(range(10**6))

    def save(folder: Path, state: dict[str, Any]) -> None:
        if next(calls) == number:
            raise Death
        real(folder, state)

    again = [*typed, "root=again"]
    with monkeypatch.context() as dying:
        dying.setattr(checkpoint, "save", save)
        with pytest.raises(Death):
            run_command(["--config-dir", "mine", *again])
    assert not (compose(again, [here / "mine"]).folder / "COMPLETED").exists()
    assert run_command(["--config-dir", "mine", *again]) == 0
    assert summary_of(again, [here / "mine"])["weights_sha256"] == whole
