"""Runs of methods that write examples of old tasks: deaths, the report, refusals, plans."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_generated import LFPT5, SHORT, write_valid
from test_resume import dies_and_goes_on
from tiny import RARELY, TINY, Death, run_command, tiny_words

from cl_runner.build import build_method
from cl_runner.compose import compose
from cl_runner.methods.generates import Generates
from cl_runner.needs import Added
from cl_runner.planning.numbers import asked_after, counts_of, local_family, local_tasks, setting_of, text_lengths
from cl_runner.planning.numbers import skeleton as skeleton_of
from cl_runner.planning.tasks import ask
from cl_runner.report.folder import Run, read_run
from cl_runner.report.generated import generated_tables

# Runs ------------------------------------------------------------------------------------------------------------


@RARELY
def test_deaths_inside_a_task_and_in_the_middle_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LFPT5 with the best epoch by what was written as well; the files of what was written are the same."""
    write_valid(monkeypatch)
    options = [*LFPT5, *(o.format("lfpt5") for o in SHORT), "training.select=best_validation"]
    options += ["task_order.base.validation=4", "task_order.incremental.validation=4", "training.select_after=1"]
    options += ["task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}]", "snapshots.save=sparse"]

    def typed(root: Path) -> list[str]:
        taken = {option.partition("=")[0] for option in options}
        rest = [o for o in TINY if o.partition("=")[0] not in taken]
        return [*rest, *options, "checkpoint.every_seconds=0", f"root={root}"]

    name = "generated/01_kettles_lfpt5.jsonl"
    dies_and_goes_on(typed, (18,), name, tmp_path, monkeypatch)
    folder = compose(typed(tmp_path / "whole")).folder
    detail = json.loads((folder / "summary.json").read_text())["tasks_detail"]
    assert "generated" not in detail[0]["method"].get("lfpt5", {})
    said = detail[1]["method"]["lfpt5"]["generated"]
    assert said["file"] == name and said["tasks"]["base"] == {
        "asked": 12, "kept": {"train": 4, "validation": 4}, "dropped": {"label has enough": 4}
    }  # fmt: skip
    assert detail[1]["selected_epoch"]["evaluations"] == 1  # of two epochs
    assert json.loads((folder / "summary.json").read_text())["access"]["old_data"] == ["generated"]
    counts, files, texts = generated_tables(read_run(folder))
    assert counts.rows[0] == ["kettles", "base", "12", "8", "4", "4", "label has enough 4"]
    assert files.rows[0][::2] == [name, said["sha256"]] and len(texts.rows) == 5
    page = (folder / "report.html").read_text() if (folder / "report.html").is_file() else ""
    assert not page or said["sha256"] in page

    real, once = Generates.keep, iter([None] * 3)

    def dying(self: Generates, *given: Any) -> None:
        real(self, *given)
        if next(once, 0) == 0:
            raise Death

    root = tmp_path / "writing"
    with monkeypatch.context() as patched, pytest.raises(Death):
        patched.setattr(Generates, "keep", dying)
        run_command(typed(root))
    assert run_command(typed(root)) == 0
    again = compose(typed(root)).folder
    assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert (again / "accuracy.csv").read_bytes() == (folder / "accuracy.csv").read_bytes()


def test_what_was_written_is_shown_as_it_is_spelled(tmp_path: Path) -> None:
    """Tags, control characters and long texts are letters; a damaged file is named."""
    folder = tmp_path / "generated"
    folder.mkdir()
    lines = [
        {
            "kind": "account",
            "before": "kettles",
            "task": "base",
            "asked": 9,
            "kept": {"train": 4},
            "dropped": {"no <b>": 5},
        },
        *(
            {"kind": "kept", "task": "base", "use": "train", "text": f"<i>\x1b[1m{i}", "answer": "good\n"}
            for i in range(4)
        ),
        *({"kind": "dropped", "task": "base", "reason": "no <b>", "text": "x" * 999} for _ in range(5)),
    ]
    (folder / "01_kettles_lamol.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    run = dataclasses.replace(_run(), folder=tmp_path)
    counts, files, texts = generated_tables(run)
    assert counts.rows == [["kettles", "base", "9", "4", "4", "0", "no <b> 5"]]
    assert [row[2] for row in texts.rows] == ["learned"] * 3 + ["dropped"] * 2
    assert texts.rows[0][3:] == ["<i>\\x1b[1m0", "good\\n"] and len(texts.rows[3][3]) == 301
    assert files.rows[0][1] == "9"
    (folder / "01_kettles_lamol.jsonl").write_text("no JSON\n")
    with pytest.raises(ValueError, match="01_kettles_lamol"):
        generated_tables(run)
    assert generated_tables(dataclasses.replace(run, folder=tmp_path / "none")) == []


def _run() -> Any:
    nothing: Any = None
    return Run(*[nothing] * len(dataclasses.fields(Run)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["method=lamol", "method.lamol.start='__{tsak}__'"], r"Type: 'method\.lamol\.start=\"__\{task\}__\"'"),
        (["method=lamol", "method.lamol.start='__{task'"], r"Type: 'method\.lamol\.start=\"__"),
        (["method=lamol", "method.lamol.between=' '"], r"between is white space.*Type: method\.lamol\.between=__ans__"),
        (["method=lamol", "method.lamol.share=1.5"], "share"),
        (["method=lfpt5", "method.lfpt5.kl=-0.1"], "kl"),
        (["method=lfpt5", "backbone=tiny_bert"], "lfpt5"),
        (["method=[lfpt5,piece_s]"], "lfpt5"),
        (["method=lamol", "training.select_after=2"], "select_after"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    backbone = [] if any(option.startswith("backbone=") for option in options) else ["backbone=tiny_gpt2"]
    assert run_command(tiny_words(f"root={tmp_path}", *backbone, *options)) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.startswith("cl_runner: ") and error.count("\n") == 1


# Plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asked", "passed"),
    [
        (["method=lamol_0.2"], [5, 4, 0], [2 * 2 * 48, 2 * 2 * (24 + 5), 2 * 2 * (24 + 4)]),
        (["method=lfpt5", "method.lfpt5.tries=7"], [21, 42, 0], [2 * 2 * 48, 2 * 2 * (24 + 6), 2 * 2 * (24 + 12)]),
        (["method=lamol", "task_order=[reviews,single_task]"], [0, 0, 0], [2 * 2 * 48, 2 * 2 * 24, 2 * 2 * 24]),
    ],
)
def test_what_is_written_is_planned(options: list[str], asked: list[int], passed: list[int]) -> None:
    config = compose(tiny_words(*options, "backbone=tiny_t5", "backbone.max_length=50")).config
    tasks = local_tasks(config)
    model = skeleton_of(config.backbone, 3)
    counts = counts_of(config, tasks)
    needs = ask(build_method(config.method), config, model)
    assert [sum(texts) for texts in asked_after(config, needs, counts)] == asked
    s = setting_of(config, counts, model, "cpu", text_lengths(local_family(config.backbone, tasks), tasks))
    assert s.asked == sum(asked) and [task.passed for task in s.tasks] == passed and all(map(s.accumulates, s.tasks))
    assert needs.adds is not None and needs.adds([], 3, 20) == Added(20)
    assert s.answers is not None and s.asked_answers is not None
    recited = s.reciting()
    assert recited.answers is not None and recited.answers.max_length == s.max_whole - needs.room > s.answers.max_length
    if s.asked:
        most = config.method[next(iter(config.method))]["max_new_tokens"] or 50 + 64
        assert s.asked_answers.generated == most and s.asking().max_length == needs.room + 16
