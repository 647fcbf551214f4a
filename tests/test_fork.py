"""A fork goes on from another run's state after a task: with the same settings to the same bits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import EVERY_FAMILY, Death, run_command, tiny, without_report

from cl_runner.compose import compose
from cl_runner.data.task import build_tasks
from cl_runner.fork import line_of
from cl_runner.groups import nodes_of, options
from cl_runner.journal import Journal
from cl_runner.parent import read_parent
from cl_runner.prepared import prepare

SMALL = ("backbone.max_length=32", "training.base.epochs=1", "training.incremental.epochs=1")
SMALL += ("task_order.base.train=16", "task_order.incremental.train=16", "checkpoint.after_tasks=true")


def finished(root: Path, *overrides: str) -> Path:
    line = tiny(root, *overrides, *SMALL)
    with without_report():
        assert run_command(line) == 0
    return compose(line).folder


def forked(run: Path, at: str, *overrides: str) -> Path:
    with without_report():
        assert run_command(["fork", str(run), "--at", at, *overrides]) == 0
    return compose(line_of(run, at, overrides)).folder


def content(folder: Path) -> dict[str, Any]:
    """What came of a run, whoever trained its first tasks."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    details = summary["tasks_detail"]
    return {
        "weights": summary["weights_sha256"],
        "metrics": summary["metrics"],
        "lines": [
            [line.get(key) for key in ("kind", "task", "step", "loss", "gradient_norm", "scores")] for line in lines
        ],
        "tasks": [{key: one[key] for key in ("name", "steps", "changed", "trainable", "answers")} for one in details],
        "masks": (folder / "masks.json").read_text() if (folder / "masks.json").is_file() else None,
        "snapshots": [path.read_bytes() for path in sorted((folder / "snapshots").iterdir())],
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("parent"), "method=ewc_online")


def test_a_fork_without_changes_ends_as_its_run_did(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("hardware.fit=false",)  # which is no part of what is computed
    with monkeypatch.context() as patched:
        evaluate = Journal.evaluate

        def die(journal: Journal, after: str) -> None:
            if after == "kettles":
                raise Death
            evaluate(journal, after)

        patched.setattr(Journal, "evaluate", die)
        with pytest.raises(Death):
            run_command(["fork", str(run), "--at", "kettles", *words])
    folder = forked(run, "kettles", *words)
    assert folder != run and folder.parent == run.parent, "its hash tells it from a run that trained everything itself"
    assert content(folder) == content(run)
    details = json.loads((folder / "summary.json").read_text())["tasks_detail"]
    assert [detail.get("trained_by") for detail in details] == [str(run), str(run), None]


def test_a_first_task_that_was_learned_plainly_is_the_same_for_other_methods(run: Path, tmp_path: Path) -> None:
    change = ("method=ewc_online", "method.ewc.strength=7.0", "training.incremental.learning_rate=1e-3")
    assert content(forked(run, "base", *change)) == content(finished(tmp_path, *change))


def refused(run: Path, at: str, *overrides: str) -> str:
    request = compose(line_of(run, at, overrides))
    tasks = build_tasks(request.config.task_order, request.config.task)
    with pytest.raises(ValueError) as caught:
        read_parent(run, at).check(request.config, tasks, prepare(request.config, tasks).method)
    return str(caught.value)


OTHER = "task_order.tasks=[{name: base, domains: [novels, films]}, {name: software}]"


@pytest.mark.parametrize(
    ("at", "overrides", "said"),
    [
        ("kettle", (), "has no task 'kettle', but base, kettles, software. Type: --at kettles"),
        ("base", ("seed=1",), "seed=1 is another one than in"),
        ("base", ("training.base.learning_rate=1e-3",), "training.base.learning_rate=0.001 is another one"),
        ("base", ("backbone.max_length=24",), "backbone.max_length=24 is another one"),
        ("kettles", (OTHER,), "task_order.tasks="),
        ("base", ("task_order.base.train=24",), "the data of base are others"),
        ("kettles", ("method=pe",), r"cannot go on from kettles, which ewc learned.*method=ewc_online .*--at base"),
        ("base", ("method=si",), r"si cannot go on from base, which ewc learned"),
        (
            "kettles",
            ("method.ewc.fisher_data=old_tasks",),
            r"was made with last_task. Type: method.ewc.fisher_data=last",
        ),
    ],
)
def test_what_cannot_go_on_is_refused(at: str, overrides: tuple[str, ...], said: str, run: Path) -> None:
    assert re.search(said, refused(run, at, *overrides))


def test_what_is_not_kept_is_named_with_the_line_that_keeps_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = run / "states"
    states.rename(tmp_path / "states")
    try:
        said = refused(run, "kettles")
    finally:
        (tmp_path / "states").rename(states)
    assert "is not there" in said and "checkpoint.after_tasks=true" in said and "_kept" in said and "--at base" in said
    assert run_command(["fork", str(tmp_path), "--at", "base"]) == 2
    assert "is no run" in capsys.readouterr().err
    assert run_command(["fork", str(run), "--at", "base", "method=pe", "--show"]) == 0
    assert "fork.at=base" in (shown := capsys.readouterr().out) and "It would write to" in shown


def kinds() -> list[str]:
    """A preset of each method, and of a chain of methods: what a state holds is of methods, not of their options."""
    found: dict[tuple[str, ...], str] = {}
    for choice in options("method"):
        found.setdefault(tuple(nodes_of(choice)), choice)
    return list(found.values())


@pytest.mark.skipif(not EVERY_FAMILY, reason="many runs")
@pytest.mark.parametrize("choice", kinds())
def test_every_method_goes_on(choice: str, run: Path, tmp_path: Path) -> None:
    """From what plain training learned first, where it may; and from itself, to the same bits."""
    chosen = [f"method={choice}", *(["method.mbpa.local_steps=2"] if choice == "mbpa" else [])]  # 30 take minutes
    try:
        tiny_run = compose(tiny(tmp_path, *chosen, *SMALL))
        prepare(tiny_run.config, build_tasks(tiny_run.config.task_order, tiny_run.config.task))
    except ValueError as error:
        pytest.skip(str(error))
    alone = finished(tmp_path, *chosen)
    assert content(forked(alone, "kettles")) == content(alone)
    if run_command(["fork", str(run), "--at", "base", *chosen, "--show"]) == 0:
        forked(run, "base", *chosen)
