"""What reports say of retrieval, from run folders that are made up here, with numbers one can check by hand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import assert_self_contained, make_run, words
from safetensors.numpy import save_file
from tiny import TINY

from cl_runner.compose import compose
from cl_runner.digests import replace_file
from cl_runner.record import write_summary
from cl_runner.report import command
from cl_runner.report.folder import read_run
from cl_runner.report.grouping import group_runs
from cl_runner.report.page import write_run_report
from cl_runner.report.publish import published
from cl_runner.report.retrieval import cosines, embed, keys_map, task_colours, unit_range
from cl_runner.report.tables import all_tables, exact_csv, long_table, retrieval_tables
from cl_runner.tracking.clock import Clock

ACCURACY = [{"base": 100.0}, {"base": 90.0, "b": 60.0}, {"base": 80.0, "b": 55.5, "c": 45.5}]
TIMING = {
    task: dict(
        zip(
            ("encoder_ms", "retrieval_ms", "answer_ms", "encoder_share_percent", "retrieval_share_percent"),
            numbers,
            strict=True,
        )
    )
    for task, numbers in {"base": (4.5, 6.0, 24.0, 15.0, 20.0), "b": (7.0, 8.0, 12.0, 35.0, 40.0)}.items()
}


def retrieving(folder: Path, shift: float = 0.0, groups: int = 3, slots: int = 4) -> Path:
    """Make a folder of `make_run` one of a run that retrieves; the last accuracies raised by `shift`."""
    summary = json.loads((folder / "summary.json").read_text())
    for task, found in zip(summary["tasks_detail"], ACCURACY, strict=True):
        task["phases"] |= {"queries": 2.0, "keys": 0.25}
        task["stored"] = 50
        served = {n: {"served_percent": v + shift + 5, "own_weight_percent": v + shift - 5} for n, v in found.items()}
        noted = {"keys": 12, "keys_unmoved": 1, "head_rows": 0}
        noted["cut_by_encoder"] = {"training": {"texts": 2, "tokens_read": 9}, "scored": {"texts": 3, "tokens_read": 9}}
        accuracy = {name: value + shift for name, value in found.items()}
        task["method"] = {"slm": {"retrieval_accuracy": accuracy, "served": served, **noted}}
    summary["tasks_detail"][-1]["method"]["slm"]["timing"] = TIMING
    summary["metrics"]["retrieval_accuracy/slm"] = (80 + 55.5 + 45.5) / 3 + shift
    summary["metrics"]["served_retrieval/majority"] = (80 + 55.5 + 45.5) / 3 + shift + 5
    summary["metrics"]["served_retrieval/own_weight"] = (80 + 55.5 + 45.5) / 3 + shift - 5
    (folder / "summary.json").write_text(json.dumps(summary))
    write_keys(folder, ("base", "b", "c"), groups, slots)
    return folder


def write_keys(folder: Path, tasks: tuple[str, ...], groups: int, slots: int) -> None:
    random = np.random.default_rng(0)
    keys = {task: random.normal(size=(groups, slots, 8)).astype(np.float32) for task in tasks}
    save_file(keys, folder / "keys.safetensors")


def cells(text: str) -> list[list[str]]:
    """The rows of all tables of a page."""
    return [re.findall(r">([^<>]*)</t[dh]>", row) for row in re.findall("<tr>.*?</tr>", text)]


def test_a_run_that_retrieves_has_its_tables_and_pictures(tmp_path: Path) -> None:
    folder = retrieving(make_run(tmp_path, "seq_ft"))
    page = write_run_report(folder)
    assert_self_contained(page)
    text = words(page)
    rows = cells(text)
    start = rows.index(["after", "base", "b", "c", "mean"])
    assert rows[start + 1 : start + 4] == [
        ["base", "105.0 (95.0)", "", "", "105.0 (95.0)"],
        ["b", "95.0 (85.0)", "65.0 (55.0)", "", "80.0 (70.0)"],
        ["c", "85.0 (75.0)", "60.5 (50.5)", "50.5 (40.5)", "65.3 (55.3)"],
    ]
    assert rows[start + 5 : start + 8] == [[task, "1 of 12", "0", "2", "3"] for task in ("base", "b", "c")]
    start = rows.index(["after", "base", "b", "c", "mean"], start + 1)
    assert rows[start + 1 : start + 4] == [
        ["base", "100.0", "", "", "100.0"],
        ["b", "90.0", "60.0", "", "75.0"],
        ["c", "80.0", "55.5", "45.5", "60.3"],
    ]
    start = next(i for i, row in enumerate(rows) if row[1:3] == ["queries, s", "keys, s"])
    # Trained 1.5, 2.5 and 3.5 s; 4000 of 4000 bytes stored, as `make_run` has it; the last task was not timed.
    assert rows[start + 1 : start + 5] == [
        ["base", "2.00", "0.25", "1.50", "50", "3.91 KiB", "100", "4.5", "6.0", "24.0", "15.0", "20.0"],
        ["b", "2.00", "0.25", "2.50", "50", "3.91 KiB", "100", "7.0", "8.0", "12.0", "35.0", "40.0"],
        ["c", "2.00", "0.25", "3.50", "50", "3.91 KiB", "100", "-", "-", "-", "-", "-"],
        ["mean", "2.00", "0.25", "2.50", "50", "3.91 KiB", "100", "5.8", "7.0", "18.0", "25.0", "30.0"],
    ]
    assert "t-SNE of all 36 key vectors" in text and "60.33 %" in text
    assert {path.name for path in (folder / "plots").glob("keys_*")} == {"keys_tsne.png", "keys_similarity.png"}
    before = page.read_bytes()
    assert write_run_report(folder).read_bytes() == before, "the same folder, the same page"


def test_a_run_without_retrieval_has_none_of_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seq_ft")
    assert "Retrieval:" not in words(write_run_report(folder))
    assert not list((folder / "plots").glob("keys_*"))


def test_an_unfinished_run_shows_the_keys_that_are_there(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seq_ft", done=1, marker="")
    write_keys(folder, ("base",), 1, 4)
    text = words(write_run_report(folder))
    assert "t-SNE of all 4 key vectors" in text and "how alike" in text
    assert "Retrieval: votes" not in text


def test_two_keys_are_too_few_for_a_map(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seq_ft", done=1, marker="")
    write_keys(folder, ("base",), 1, 2)
    text = words(write_run_report(folder))
    assert "t-SNE" not in text and (folder / "plots" / "keys_similarity.png").exists()


def test_without_scikit_learn_the_page_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    folder = retrieving(make_run(tmp_path, "seq_ft"))
    text = words(write_run_report(folder))
    assert "scikit-learn. Type: pip install 'cl-runner[retrieval]'" in text
    assert {path.name for path in (folder / "plots").glob("keys_*")} == {"keys_similarity.png"}


def test_damaged_keys_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seq_ft")
    (folder / "keys.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"keys.safetensors cannot be read"):
        write_run_report(folder)


def test_cosines_by_hand() -> None:
    first = np.array([[[3.0, 4.0]], [[1.0, 0.0]]])  # two groups, one slot
    second = np.array([[[4.0, 3.0], [-3.0, -4.0]], [[0.0, 2.0], [0.0, 0.0]]])
    found = cosines([first, second])
    np.testing.assert_allclose(found[0], [[1, 0.96, -1], [0.96, 1, -0.96], [-1, -0.96, 1]])
    np.testing.assert_allclose(found[1], [[1, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_values_are_scaled_by_the_extremes_of_all() -> None:
    np.testing.assert_allclose(unit_range(np.array([[1.0, 2.0], [3.0, 5.0]])), [[-1, -0.5], [0, 1]])
    np.testing.assert_array_equal(unit_range(np.full((2, 2), 7.0)), np.zeros((2, 2)))


def test_the_map_keeps_neighbours_together() -> None:
    random = np.random.default_rng(1)
    centres = 10 * random.normal(size=(3, 1, 8))
    places = embed((centres + 0.1 * random.normal(size=(3, 12, 8))).reshape(-1, 8)).reshape(3, 12, 2)
    middles = places.mean(axis=1)
    within = np.linalg.norm(places - middles[:, None], axis=-1).max()
    apart = min(np.linalg.norm(middles[i] - middles[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert apart > 2 * within
    assert (places.min(), places.max()) == (-1, 1)
    assert embed(random.normal(size=(3, 1))).shape == (3, 2), "three keys of one number"


def test_every_key_gets_its_place_on_the_map(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="8 keys, 9 places"):
        keys_map(["a"], [(2, 4)], np.zeros((9, 2)), tmp_path / "map.png")


@pytest.mark.parametrize("count", [1, 8, 9, 20, 24])
def test_tasks_have_colours_of_their_own(count: int) -> None:
    assert len({str(colour) for colour in task_colours(count)}) == count


def test_runs_are_joined_by_task(tmp_path: Path) -> None:
    folders = [retrieving(make_run(tmp_path, "seq_ft", seed), shift) for seed, shift in ((0, 0.0), (1, 4.0))]
    groups = group_runs([read_run(folder) for folder in [*folders, make_run(tmp_path, "ewc")]])
    served, weight, table = retrieval_tables(groups)
    assert served.title == "Texts served rightly by task, %" and served.rows[0][3:7] == [
        "87.00 ± 2.83",
        "62.50 ± 2.83",
        "52.50 ± 2.83",
        "67.33 ± 2.83",
    ]
    assert weight.title == "Weight of a text's own task by task, %" and weight.rows[0][3] == "77.00 ± 2.83"
    assert table.title == "Retrieval accuracy by task, %"
    assert table.header == ["method", "old data", "task told", "base", "b", "c", "mean", "95 % interval", "alike"]
    (row,) = table.rows
    assert row[:7] == ["seq_ft", "", "", "82.00 ± 2.83", "57.50 ± 2.83", "47.50 ± 2.83", "62.33 ± 2.83"]
    assert row[7:] == ["60.33 to 64.33", "-"] and any("not over test examples" in note for note in table.notes)
    assert any("more than half of the keys" in note for note in table.notes)
    assert table in all_tables(groups)
    shown = long_table(groups)
    column = shown.header.index("retrieval_accuracy/slm")
    assert [row[column] for row in shown.rows] == ["62.33 ± 2.83", "-"]
    assert "retrieval_accuracy/slm mean" in exact_csv(groups).splitlines()[0]
    results = published([run for group in groups for run in group.runs], tmp_path / "published", "python -m cl_runner")
    assert "### Retrieval accuracy by task" in results[1].read_text(encoding="utf-8")
    entries = {(e["method"], e["seed"]): e for e in json.loads(results[0].read_text(encoding="utf-8"))["runs"]}
    assert entries["seq_ft", 0]["retrieval_accuracy"] == ACCURACY[-1]
    assert entries["ewc", 0]["retrieval_accuracy"] == {}


def test_runs_without_retrieval_have_no_such_table(tmp_path: Path) -> None:
    assert retrieval_tables(group_runs([read_run(make_run(tmp_path, "seq_ft"))])) == []


def test_the_command_tabulates_retrieval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retrieving(make_run(tmp_path, "seq_ft"))
    metric = ["--columns", "method", "--metric", "retrieval_accuracy/slm", "--format", "csv"]
    assert command.main([str(tmp_path), *metric]) == 0
    assert capsys.readouterr().out == "task_order,seq_ft\nfdu_mtl,60.33\n"


def test_the_summary_has_the_numbers_that_the_last_task_noted(tmp_path: Path) -> None:
    request = compose([*TINY, f"root={tmp_path}"])
    request.folder.mkdir(parents=True)
    replace_file(request.folder / "metrics.jsonl", "")

    def detail(noted: dict[str, Any]) -> dict[str, Any]:
        return {"name": "x", "measured_on_new_data": False, "method": noted}

    noted = [{"slm": {"metrics": {"retrieval_accuracy/slm": percent}}} for percent in (90.0, 30.0)]
    names = ["base", "kettles"]
    counts, scored_by = dict.fromkeys(names, 10), {name: ["accuracy"] for name in names}
    rows = [[50.0, 50.0], [80.0, 50.0], [70.0, 60.0]]
    (request.folder / "predictions").mkdir()
    for number in range(3):
        answers = [{"task": name, "answer": "", "prediction": "", "score": 50.0} for name in names for _ in range(10)]
        text = "".join(json.dumps(answer) + "\n" for answer in answers)
        (request.folder / "predictions" / f"{number:02d}_x.jsonl").write_text(text)
    for details, expected in (([detail(n) for n in noted], {"retrieval_accuracy/slm": 30.0}), ([detail({})] * 2, {})):
        found = write_summary(request, counts, scored_by, rows, details, Clock(), "", [])
        own = {name: value for name, value in found["metrics"].items() if name.startswith("retrieval")}
        assert own == expected
        assert found["metrics"]["average_accuracy"] == 65
        assert "retrieval_accuracy/slm" not in found["intervals"]
