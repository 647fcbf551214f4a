"""Probes in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from probing import write_problems
from tiny import run_command, tiny


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write_problems(tmp_path)


def test_a_run_measures_before_the_first_and_after_every_task(tmp_path: Path, problems: Path) -> None:
    overrides = [
        "backbone=tiny_llama",
        "method=seq_ft",
        "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}]",
        "probe=[held_text,humaneval]",
        "probe.held_text.texts=4",
        "probe.held_text.tokens=8",
        f"probe.humaneval.path={problems}",
        "probe.humaneval.max_new_tokens=4",
        "training.base.learning_rate=0.01",
        "training.max_steps=3",
        "task_order.base.test=4",
        "task_order.incremental.test=2",
    ]
    assert run_command(tiny(tmp_path, *overrides)) == 0
    (table,) = tmp_path.rglob("ability.csv")
    header, *rows = [line.split(",") for line in table.read_text().splitlines()]
    assert header == ["after", "held_text/loss", "held_text/perplexity", "humaneval/pass@1"]
    assert [row[0] for row in rows] == ["start", "base", "kettles"]
    assert len({row[1] for row in rows}) == 3
    assert len((table.parent / "probes" / "held_text" / "text.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert sorted(p.stem for p in (table.parent / "probes" / "humaneval").iterdir()) == ["base", "kettles", "start"]


def test_a_missing_file_stops_a_run_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["backbone=tiny_llama", "method=seq_ft", "probe=humaneval", "probe.humaneval.path=HumanEval.jsonl"]
    assert run_command(tiny(tmp_path, *overrides)) == 2
    assert "Get HumanEval.jsonl.gz of https://github.com/openai/human-eval" in capsys.readouterr().err
