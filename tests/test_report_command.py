"""The command `report`: what it finds, prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from run_folders import assert_self_contained, make_run, words

from cl_runner.report import command
from cl_runner.report.folder import find_runs
from cl_runner.report.publish import published
from cl_runner.report.text_table import blocks


def test_find_runs_searches_below_counts_each_once_and_notes_the_rest(tmp_path: Path) -> None:
    done = make_run(tmp_path, seed=0)
    make_run(tmp_path, seed=1, done=1, marker="FAILED")
    make_run(tmp_path, seed=2, done=1, marker="")
    runs, notes = find_runs([tmp_path, done])
    assert [run.folder for run in runs] == [done]
    assert [note.rpartition(": ")[2] for note in notes] == ["failed", "unfinished"]
    with pytest.raises(ValueError, match="there is no folder"):
        find_runs([tmp_path / "nowhere"])


def test_configurations_that_are_no_runs_are_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path, order="o")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("a: 1\n")
    for place in ("wandb/run-1/files", "state", "snapshots/x"):
        shutil.copytree(run, tmp_path / "kept" / place)
    runs, notes = find_runs([tmp_path])
    assert ([found.folder for found in runs], notes) == ([run], [])
    # A run is looked for below the folder only: where that lies does not matter.
    assert len(find_runs([tmp_path / "kept" / "wandb"])[0]) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: 1\n"),
        ("config.yaml", "- a\n"),
        ("config.yaml", "just text\n"),
        ("config.yaml", "seed: [0\n"),
        ("config.yaml", "seed: \xff\n"),
        ("summary.json", '{"status": "completed", "tas'),
        ("summary.json", "[]"),
        ("environment.json", ""),
        ("accuracy.csv", "after,\xff\n"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    sound, broken = make_run(tmp_path, seed=0), make_run(tmp_path, seed=1)
    (broken / name).write_text(content, encoding="latin-1")
    runs, notes = find_runs([tmp_path])
    assert [run.folder for run in runs] == [sound]
    assert len(notes) == 1 and str(broken / name) in notes[0] and "\n" not in notes[0]
    for flags in ([], ["--metric", "bwt/gem"]):
        assert command.main([str(broken), *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"cl_runner: {broken / name} ") and error.count("\n") == 1


@pytest.mark.parametrize(("name", "content"), [("masks.json", '{"tasks": ['), ("plan.json", "[1]")])
def test_a_damaged_file_of_the_page_alone_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    folder = make_run(tmp_path, tasks=["base"])
    (folder / name).write_text(content)
    assert len(find_runs([tmp_path])[0]) == 1, "tables need neither"
    assert command.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cl_runner: {folder / name} cannot be read") and error.count("\n") == 1


@pytest.mark.parametrize("form", ["csv", "markdown", "html"])
def test_what_cannot_be_written_is_one_message_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    run = make_run(tmp_path / "runs")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    long = "x" * 252  # a name that can be, but not with .tmp added
    for place, reason in (
        ("folder", "it is a folder"),
        ("file/x", f"{tmp_path}/file is not a folder"),
        (long, "File name too long"),
    ):
        before = sorted(tmp_path.rglob("*"))
        assert command.main([str(run), "--format", form, "--output", str(tmp_path / place)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"cl_runner: cannot write {tmp_path / place}: ") and reason in error
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_command_rewrites_the_page_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path, "ewc", tasks=["base", "c"])
    assert command.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert str(folder / "report.html") in out.replace("\n", "")
    assert "after c" in out and "forgetting/chaudhry18 +10.00 points" in out


def test_command_joins_many_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "pe", 0, last=70)
    make_run(tmp_path, "pe", 1, last=74)
    make_run(tmp_path, "ewc", 0)
    make_run(tmp_path, "ewc", 1, done=1, marker="FAILED")
    assert command.main([str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "72.00 ± 2.83" in captured.out
    assert "failed" in captured.err
    assert_self_contained(tmp_path / "report.html")
    text = words(tmp_path / "report.html")
    assert "72.00 ± 2.83" in text and "left out" in text
    assert text.count("data:image/png") == 3
    assert "72.00 ± 2.83" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "report.csv").read_text(encoding="utf-8").startswith("task_order,backbone,method,protocol,n,")


def test_command_prints_and_writes_the_format_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fraction in (0.005, 0.1):
        make_run(tmp_path / "runs", fraction=fraction, last=100 * fraction)
    shape = [str(tmp_path / "runs"), "--columns", "method.pe.fraction", "--metric", "average_accuracy"]
    assert command.main([*shape, "--format", "csv"]) == 0
    assert capsys.readouterr().out == "task_order,0.005,0.1\nfdu_mtl,0.50,10.00\n"
    output = tmp_path / "table.md"
    assert command.main([*shape, "--format", "markdown", "--output", str(output)]) == 0
    assert "| fdu_mtl | 0.50 | 10.00 |" in output.read_text(encoding="utf-8")
    assert command.main([*shape, "--output", str(tmp_path / "table.html")]) == 0
    assert_self_contained(tmp_path / "table.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUNS", "--columns", "metod"], "no run has the key 'metod'. Nearest: method."),
        (["RUNS", "--metric", "union_acuracy"], "Nearest: union_accuracy."),
        (["RUNS", "--where", "method"], "--where method: a condition is KEY=VALUE"),
        (["RUNS", "--where", "metod=pe"], "no run has that key. Nearest: method. Type: --where method=VALUE"),
        (["RUNS", "--where", "method.pe.fractoin=1"], "Type: --where method.pe.fraction=VALUE"),
        (["RUNS", "--where", "method.pe=1"], "it has no value of its own, but method.pe.fraction"),
        (["RUNS", "--where", "method=ep"], "There are: pe. Type: --where method=pe"),
        (["RUNS", "--where", "method.pe.fraction=0.05"], "There are: 0.005. Type: --where method.pe.fraction=0.005"),
        (["RUNS", "--where", "seed=0", "--where", "seed=1"], "Type: --where seed=0,1"),
        (["RUNS", "--format", "pdf"], "invalid choice: 'pdf'"),
        (["RUNS", "--publish", "name"], "--publish and --command belong together"),
        (["RUNS", "--output", "x.txt"], "needs --format csv, markdown or html"),
        (["RUNS/nowhere"], "there is no folder"),
        (["RUNS/empty"], "no completed run in"),
        ([], "RUN_OR_FOLDER"),
    ],
)
def test_command_answers_a_mistake_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    make_run(tmp_path)
    (tmp_path / "empty").mkdir()
    assert command.main([text.replace("RUNS", str(tmp_path)) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cl_runner: ") and message in error
    assert "Traceback" not in error and error.count("\n") == 1


def test_two_experiments_in_one_root_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fraction in (0.005, 0.1):
        make_run(tmp_path, fraction=fraction, last=100 * fraction)
        make_run(tmp_path, fraction=fraction, last=100 * fraction, seed=1)
    make_run(tmp_path, "ewc", last=30)
    shape = [str(tmp_path), "--columns", "method", "--metric", "average_accuracy", "--format", "csv"]
    assert command.main(shape) == 2
    error = capsys.readouterr().err
    assert "differ in method.pe.fraction. Type --columns method.pe.fraction, or --where method.pe.fraction=" in error
    for value, cell in (("0.1", "10.00 ± 0.00"), ("1e-1", "10.00 ± 0.00"), ("0.005", "0.50 ± 0.00")):
        assert command.main([*shape, "--where", f"method.pe.fraction={value}"]) == 0
        assert capsys.readouterr().out == f"task_order,pe\nfdu_mtl,{cell}\n"
    assert command.main([*shape, "--where", "method.pe.fraction=0.1,null"]) == 0
    assert capsys.readouterr().out == "task_order,ewc,pe\nfdu_mtl,30.00,10.00 ± 0.00\n", "a run without the key"
    assert command.main([*shape, "--where", "method=ewc"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "task_order,ewc\nfdu_mtl,30.00\n" and "only 1 of 5 runs: method=ewc" in shown.err
    assert "only 1 of 5 runs: method=ewc" in words(tmp_path / "report.html")
    assert command.main([*shape, "--where", "method=ewc", "--where", "seed=1"]) == 2
    assert "no run fulfils all of --where method=ewc --where seed=1" in capsys.readouterr().err


def test_published_results_hold_everything_but_paths_of_the_machine(tmp_path: Path) -> None:
    for seed, last in ((0, 70), (1, 74)):
        folder = make_run(tmp_path / "runs", seed=seed, last=last)
        given = "method=pe\nbackbone.checkpoint=/somewhere/model\nseed=1\ndata_root=/somewhere/data\n"
        (folder / "overrides.txt").write_text(given)
        config = OmegaConf.load(folder / "config.yaml")
        config.backbone.checkpoint = "/somewhere/model"
        OmegaConf.save(config, folder / "config.yaml")
    runs = find_runs([tmp_path / "runs"])[0]
    line = "python -m cl_runner -m method=pe seed=0,1 data_root=/somewhere/data"
    paths = published(runs, tmp_path / "published" / "small", line)
    results = json.loads(paths[0].read_text(encoding="utf-8"))
    assert results["command"] == "python -m cl_runner -m method=pe seed=0,1 data_root=DATA"
    assert results["seeds"] == [0, 1]
    assert len(results["environments"]) == len(results["data"]) == 1
    assert results["environments"][0]["hardware"]["cores"] == 2
    assert results["data"][0]["test_examples"] == {"base": 20, "b": 10, "c": 10}
    assert results["runs"][1]["accuracy"][-1] == [74, 74, 74]
    assert results["runs"][1]["overrides"] == ["method=pe", "backbone.checkpoint=FOLDER", "seed=1"]
    markdown = paths[1].read_text(encoding="utf-8")
    assert "72.00 ± 2.83" in markdown and "base 30/20" in markdown and "torch 2.9" in markdown
    assert not [path for path in paths if "/somewhere" in path.read_text(encoding="utf-8")]


def test_a_relative_data_root_replaces_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs")
    config = OmegaConf.load(folder / "config.yaml")
    config.data_root = "data"
    OmegaConf.save(config, folder / "config.yaml")
    runs = find_runs([tmp_path / "runs"])[0]
    paths = published(runs, tmp_path / "small", "python -m cl_runner task_order.data_seed=1")
    assert json.loads(paths[0].read_text(encoding="utf-8"))["command"] == "python -m cl_runner task_order.data_seed=1"


def test_terminal_blocks_repeat_the_names_and_lose_no_column() -> None:
    assert blocks([10, 5, 20, 20, 20], left=1, room=40) == [[0, 1, 2], [0, 3], [0, 4]]
    assert blocks([10, 90], left=1, room=40) == [[0, 1]]
