"""What a run of many tasks costs beside its answers: files read once, pictures that do not grow with the tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cl_runner.matrix import forgetting_matrix
from cl_runner.report import drawing, plots
from cl_runner.tracking import metrics
from cl_runner.tracking.metrics import last_steps

TASKS = [f"task {number}" for number in range(60)]


@pytest.mark.parametrize("at_once", [1, 7, 40, 1000])
def test_the_last_tasks_steps_are_those_of_the_whole_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(metrics, "_READ", at_once)
    lines = [{"kind": "evaluation", "after": "start"}]
    for task in ("a", "é\n", "c"):
        lines += [{"kind": "train", "task": task, "step": step, "text": "x" * step} for step in range(9)]
        lines += [{"kind": "ability", "after": task}, {"kind": "evaluation", "after": task}]
        path = tmp_path / f"{task[0]}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        wanted = [line for line in lines if line["kind"] == "train" and line["task"] == task]
        assert last_steps(path, task) == wanted and len(wanted) == 9
    assert last_steps(path, "a") == [], "not the task that was trained last"
    path.write_text("")
    assert last_steps(path, "a") == []


def test_pictures_of_many_tasks_have_the_size_of_forty(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((61, 60)) * 100
    plots.accuracy_heat_map(TASKS, rows, tmp_path / "accuracy.png", "accuracy", TASKS)
    plots.forgetting_heat_map(TASKS, forgetting_matrix(rows), tmp_path / "forgetting.png")
    details = [
        {"name": name, "stored_bytes": 10 * number, "model_bytes": 1000, "phases": {"train": 1.0}}
        for number, name in enumerate(TASKS)
    ]
    plots.phase_bars(details, tmp_path / "phases.png")
    plots.storage_bars(details, tmp_path / "storage.png")
    width, height, _ = drawing.heat_map_size(40, 40)
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert image.width <= 150 * width + 1 and image.height <= 150 * height + 1, path


def test_a_picture_leaves_out_no_name_that_it_has_room_for() -> None:
    assert [list(drawing.thinned(count)) for count in (0, 1, 3)] == [[], [0], [0, 1, 2]]
    assert len(drawing.thinned(40)) == 40 and len(drawing.thinned(41)) == 21 and len(drawing.thinned(1000)) == 40
    assert drawing.heat_map_size(80, 12)[1] > drawing.heat_map_size(40, 40)[1], "few columns leave room for many rows"
    assert drawing.heat_map_size(500, 500) == drawing.heat_map_size(41, 41)
