"""TensorBoard and MLflow: written for real, and read back by their own readers; all trackers through a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY, run_command, tiny

from cl_runner import checkpoint
from cl_runner.compose import compose
from cl_runner.tracking.tracker import Told, Tracker

TOP = Path(__file__).parents[1]
Open = Callable[..., Tracker]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    lines: list[dict[str, Any]] = [{"kind": "evaluation", "after": "start", "step": 0, "accuracy": {"books": 50.0}}]
    lines += [{"kind": "train", "task": "books", "step": i + 1, "epoch": 0.5, "loss": i / 4} for i in range(6)]
    lines.append({"kind": "evaluation", "after": "books", "step": 6, "accuracy": {"books": 81.25}})
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "run"


def told(folder: Path, warnings: list[str]) -> Told:
    tags = ["method:pe", "mine"]
    config = {"seed": 0, "method": {"pe": {"fraction": 0.005}}}
    return Told("ab12cd34", "pe seed 0", "sweep-1", tags, config, folder, warnings.append)


def tensorboard(folder: Path, warnings: list[str]) -> Tracker:
    pytest.importorskip("tensorboard")
    from cl_runner.tracking.tensorboard_log import TensorboardLog

    return TensorboardLog(told(folder, warnings))


def mlflow(folder: Path, warnings: list[str]) -> Tracker:
    for name in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name)
    from cl_runner.tracking.mlflow_log import MlflowLog

    return MlflowLog(told(folder, warnings), uri=None, experiment="forgetting", store=folder.parent / "mlflow")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: tag -> (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tensors = found.Tags()["tensors"]  # scalars of the first kind become tensors of the second when they are read
    values = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    return {tag: [(e.step, e.value) for e in of_tag] for tag, of_tag in values.items()} | {
        tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in found.Tensors(tag)]
        for tag in tensors
        if found.Tensors(tag)[0].tensor_proto.string_val
    }


def client(root: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{root.absolute()}/mlflow/mlflow.db")


def runs(root: Path, experiment: str) -> list[Any]:
    of = client(root).get_experiment_by_name(experiment).experiment_id
    return list(client(root).search_runs([of]))


def history(root: Path, run: Any, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client(root).get_metric_history(run.info.run_id, name))


def end(tracker: Tracker, picture: Path) -> None:
    tracker.summary({"forgetting/chaudhry18": 1.25, "milliseconds_per_example": None})
    tracker.tables(["after", "books"], [["start", 50.0], ["books", 81.25]], [["books", None]], {"accuracy": picture})
    tracker.artifacts("report", [picture])


def three_sessions(open_: Open, folder: Path, warnings: list[str]) -> None:
    """One is killed without a word, one interrupted at its very end, and one comes to it."""
    from PIL import Image

    picture = folder / "accuracy.png"
    Image.new("RGB", (4, 3), "red").save(picture)
    open_(folder, warnings).flush(3)
    second = open_(folder, warnings)
    second.flush(5)
    end(second, picture)
    second.finish(75)
    third = open_(folder, warnings)
    end(third, picture)
    third.finish(0)
    assert warnings == []


LOSS = [(i + 1, i / 4) for i in range(6)]


def test_tensorboard_reads_back_a_run_of_three_sessions_with_every_point_once(folder: Path) -> None:
    three_sessions(tensorboard, folder, [])
    found = scalars(folder)
    assert found["train/loss"] == LOSS
    assert found["accuracy/books"] == [(0, 50.0), (6, 81.25)]
    assert found["run/forgetting/chaudhry18"] == [(6, 1.25)]
    assert [text for _, text in found["run/status"]] == ["running", "running", "interrupted", "running", "completed"]
    assert found["run/accuracy"] == [(6, "| after | books |\n| --- | --- |\n| start | 50.00 |\n| books | 81.25 |")]
    ((_, config),) = found["run/config"]
    assert json.loads(config) == {"seed": 0, "method": {"pe": {"fraction": 0.005}}}


def test_what_a_killed_process_left_unfinished_is_written_again(folder: Path) -> None:
    first = tensorboard(folder, [])
    first.flush(5)
    (file,) = (folder / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # the last event lacks its end
    second = tensorboard(folder, [])
    second.flush()
    second.finish(0)
    assert scalars(folder)["train/loss"] == LOSS


def test_mlflow_reads_back_a_run_of_three_sessions_with_every_point_once(folder: Path) -> None:
    three_sessions(mlflow, folder, [])
    root = folder.parent
    (run,) = runs(root, "forgetting")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "pe seed 0")
    assert history(root, run, "train/loss") == LOSS
    assert history(root, run, "accuracy/books") == [(0, 50.0), (6, 81.25)]
    assert history(root, run, "run/forgetting/chaudhry18") == [(0, 1.25)]
    assert history(root, run, "line") == [(0, 0), *((i, i) for i in range(1, 7)), (6, 7)]
    assert (run.data.tags["method"], run.data.tags["group"], run.data.tags["mine"]) == ("pe", "sweep-1", "")
    assert run.data.params == {"seed": "0", "method.pe.fraction": "0.005"}
    kept = root / "mlflow" / "artifacts" / run.info.run_id / "artifacts"
    assert json.loads((kept / "matrix" / "accuracy.json").read_text())["data"] == [["start", 50.0], ["books", 81.25]]
    assert (kept / "plots" / "accuracy.png").is_file() and (kept / "report" / "accuracy.png").is_file()


@pytest.mark.parametrize(("open_", "place"), [(tensorboard, "run/tensorboard"), (mlflow, "mlflow")])
def test_a_tracker_that_fails_is_told_once(folder: Path, open_: Open, place: str) -> None:
    (folder.parent / place).write_text("a file where its folder would be")
    warnings: list[str] = []
    tracker = open_(folder, warnings)
    tracker.flush(3)
    tracker.flush(8)
    tracker.finish(0)
    (warning,) = warnings
    assert f"{tracker.title} failed and is left out from here on" in warning


def words(root: Path, *more: str) -> list[str]:
    return tiny(root, "method=pe", "trackers=[tensorboard,mlflow]", "checkpoint.every_seconds=0", *more)


def test_a_run_that_was_interrupted_goes_on_in_all_trackers(tmp_path: Path, no_pictures: None) -> None:
    """W&B, TensorBoard and MLflow at once; each has every line of metrics.jsonl once."""
    for name in ("tensorboard", "mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name)
    real, calls = checkpoint.save, iter(range(1000))

    def save_then_stop(folder: Path, state: dict[str, Any]) -> None:
        real(folder, state)
        if next(calls) == 6:
            raise KeyboardInterrupt

    arguments = words(tmp_path, "wandb=offline")
    folder = compose(arguments).folder
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "save", save_then_stop)
        assert run_command(arguments) == 75
    assert [run.info.status for run in runs(tmp_path, "cl_runner")] == ["KILLED"]
    assert scalars(folder)["run/status"][-1][1] == "interrupted"
    assert run_command(arguments) == 0
    assert "left out" not in (folder / "log.txt").read_text()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    loss = [(line["step"], pytest.approx(line["loss"])) for line in lines if line["kind"] == "train"]
    (run,) = runs(tmp_path, "cl_runner")
    assert run.info.status == "FINISHED"
    assert scalars(folder)["train/loss"] == loss == history(tmp_path, run, "train/loss")
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    name, value = next(iter(metrics.items()))
    assert run.data.metrics[f"run/{name}"] == value
    assert scalars(folder)[f"run/{name}"][-1][1] == pytest.approx(value)
    assert run.data.tags["task_order"] == "reviews" and run.data.params["method.pe.fraction"] == "0.005"
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2


def test_a_run_outlives_its_trackers(tmp_path: Path, no_pictures: None) -> None:
    for name in ("tensorboard", "mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name)
    arguments = words(tmp_path)
    folder = compose(arguments).folder
    folder.mkdir(parents=True)
    (folder / "tensorboard").write_text("")
    (tmp_path / "mlflow").write_text("")
    assert run_command(arguments) == 0
    log = (folder / "log.txt").read_text()
    assert log.count("TensorBoard failed and is left out") == log.count("MLflow failed and is left out") == 1


def test_trackers_are_no_part_of_what_a_run_computes(tmp_path: Path) -> None:
    plain = compose(tiny(tmp_path))
    more = ("trackers=[mlflow,tensorboard]", "mlflow.uri=http://127.0.0.1:5000", "wandb=offline", "wandb.notes=x")
    assert compose(tiny(tmp_path, *more)).identity == plain.identity
    assert plain.config.trackers == []
    assert compose(tiny(tmp_path, "trackers=tensorboard")).config.trackers == ["tensorboard"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["trackers=[tensorbord]"],
            r"trackers.0 must be .*'tensorbord'. Nearest: 'tensorboard'. Type: .*=.tensorboard.'",
        ),
        (["trackers=mlfow"], r"trackers must be .*got 'mlfow'. Nearest: 'mlflow'. Type: .* trackers=mlflow"),
        (["trackers=[wandb]"], r"trackers.*must be.*wandb"),
        (["trackers=[mlflow,mlflow]"], r"trackers must be names of which none is there twice, as mlflow is"),
        (["mlflow.experiment=mine"], r"nothing reads mlflow.experiment here: trackers does not name mlflow"),
        (["wandb=offline", "wandb.artifacts=[weights]"], r"wandb.artifacts.*must be.*report.*snapshots"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, typed: Sequence[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        compose(tiny(tmp_path, *typed))
    print(caught.value)


def test_a_tracker_that_is_not_installed_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cl_runner.tracked import check_trackers

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "alembic" else object())
    config = compose(tiny(tmp_path, "trackers=[tensorboard,mlflow]")).config
    with pytest.raises(ValueError, match=r"mlflow needs alembic.*pip install 'cl-runner\[mlflow\]'.*\[tensorboard\]"):
        check_trackers(config)


def test_nothing_is_imported_that_is_not_chosen(tmp_path: Path) -> None:
    script = (
        "import sys; from cl_runner.compose import compose; from cl_runner.tracked import opened\n"
        "trackers = opened(compose(sys.argv[1:]), print); trackers.flush(); trackers.finish(0)\n"
        "print([name for name in ('wandb', 'tensorboard', 'mlflow') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, *TINY, f"root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TOP)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert list(tmp_path.iterdir()) == []
