"""Offline W&B runs, written for real and read back from their files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from wandb.proto import wandb_internal_pb2

from cl_runner.tracking.tracker import Told, points
from cl_runner.tracking.wandb_log import WandbLog, _records, next_step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [
        {"kind": "train", "task": "books", "task_index": 0, "step": 10 * (i + 1), "epoch": 0.5, "loss": i / 4}
        for i in range(7)
    ]
    lines.append({"kind": "evaluation", "after": "books", "step": 70, "accuracy": {"books": 81.25, "dvd": 64.0}})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def open_log(folder: Path, mode: str = "offline", warnings: list[str] | None = None) -> WandbLog:
    told = Told(
        run_id="ab12cd34",
        name="pe seed 0",
        group="sweep-1",
        tags=["test", "t" * 70],
        config={"seed": 0, "method": {"pe": {"fraction": 0.005}}},
        folder=folder,
        warn=(warnings if warnings is not None else []).append,
    )
    return WandbLog(told, mode, project="cl_runner", notes="a note", job_type="train")


def fragments(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-ab12cd34.wandb"))


def read(fragment: Path) -> list[Any]:
    return [wandb_internal_pb2.Record.FromString(data) for data, _ in _records(fragment.read_bytes())]


def is_history(data: bytes) -> bool:
    return wandb_internal_pb2.Record.FromString(data).WhichOneof("record_type") == "history"


def history(*fragment: Path) -> list[dict[str, Any]]:
    rows = []
    for path in fragment:
        for record in read(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def exit_codes(fragment: Path) -> list[int]:
    return [r.exit.exit_code for r in read(fragment) if r.WhichOneof("record_type") == "exit"]


def test_a_whole_run_reads_back(folder: Path) -> None:
    picture = folder / "heat_map.png"
    Image.new("RGB", (4, 4), "red").save(picture)
    warnings: list[str] = []
    log = open_log(folder, warnings=warnings)
    log.flush(3)
    log.flush(8)
    log.tables(
        ["after", "books", "dvd"],
        [["start", 50.0, 50.0], ["books", 81.25, 64.0], ["dvd", 80.0, 70.0]],
        [["books", None, None], ["dvd", 1.25, None]],
        {"accuracy": picture},
    )
    log.summary({"forgetting/chaudhry18": 1.25})
    log.artifacts("report", [picture])
    log.finish(3)

    assert warnings == []
    (fragment,) = fragments(folder)
    rows = history(fragment)
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [row.get("train/loss") for row in rows[:7]] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    assert [row["step"] for row in rows[:8]] == [10, 20, 30, 40, 50, 60, 70, 70]
    assert (rows[7]["accuracy/books"], rows[7]["accuracy/dvd"]) == (81.25, 64.0)
    assert rows[8]["matrix/accuracy._type"] == "table-file"
    assert (rows[8]["matrix/forgetting.nrows"], rows[8]["matrix/forgetting.ncols"]) == (2, 3)
    assert rows[8]["plots/accuracy._type"] == "image-file"
    (table,) = fragment.parent.glob("files/media/table/matrix/accuracy_*.table.json")
    assert json.loads(table.read_text())["data"][1] == ["books", 81.25, 64.0]

    records = read(fragment)
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.project, run.display_name) == ("ab12cd34", "cl_runner", "pe seed 0")
    assert (run.run_group, list(run.tags)) == ("sweep-1", ["test", "t" * 64])
    assert (run.notes, run.job_type) == ("a note", "train")
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    assert (config["seed"], config["method"]) == (0, {"pe": {"fraction": 0.005}})
    updates = [u for r in records if r.WhichOneof("record_type") == "summary" for u in r.summary.update]
    assert [json.loads(u.value_json) for u in updates if u.key == "forgetting/chaudhry18"] == [1.25]
    artifacts = [r.request.log_artifact.artifact for r in records if r.request.HasField("log_artifact")]
    artifacts += [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    (kept,) = [artifact for artifact in artifacts if artifact.type == "report"]
    assert kept.name == "report-ab12cd34"
    assert [Path(entry.local_path) for entry in kept.manifest.contents] == [picture], "no copy was made"
    assert exit_codes(fragment) == [3]


@pytest.mark.parametrize("kept", [0, 3, 5])
def test_an_interrupted_run_goes_on_in_a_new_fragment_without_a_point_twice(folder: Path, kept: int) -> None:
    log = open_log(folder)
    log.flush(5)
    log.finish(1)
    (first,) = fragments(folder)
    ends = [0] + [end for data, end in _records(first.read_bytes()) if is_history(data)]
    os.truncate(first, ends[kept] + 9)  # a few bytes of the next record are there
    assert len(history(first)) == kept

    log = open_log(folder)
    log.flush(8)
    log.finish(0)
    both = fragments(folder)
    assert len(both) == (2 if kept else 1)
    assert [row["_step"] for row in history(*both)] == list(range(8))
    assert exit_codes(both[-1]) == [0]


def test_tables_are_logged_once_even_if_the_end_of_a_run_is_interrupted(folder: Path) -> None:
    log = open_log(folder)
    log.flush(5)
    log.finish(1)
    for _ in range(2):
        log = open_log(folder)
        log.tables(["after", "books"], [["start", 50.0]], [["books", None]], {})
        log.finish(0)
    rows = history(*fragments(folder))
    assert ["matrix/accuracy._type" in row for row in rows] == [False] * 8 + [True]


def test_what_a_surviving_service_writes_later_does_not_reach_the_fragment(folder: Path) -> None:
    log = open_log(folder)
    log.flush(4)
    log.finish(0)
    (fragment,) = fragments(folder)
    before = fragment.read_bytes()
    with fragment.open("ab") as survivor:
        assert next_step(folder, "ab12cd34") == 4
        survivor.write(b"later")
    assert fragment.read_bytes() == before


def test_records_longer_than_a_block_are_read(folder: Path) -> None:
    wide = {
        "kind": "evaluation",
        "after": "books",
        "step": 1,
        "accuracy": {f"task {i}": 1.5 for i in range(2000)},
    }
    (folder / "metrics.jsonl").write_text(json.dumps(wide) + "\n")
    log = open_log(folder)
    log.flush(1)
    log.finish(0)
    (fragment,) = fragments(folder)
    assert fragment.stat().st_size > 2 * 32768
    assert history(fragment)[0]["accuracy/task 1999"] == 1.5
    assert next_step(folder, "ab12cd34") == 1


def test_a_failure_of_wandb_is_told_once_and_the_run_goes_on(folder: Path) -> None:
    warnings: list[str] = []
    log = open_log(folder, warnings=warnings)
    os.remove(folder / "metrics.jsonl")
    log.flush(8)
    log.flush(8)
    log.finish(0)
    assert len(warnings) == 1
    assert "left out from here on" in warnings[0]


def test_an_unknown_mode_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="wandb.mode must be offline, online, got 'on'"):
        open_log(folder, mode="on")


def test_points_of_scores_are_named_by_task_and_metric() -> None:
    scores = {"books": {"rouge_l": 12.5, "f1": float("nan")}, "dvd": {"number": 50.0}}
    line = {"kind": "evaluation", "after": "books", "step": 7, "accuracy": {"books": 12.5}, "scores": scores}
    assert points(line) == {"step": 7, "accuracy/books": 12.5, "scores/books/rouge_l": 12.5, "scores/dvd/number": 50}
    assert points({"kind": "ability", "after": "start", "step": 0, "ability": {"held_text/loss": 2.5}}) == {
        "step": 0,
        "ability/held_text/loss": 2.5,
    }


def test_points_are_named_by_kind_and_leave_out_what_is_no_number() -> None:
    line = {
        "kind": "train",
        "task": "a",
        "task_index": 1,
        "step": 3,
        "epoch": 0.5,
        "loss": float("nan"),
        "ewc": 2,
    }
    assert points(line) == {"train/task_index": 1, "step": 3, "epoch": 0.5, "train/ewc": 2}
