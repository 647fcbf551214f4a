"""The pace of a past run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tiny import TINY

from cl_runner.compose import compose
from cl_runner.planning.past import past_seconds
from cl_runner.planning.tasks import Counts
from cl_runner.tracking.environment import describe_environment


def past_run(folder: Path, resolved: Mapping[str, Any], device: str = "cpu") -> None:
    """The files of a finished run of which only counts and seconds matter."""
    folder.mkdir(parents=True)
    environment = describe_environment("")
    environment["hardware"]["device"] = device
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(resolved)))
    details = [
        {"name": name, "train_examples": 10, "importance_cached": False} for name in ("base", "kettles", "software")
    ]
    summary = {
        "tasks_detail": details,
        "test_examples": {"base": 5, "kettles": 5, "software": 5},
        "phases": {"load": 1.5, "train": 6.0, "evaluate": 3.0},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def test_seconds_at_the_pace_of_a_past_run(tmp_path: Path) -> None:
    resolved = compose([*TINY, "method=seq_ft"]).resolved
    work = {"importance": (0, 0.0), "train": (90, 90.0), "select": (0, 0.0), "evaluate": (30, 30.0)}
    seen = []

    def work_of(config: Any, counts: Any) -> Mapping[str, tuple[int, float]]:
        seen.append(counts)
        return {"importance": (0, 0.0), "train": (60, 60.0), "select": (0, 0.0), "evaluate": (60, 60.0)}

    def ask() -> tuple[dict[str, float], str] | None:
        return past_seconds(tmp_path, "*/tiny/seq_ft/*", resolved, "cpu", work, work_of)

    assert ask() is None
    past_run(tmp_path / "order/tiny/seq_ft/other", resolved, device="another GPU")
    slower = {**resolved, "hardware": {**resolved["hardware"], "threads": 7}}
    past_run(tmp_path / "order/tiny/seq_ft/threads", slower)
    (tmp_path / "order/tiny/seq_ft/damaged").mkdir()
    (tmp_path / "order/tiny/seq_ft/damaged/summary.json").write_text("{")
    assert ask() is None
    past_run(tmp_path / "order/tiny/seq_ft/cached", resolved)
    summary = tmp_path / "order/tiny/seq_ft/cached/summary.json"
    summary.write_text(summary.read_text().replace('"importance_cached": false', '"importance_cached": true'))
    assert ask() is None  # its offline phase took no time
    past_run(tmp_path / "order/tiny/seq_ft/same", {**resolved, "seed": 3})
    assert ask() == ({"train": 9.0, "evaluate": 1.5, "load": 1.5}, str(tmp_path / "order/tiny/seq_ft/same"))
    assert seen == [[Counts(name, 10, 5) for name in ("base", "kettles", "software")]]
    work["select"] = (40, 40.0)  # the same passes as those of evaluations
    assert ask() == (
        {"train": 9.0, "evaluate": 1.5, "select": 2.0, "load": 1.5},
        str(tmp_path / "order/tiny/seq_ft/same"),
    )
