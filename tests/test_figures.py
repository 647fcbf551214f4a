"""The command `figure`: data of its pictures against the runs' files, published points, what is said without runs."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import run_folders
from matplotlib.figure import Figure as Canvas
from run_folders import MASKS, as_published, fisher_cells, make_run
from safetensors.numpy import load_file, save_file
from tiny import run_command

from cl_runner.groups import options
from cl_runner.matrix import read_matrix
from cl_runner.papers.figures import figure, figures
from cl_runner.papers.maps import mean_importance
from cl_runner.papers.published import Paper, papers
from cl_runner.report.folder import read_run
from cl_runner.report.panels import Panel, score_panels
from cl_runner.report.retrieval import embed_both

#: How pictures are really rendered; tests replace it.
SAVE = Canvas.savefig
PE = {"ewc": {}, "lwf": {}, "pe": {"fraction": 0.005}}
TRACE = ["C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten", "Py150"]
BERT_4 = ["ag", "yelp", "amazon", "yahoo", "db"]
NUMBERS = {"humaneval/pass@1": [30.0, *range(8)], "held_text/loss": [1.5, *range(8)]}


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, node in (("pe_main", PE), ("slm", {"slm": {}}), ("frozen", {"frozen": {}})):
        monkeypatch.setitem(run_folders.NODES, name, node)
    monkeypatch.setattr(run_folders, "SIZES", [20] + [10] * 16)


def drawn(name: str, *typed: object, output: Path) -> list[str]:
    """Names of the files that a figure is written to."""
    assert run_command(["figure", name, *map(str, typed), "--output", str(output)]) == 0
    return sorted(path.name for path in output.iterdir())


def data(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def masks_of(folder: Path, content: Sequence[object] = MASKS) -> Path:
    (folder / "masks.json").write_text(json.dumps({"tasks": content}))
    return folder


def keys_of(folder: Path, tasks: Sequence[str], slots: int = 2) -> Path:
    random = np.random.default_rng(0)
    save_file({t: random.normal(size=(3, slots, 4)).astype(np.float32) for t in tasks}, folder / "keys.safetensors")
    return folder


def test_every_figure_has_its_commands_and_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["pe/3", "pe/4", "piece/1", "piece/3", "piece/4", "piece/5", "slm/4", "slm/7", "slm/9", "slm/10"]
    assert {each.name for each in figures()} == set(names)
    assert run_command(["figure"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in names) and "fisher.json" in shown and "masks.json" in shown
    for each in figures():
        made = each.commands(data_root="DATA")
        assert made and all(command.overrides[-2:] == ("data_root=DATA", "seed=0,1,2") for command in made), each.name
    assert run_command(["figure", "piece/5", "--data-root", "DATA"]) == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("python -m cl_runner -m ")]
    assert lines == [command.line for command in figure("piece/5").commands(data_root="DATA")]
    assert f"# piece/5: {figure('piece/5').data.title}" in text and "# reads of each run: which weights two" in text
    assert "task_order=bert_4,bert_5,bert_6,bert_7" in figure("slm/9").commands()[0].line
    assert "probe=none" in figure("piece/5").commands()[0].line and "none" in options("probe")
    assert [each.rows for each in figure("pe/3").commands()][-1] == ("Upper",)


def test_published_points_are_those_of_the_tables() -> None:
    """In the unit of a run's number, after the task that they belong to."""
    found = {(p.line, p.measure, p.after): p for p in figure("piece/1").points}
    assert found["S 0.1 %", "ability/humaneval/pass@1", "FOMC"].value == 38.41
    assert found["SeqLoRA", "ability/humaneval/pass@1", "Py150"].value == 28.05
    assert found["SeqLoRA", "average_accuracy", "Py150"].value == 46.04 and len(found) == 8 * 2 + 2 * 8
    assert all(list(point.tasks) == TRACE for point in found.values())
    assert [(p.tasks[0], p.value) for p in figure("slm/9").points] == [
        ("ag", 79.2), ("yelp", 78.8), ("db", 79.0), ("yelp", 79.2)
    ]  # fmt: skip
    assert not list(figure("pe/3").points)


def test_a_figure_of_cells_that_are_not_there_is_no_figure() -> None:
    content = papers()["slm"].model_dump(exclude_unset=True)
    content["figures"][2]["runs"]["rows"] = ["SLN"]
    with pytest.raises(ValueError, match="figure 9: table 1 has no SLN"):
        Paper.model_validate(content)


def test_pe_3_is_what_the_matrices_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the first task or another one, a picture per order, methods of the paper alone unless all are asked for."""
    runs = [make_run(tmp_path / "r", m, s, last=60.0 + s) for m, s in (("ewc", 0), ("ewc", 1), ("seq_ft", 0))]
    make_run(tmp_path / "r", "frozen", 0)
    assert drawn("pe/3", tmp_path / "r", output=tmp_path / "o") == ["pe_3.csv", "pe_3.png"]
    said = capsys.readouterr()
    assert "(--all draws them): frozen" in said.err and "differs from pe/3: backbone minilm, not bert_base" in said.out
    rows = data(tmp_path / "o" / "pe_3.csv")
    assert len(rows) == 9 and {row["line"] for row in rows} == {"ewc", "seq_ft"}
    for run in runs:
        _, matrix = read_matrix(run / "accuracy.csv")
        own = [(row["after"], float(row["value"])) for row in rows if row["source"] == str(run)]
        assert own == list(zip(["base", "b", "c"], matrix[1:, 0].tolist(), strict=True))
    make_run(tmp_path / "r", "ewc", 0, order="amazon_1", tasks=["base", "b", "d"])
    files = drawn("pe/3", tmp_path / "r", "--all", "--task", "b", output=tmp_path / "all")
    assert files == ["pe_3_amazon_1.csv", "pe_3_amazon_1.png", "pe_3_fdu_mtl.csv", "pe_3_fdu_mtl.png"]
    rows = data(tmp_path / "all" / "pe_3_fdu_mtl.csv")
    assert {row["line"] for row in rows} == {"ewc", "seq_ft", "frozen"} and {row["after"] for row in rows} == {"b", "c"}
    capsys.readouterr()
    assert run_command(["figure", "pe/3", str(tmp_path / "r"), "--where", "task_order=fdu_mtl", "--task", "bb"]) == 2
    assert "--task bb is no task of fdu_mtl" in (error := capsys.readouterr().err) and "Type: --task b" in error


def test_formats_are_rendered_and_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Canvas, "savefig", SAVE)
    run = make_run(tmp_path / "r", "ewc")
    files = drawn("pe/3", run, "--format", "png,svg,.PDF", output=tmp_path / "a")
    assert files == ["pe_3.csv", "pe_3.pdf", "pe_3.png", "pe_3.svg"]
    drawn("pe/3", run, "--format", "svg,pdf", output=tmp_path / "b")
    for name, start in (("pe_3.png", b"\x89PNG"), ("pe_3.svg", b"<?xml"), ("pe_3.pdf", b"%PDF"), ("pe_3.csv", b"fig")):
        first, again = (tmp_path / "a" / name).read_bytes(), tmp_path / "b" / name
        assert first.startswith(start) and (name == "pe_3.png" or first == again.read_bytes())


def test_pe_4_is_what_fisher_json_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / "r", "pe_main", seed) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        cells = fisher_cells()
        cells[0]["mean"] *= 1 + 2 * seed
        (run / "fisher.json").write_text(json.dumps({"after": "c", "layers": cells}))
        summary = json.loads((run / "summary.json").read_text())
        summary["tasks_detail"][2]["measured_on_new_data"] = False
        (run / "summary.json").write_text(json.dumps(summary))
    bare = make_run(tmp_path / "r", "pe_main", 2)
    assert drawn("pe/4", tmp_path / "r", output=tmp_path / "o") == ["pe_4.csv", "pe_4.png"]
    said = capsys.readouterr()
    assert f"left out {bare}: there is no fisher.json" in said.err and "13 % of the weights" in said.out
    rows = data(tmp_path / "o" / "pe_4.csv")
    for run in runs:
        own = [row for row in rows if row["source"] == str(run)]
        for row, cell in zip(own, json.loads((run / "fisher.json").read_text())["layers"], strict=True):
            assert (row["layer"], row["module"], row["before"]) == (cell["layer"], cell["module"], "c")
            assert float(row["mean"]) == cell["mean"] and float(row["zero_fraction"]) == cell["zero_fraction"]
            assert not row["log10_mean"] or float(row["log10_mean"]) == math.log10(cell["mean"])
            assert row["data"] == "data of the old tasks"
    (first, *_), third = mean_importance([fisher_cells(), fisher_cells()]), mean_importance([fisher_cells()])[2]
    assert first["mean"] == 1e-4 and first["log10_mean"] == -4 and third["log10_mean"] is None


def test_slm_9_has_the_tasks_learned_and_published_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(tmp_path / "r", "slm", order="bert_4", tasks=BERT_4, last=64.0, seen=True)
    make_run(tmp_path / "r", "slm", order="cl_text_4", tasks=["b", "a", "c"])
    assert drawn("slm/9", tmp_path / "r", output=tmp_path / "o") == [
        "slm_9.csv", "slm_9.png", "slm_9_2.csv", "slm_9_2.png"
    ]  # fmt: skip
    assert "drawn beside runs over these alone" in capsys.readouterr().out
    rows = data(tmp_path / "o" / "slm_9.csv")
    own = [row for row in rows if row["source"] == str(first)]
    _, matrix = read_matrix(first / "accuracy.csv")
    found = {(row["measure"], row["after"]): float(row["value"]) for row in own}
    wanted = {
        (f"accuracy/{u}", t): matrix[i + 1, k] for i, t in enumerate(BERT_4) for k, u in enumerate(BERT_4[: i + 1])
    }
    wanted |= {("mean over the tasks so far", t): matrix[i + 1, : i + 1].mean() for i, t in enumerate(BERT_4)}
    assert found == pytest.approx(wanted)
    (printed,) = [row for row in rows if not row["seed"]]
    assert (printed["value"], printed["after"], printed["source"]) == ("79.2", "db", "slm/1, read in the paper's text")
    assert all(row["seed"] for row in data(tmp_path / "o" / "slm_9_2.csv"))
    assert drawn("slm/9", output=tmp_path / "alone") == ["slm_9.csv", "slm_9.png"]
    assert [row["value"] for row in data(tmp_path / "alone" / "slm_9.csv")] == ["79.2", "78.8", "79.0", "79.2"]


def test_slm_4_and_10_are_of_each_runs_keys(tmp_path: Path) -> None:
    runs = [keys_of(make_run(tmp_path / "r", "slm", s, tasks=("a", "b")), ("b", "a")) for s in (0, 1)]
    files = drawn("slm/10", tmp_path / "r", output=tmp_path / "o")
    assert files == ["slm_10_seed0.csv", "slm_10_seed0.png", "slm_10_seed1.csv", "slm_10_seed1.png"]
    keys = load_file(runs[0] / "keys.safetensors")
    rows = data(tmp_path / "o" / "slm_10_seed0.csv")
    assert len(rows) == 3 * 4 * 4
    for row in rows[:20]:
        group = int(row["group"]) - 1
        one, other = (keys[row[t]][group, int(row[s]) - 1] for t, s in (("task", "slot"), ("other_task", "other_slot")))
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert float(row["cosine"]) == pytest.approx(cosine, abs=1e-6)
    assert drawn("slm/4", runs[1], output=tmp_path / "o4") == ["slm_4.csv", "slm_4.png"]
    rows = data(tmp_path / "o4" / "slm_4.csv")
    assert [row["task"] for row in rows] == ["a"] * 6 + ["b"] * 6, "in the order learned"
    assert max(abs(float(row[axis])) for row in rows for axis in "xy") == 1.0


def test_slm_4_has_queries_beside_the_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # t-SNE makes other places of other last bits.
    monkeypatch.setattr("cl_runner.report.retrieval.embed", lambda vectors: vectors[:, :2].astype(np.float64))
    run = keys_of(make_run(tmp_path / "r", "slm", tasks=("a", "b")), ("a", "b"))
    assert run_command(["figure", "slm/4", str(run), "--queries", "--output", str(tmp_path / "o")]) == 2
    assert "has no queries of all its tasks. Leave out --queries" in capsys.readouterr().err
    random = np.random.default_rng(1)
    save_file({t: random.normal(size=(5, 3, 4)).astype(np.float32) for t in "ab"}, run / "queries.safetensors")
    assert drawn("slm/4", run, "--queries", output=tmp_path / "o") == ["slm_4.csv", "slm_4.png"]
    rows = data(tmp_path / "o" / "slm_4.csv")
    assert [row["what"] for row in rows] == ["key"] * 12 + ["query"] * 30
    assert [(row["task"], row["slot"], row["group"]) for row in rows[12:16]] == [
        ("a", "1", "1"), ("a", "1", "2"), ("a", "1", "3"), ("a", "2", "1")
    ]  # fmt: skip
    keys, queries = read_run(run).keys, read_run(run).queries
    assert {tuple(read_run(run).keys) for _ in range(20)} == {("a", "b")}, "a file gives its tensors in any order"
    places, texts = embed_both(keys, queries)
    longer = {task: 8 * each for task, each in queries.items()}
    np.testing.assert_allclose(np.concatenate(texts), np.concatenate(embed_both(keys, longer)[1]), atol=1e-6)
    assert [float(rows[0][axis]) for axis in "xy"] == places[0].tolist() and texts[1].shape == (15, 2)
    assert run_command(["figure", "slm/10", str(run), "--queries"]) == 2
    assert "--queries belongs to slm/4" in capsys.readouterr().err


def test_slm_7_has_a_bar_for_each_task_and_the_published_means(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "r", "slm", s, order="bert_4", tasks=BERT_4, last=64.0 + s) for s in (0, 1)]
    assert drawn("slm/7", tmp_path / "r", output=tmp_path / "o") == ["slm_7.csv", "slm_7.png"]
    rows = data(tmp_path / "o" / "slm_7.csv")
    own = [row for row in rows if row["source"] == str(runs[1])]
    assert [row["measure"] for row in own] == [*(f"accuracy/{task}" for task in BERT_4), "mean"]
    assert {row["value"] for row in own} == {"65.0"} and {row["after"] for row in own} == {"db"}
    printed = {row["line"]: row["value"] for row in rows if not row["seed"]}
    assert printed == {"DTKR + Prompt": "54.7", "DTKR + Adapter": "71.2", "DTKR + JARe": "79.2"}
    alone = drawn("slm/7", output=tmp_path / "alone")
    assert len(alone) == 6 and all(name.startswith("slm_7_") for name in alone), "three orders"


def test_piece_1_has_scores_ability_and_published_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "r", "piece_s", order="trace_piece", tasks=TRACE, ability=NUMBERS, last=48.0)
    assert drawn("piece/1", run, output=tmp_path / "o") == ["piece_1.csv", "piece_1.png"]
    assert "beside runs over these" not in capsys.readouterr().out
    rows = data(tmp_path / "o" / "piece_1.csv")
    own = [row for row in rows if row["seed"]]
    assert [float(row["value"]) for row in own if row["measure"] == "humaneval/pass@1"] == NUMBERS["humaneval/pass@1"]
    so_far = [float(row["value"]) for row in own if row["measure"].startswith("mean")]
    assert so_far == [80.0] * 7 + [48.0] and own[-1]["unit"] == "%" and own[8]["after"] == "start"
    printed = {(row["line"], row["measure"], row["after"]): row for row in rows if not row["seed"]}
    assert len(printed) == 33 and printed["untouched model", "ability/humaneval/pass@1", "start"]["value"] == "32.0"
    assert printed["F 0.1 %", "ability/humaneval/pass@1", "Py150"]["value"] == "29.88"
    drawn("piece/1", run, "--ability", "held_text/loss", output=tmp_path / "loss")
    rows = data(tmp_path / "loss" / "piece_1.csv")
    loss = [float(row["value"]) for row in rows if row["measure"] == "held_text/loss"]
    assert loss == NUMBERS["held_text/loss"] and not any("humaneval" in row["measure"] for row in rows)
    assert run_command(["figure", "piece/1", str(run), "--ability", "held_text/los"]) == 2
    assert "Nearest: 'held_text/loss'. Type: --ability held_text/loss" in capsys.readouterr().err
    bare = make_run(tmp_path / "bare", "piece_s", ability={"held_text/loss": [1, 2, 3, 4]})
    capsys.readouterr()
    drawn("piece/1", bare, output=tmp_path / "a")
    said = capsys.readouterr().out
    assert "1 of 1 runs over fdu_mtl did not measure humaneval/pass@1" in said and "probe=humaneval" in said
    assert "they measured held_text/loss. Type: --ability held_text/loss" in said


def test_piece_3_and_5_are_what_masks_json_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [masks_of(make_run(tmp_path / "r", "piece_s", seed)) for seed in (0, 1)]
    alone = masks_of(make_run(tmp_path / "r", "piece_s", 2), MASKS[:1])
    assert drawn("piece/5", tmp_path / "r", output=tmp_path / "o") == ["piece_5.csv", "piece_5.png"]
    assert f"left out {alone}: it selected weights for 1 task alone" in capsys.readouterr().err
    rows = data(tmp_path / "o" / "piece_5.csv")
    assert [(row["task"], row["earlier_task"], row["jaccard"]) for row in rows] == [("c", "b", "0.25")] * 2
    assert {row["source"] for row in rows} == {str(run) for run in runs}
    assert float(rows[0]["jaccard_of_random"]) == pytest.approx(0.05 / (2 - 0.05))
    shutil.rmtree(alone)
    assert drawn("piece/3", tmp_path / "r", output=tmp_path / "o3") == ["piece_3.csv", "piece_3.png"]
    rows = [row for row in data(tmp_path / "o3" / "piece_3.csv") if row["source"] == str(runs[0])]
    found = {(row["task"], row["layer"], row["module"]): (int(row["selected"]), int(row["parameters"])) for row in rows}
    wanted = {(m["task"], c["layer"], c["module"]): (c["selected"], c["parameters"]) for m in MASKS for c in m["cells"]}
    assert found == wanted and all(float(row["selected, %"]) == float(row["selected"]) for row in rows)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("pe/4", "fisher.json", '{"after": "c", "layers": [{"layer": "x"}]}'),
        ("pe/4", "fisher.json", '{"after": "c", "layers": []}'),
        ("pe/4", "fisher.json", '{"after": "c"'),
        ("slm/10", "keys.safetensors", "no keys"),
        ("piece/3", "masks.json", '{"tasks": [{"task": "b", "cells": 3, "overlap": {}}]}'),
        ("piece/1", "ability.csv", "after,a/b\nstart,1\n"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, file: str, content: str
) -> None:
    method = {"pe/4": "pe_main", "slm/10": "slm"}.get(name, "piece_s")
    run = make_run(tmp_path / "r", method)
    (run / file).write_text(content)
    assert run_command(["figure", name, str(tmp_path / "r"), "--output", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert f"left out {run}" in error and file in error and error.count("cl_runner: ") == 1, error
    assert not (tmp_path / "o").exists()


def test_keys_that_cannot_be_drawn_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = keys_of(make_run(tmp_path / "r", "slm"), ("base",), slots=0)
    assert run_command(["figure", "slm/4", str(run)]) == 2
    assert "there are fewer than three keys" in capsys.readouterr().err
    save_file({"a": np.ones((2, 2, 4)), "b": np.ones((3, 2, 4))}, run / "keys.safetensors")
    assert run_command(["figure", "slm/4", str(run)]) == 2
    assert "keys.safetensors cannot be read" in capsys.readouterr().err


def test_what_is_missing_is_said_with_the_line_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "r", "seq_ft")
    for typed, said in (
        (["pe/4", str(run)], "none of 1 runs has a method that pe/4 has a line of; --all draws other methods"),
        (["pe/4", str(run), "--all"], "none of 1 runs has what pe/4 shows: importance"),
        (["slm/4", "--output", str(tmp_path)], "slm/4 prints no numbers, and is drawn of runs alone"),
        (["pe/3", str(tmp_path / "r" / "nothing")], "there is no folder"),
    ):
        assert run_command(["figure", *typed]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("cl_runner: ") == 1
        assert "there is no folder" in said or "\npython -m cl_runner -m experiment=" in error
    exact = as_published(make_run(tmp_path / "x", "slm", order="bert_4", tasks=BERT_4), "slm/1", "SLM", "4")
    assert run_command(["figure", "slm/9", str(exact), "--missing", "--data-root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "task_order=bert_5,bert_6,bert_7" in shown and "not planned: " in shown and "bert_4" not in shown


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["pe/1"], "Nearest: 'pe/3'. Type: python -m cl_runner figure pe/3"),
        (["slm"], "names a paper, whose figures are: slm/4"),
        (["figure_9"], "there is no figure 'figure_9'"),
        (["pe/figure3"], "Type: python -m cl_runner figure pe/3"),
        (["o_lora/1"], "See all: python -m cl_runner figure"),
        (["pe/3", "--format", "jpg"], "is none of png, svg, pdf"),
        (["pe/3", "--format", "pngs"], "Nearest: --format png"),
        (["slm/9", "--task", "a"], "--task belongs to pe/3"),
        (["slm/9", "--all", "--format", "png"], "name their folders behind slm/9"),
        (["pe/3", "--ability", "a/b"], "--ability belongs to piece/1"),
        (["--missing"], "Type: python -m cl_runner figure pe/3"),
        (["pe/3", "--ouput", "x"], "See: python -m cl_runner figure --help"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], typed: list[str], said: str) -> None:
    assert run_command(["figure", *typed]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("cl_runner: ") and error.count("cl_runner: ") == 1


def test_a_folder_s_name_before_the_figure_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["figure", str(tmp_path)]) == 2
    assert f"Type: python -m cl_runner figure pe/3 {tmp_path}" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    run = make_run(tmp_path / "r", "ewc")
    assert run_command(["figure", "pe/3", str(run), "--output", str(tmp_path / "file")]) == 2
    assert f"cannot write {tmp_path / 'file'}" in capsys.readouterr().err


def test_nothing_in_a_picture_lies_over_another_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Legend, axes, titles and caption of panels keep apart, with many published ends as well."""
    seen: list[Path] = []

    def keep(canvas: Canvas, path: Path, **_: object) -> None:
        canvas.draw_without_rendering()
        legend = canvas.legends[0].get_window_extent()
        assert canvas._supxlabel is not None
        below = canvas._supxlabel.get_window_extent()
        for axes in canvas.axes:
            own = axes.get_tightbbox()
            assert own is not None and not own.overlaps(legend) and not own.overlaps(below)
        first, second = (axes.get_tightbbox() for axes in canvas.axes)
        assert first is not None and second is not None and not first.overlaps(second)
        assert below.x1 <= canvas.bbox.x1
        seen.append(path)

    monkeypatch.setattr(Canvas, "savefig", keep)
    lines = {f"a method with a name {k}": np.full((1, 8), 10.0 * k) for k in range(6)}
    ends = {f"Published {k}": {7: 3.0 * k} for k in range(8)}
    shown = [Panel(title, TRACE, "score, %", lines, "", ends, {"untouched": 32.0}) for title in ("a", "b")]
    score_panels(shown, tmp_path / "x.png", "a caption that is long enough to be wrapped into several lines " * 5)
    assert seen == [tmp_path / "x.png"]
