"""Multirun: all jobs are checked first, each resumes or is skipped, a failing one does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import TINY, run_command

from cl_runner.compose import compose
from cl_runner.job import objective, searches
from cl_runner.overrides import jobs_of
from cl_runner.sweeps.jobs import requests_of

pytestmark = pytest.mark.usefixtures("no_pictures")


def sweep(root: Path, *more: str) -> list[str]:
    short = [o for o in TINY if "epochs" not in o and not o.startswith("method")]
    seeds = [] if any(o.startswith("seed=") for o in more) else ["seed=0,1"]
    return ["-m", *seeds, *more, *short, "training.max_steps=2", f"root={root}"]


def test_runs_resumes_and_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = sweep(tmp_path, "method=pe", "method.pe.fraction=0.005,0.1")
    assert run_command(arguments) == 0
    folders = sorted(path.parent for path in tmp_path.rglob("COMPLETED"))
    assert len(folders) == 4
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert len({s["weights_sha256"] for s in summaries}) == 4
    (name,) = {s["run"]["sweep"] for s in summaries}
    assert name == requests_of(arguments[1:], [])[0].sweep
    capsys.readouterr()
    (folders[0] / "COMPLETED").unlink()
    assert run_command(arguments) == 0
    shown = capsys.readouterr().out
    assert "4 jobs, 3 of them completed before" in shown
    assert shown.count("This run is completed") == 3


def test_a_key_that_only_the_swept_choices_have(tmp_path: Path) -> None:
    keys = ["method.piece.first_task=whole", "method.piece.exclude=[]", "method.piece.learning_rate=null"]
    assert run_command(sweep(tmp_path, "method=piece_f,piece_rand", "seed=0", *keys)) == 0
    folders = [path.parent for path in tmp_path.rglob("COMPLETED")]
    assert {folder.parent.name for folder in folders} == {"piece_f", "piece_rand"}
    assert all(set(keys) <= set((folder / "overrides.txt").read_text().splitlines()) for folder in folders)


def test_a_failing_job_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cl_runner.methods.ewc import EWC

    def fail(self: EWC, learner: object, task: object) -> None:
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(EWC, "before_task", fail)
    assert run_command(sweep(tmp_path, "method=ewc,seq_ft")) == 1
    shown = capsys.readouterr().out
    assert len(list(tmp_path.rglob("COMPLETED"))) == 2 and len(list(tmp_path.rglob("FAILED"))) == 2
    first_reason, last_score = shown.index("out of memory, say"), shown.rindex("scores after")
    assert first_reason < last_score, "the reason is on the screen before the next job"
    assert "2 of 4 jobs did not complete" in shown and "failed:" in shown


def test_a_mistake_in_one_job_starts_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(sweep(tmp_path, "method=pe", "method.pe.fraction=0.1,2")) == 2
    assert "method.pe.fraction must be less than or equal to 1, got 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_searching_sweeper_is_told_a_number_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["method=seq_ft", "seed=0", f"root={tmp_path}", *(o for o in TINY if not o.startswith("method"))]
    asked = compose([*short, "sweep.objective=bwt/gem"])
    asked.folder.mkdir(parents=True)
    (asked.folder / "summary.json").write_text(json.dumps({"metrics": {"union_accuracy": 40.0, "bwt/gem": -3.0}}))
    assert objective(asked) == -3.0 and objective(compose(short)) == 40.0
    with pytest.raises(
        ValueError, match="sweep.objective=bwt is no number of this run. It has: bwt/gem, union_accuracy"
    ):
        objective(compose([*short, "sweep.objective=bwt"]))
    assert searches("hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper")
    assert not searches("hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
    line = ["-m", "hydra/sweeper=other", "training.base.learning_rate=interval(1e-5,1e-3)"]
    assert run_command(line) == 2
    assert "which way the accuracy" in (said := capsys.readouterr().err) and "hydra.sweeper.direction=maximize" in said


def test_jobs_of_lists_and_ranges() -> None:
    assert jobs_of(["method=glob(pe_m*)", "seed=1"]) == [["method=pe_main", "seed=1"]]
    assert jobs_of(["method=pe,[ewc,lwf]", "seed=range(2)"]) == [
        ["method=pe", "seed=0"],
        ["method=pe", "seed=1"],
        ["method=[ewc,lwf]", "seed=0"],
        ["method=[ewc,lwf]", "seed=1"],
    ]
