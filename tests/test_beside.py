"""Published numbers beside a run: shown where the setting is the same, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from run_folders import make_run

from cl_runner.compose import compose
from cl_runner.report import beside
from cl_runner.report.beside import add, beside_table, setting_of
from cl_runner.report.folder import Run, read_run
from cl_runner.report.page import write_run_report
from cl_runner.report.text_table import as_text

WHOLE = {"training": {"incremental": {"epochs": 3}, "budget": None}, "importance": {"cache_gb": 1, "batch_size": 16}}


def run_of(root: Path, method: str, typed: tuple[str, ...] = (), **made: Any) -> Run:
    """A made-up run whose configuration has what a setting is made of."""
    folder = make_run(root, method, **made)
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict)
    training = config["training"]
    config |= WHOLE | {"training": {**WHOLE["training"], **training}}
    OmegaConf.save(config, folder / "config.yaml")
    with (folder / "overrides.txt").open("a") as file:
        file.writelines(f"{text}\n" for text in typed)
    return read_run(folder)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of published numbers: two seeds of plain fine-tuning, one of the bound, one of PIECE-S with an option."""
    root = tmp_path / "published"
    runs = [run_of(root, "seq_ft", seed=seed, last=last) for seed, last in ((0, 60.0), (1, 64.0))]
    runs += [run_of(root, "seq_ft", joint=True, last=90.0)]
    runs += [run_of(root, "piece_s", ("method.piece.learning_rate=2e-3",), last=80.0)]
    monkeypatch.setattr(beside, "PLACE", tmp_path / "beside.json")
    return add(runs, "small", "python -m cl_runner method=seq_ft; python -m cl_runner method=piece_s")


def test_a_run_of_the_setting_has_them_beside_it_and_marked(place: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "mine", "pe", seed=7)
    table = beside_table(run)
    assert table is not None
    assert [row[:3] for row in table.rows] == [
        ["pe", "this run, 1", "70.00"],
        ["seq_ft", "published, 2", "62.00 ± 2.83"],
        ["joint", "published, 1", "90.00"],
        ["piece_s, learning_rate=2e-3", "published, 1", "80.00"],
    ]
    assert table.notes[1:] == ["python -m cl_runner method=seq_ft", "python -m cl_runner method=piece_s"]
    text = as_text(table).splitlines()
    assert text[1].startswith("method") and len({len(line) for line in text[1:6]}) == 1
    page = write_run_report(run.folder).read_text()
    assert "Beside published runs" in page and "published, 2" in page and "62.00 ± 2.83" in page


def test_another_setting_has_nothing_beside_it(place: Path, tmp_path: Path) -> None:
    assert beside_table(run_of(tmp_path / "epochs", "pe", epochs=4)) is None
    assert beside_table(run_of(tmp_path / "tasks", "pe", tasks=("base", "b"))) is None
    assert beside_table(run_of(tmp_path / "unfinished", "pe", done=2)) is None
    early = read_run(make_run(tmp_path / "early", "pe"))  # without the groups that came later
    assert beside_table(early) is None and setting_of(early.config) is None
    assert "Beside published" not in write_run_report(early.folder).read_text()


def test_published_again_takes_the_place_of_what_was(place: Path, tmp_path: Path) -> None:
    add([run_of(tmp_path / "again", "seq_ft", last=50.0)], "small", "python -m cl_runner")
    table = beside_table(run_of(tmp_path / "mine", "pe"))
    assert table is not None and [row[2] for row in table.rows] == ["70.00", "50.00"]
    with pytest.raises(ValueError, match="made by an early version"):
        add([read_run(make_run(tmp_path / "early", "ewc"))], "old", "python -m cl_runner")


def resolved(*typed: str) -> Mapping[str, Any]:
    return compose(["backbone=tiny_bert", "task_order=reviews_plain", *typed]).resolved


def test_a_setting_is_all_but_method_seed_and_machine() -> None:
    """Of the real configuration."""
    own = setting_of(resolved("method=pe"))
    for same in (
        ("method=seq_ft", "seed=3"),
        ("method=seq_ft", "task_order=[reviews_plain,joint]"),
        ("method=piece_s", "method.piece.learning_rate=1e-3"),
        ("hardware.threads=1", "data_root=/elsewhere", "root=/there", "wandb=disabled", "snapshots.save=none"),
    ):
        assert setting_of(compose(["backbone=tiny_bert", *_order(same)]).resolved) == own, same
    more = ("training.incremental.epochs=4", "task_order.data_seed=1", "task_order.base.test=60", "training.clip=2.0")
    for other in more:
        assert setting_of(resolved(other)) != own, other
    assert setting_of(compose(["task_order=reviews_plain"]).resolved) != own  # another backbone


def _order(typed: tuple[str, ...]) -> list[str]:
    return [*typed, *([] if any(text.startswith("task_order=") for text in typed) else ["task_order=reviews_plain"])]
