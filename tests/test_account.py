"""What is said of the data before a run trains: every row is used, or left out for a reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from run_folders import make_run
from sources import counts, definition, order

from cl_runner.data.account import TaskAccount, said
from cl_runner.data.task import build_tasks, fingerprint
from cl_runner.report.account import data_tables
from cl_runner.report.folder import read_run


def lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def account(folder: Path, wanted: dict[str, Any], **changes: Any) -> TaskAccount:
    (task,) = build_tasks(
        order([{"name": "a"}], wanted), {"own": definition(path=f"{folder}/{{split}}.jsonl", **changes)}
    )
    assert task.account is not None
    for split in task.account.splits.values():
        assert split.rows == split.used + sum(split.left_out.values())
    assert fingerprint(task) == fingerprint(dataclasses.replace(task, account=None)), (
        "an account is no part of the data"
    )
    return task.account


def test_every_row_is_used_or_left_out_for_a_reason(tmp_path: Path) -> None:
    train = [{"text": f"text {i}", "label": i % 2} for i in range(20)]
    train += [{"text": "text 1", "label": 1}, {"text": "text 2", "label": 1}]  # said again, and said otherwise
    train += [
        {"text": " ", "label": 0},
        {"text": None, "label": 1},
        {"text": "x", "label": 2},
        {"text": "x", "label": None},
    ]
    lines(tmp_path / "train.jsonl", train)
    lines(tmp_path / "test.jsonl", [{"text": f"text {i}", "label": 0} for i in range(16, 24)])
    labels = {"0": "bad", "1": "good", "2": None, "": None, "3": "fair"}
    found = account(tmp_path, counts(train=None, validation=0, test=6), labels=labels)
    assert list(found.splits) == ["train", "test"]
    learnt, tested = found.splits["train"], found.splits["test"]
    assert learnt.files == (str(tmp_path / "train.jsonl"),)
    assert (learnt.rows, learnt.used) == (26, 22)
    assert learnt.left_out == {"no text": 2, "dropped label": 1, "no label": 1}
    assert learnt.labels == {"bad": 10, "good": 12, "fair": 0}
    assert learnt.notes == {"repeated texts": 2, "repeated texts with another answer": 1}
    assert (tested.rows, tested.used, tested.left_out) == (8, 6, {"not drawn": 2})
    seen = found.notes["texts of test that are also in train"]
    assert 2 <= seen <= 4
    assert found.classes == {"labels in train alone": ["good"], "labels without an example": ["fair"]}
    assert said("a", found) == [
        "data of a: 22 of 26 rows train, 6 of 8 rows test; bad 10 + 6, good 12 + 0, fair 0 + 0",
        "data of a, train: 4 of 26 rows left out: no text (2), dropped label (1), no label (1)",
        "data of a, train: repeated texts: 2",
        "data of a, train: repeated texts with another answer: 1",
        f"data of a: texts of test that are also in train: {seen}",
        "data of a: labels in train alone: 'good'",
        "data of a: labels without an example: 'fair'",
    ]


def test_splits_that_share_a_file_account_for_each_other(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", [{"text": f"text {i}", "label": i % 2} for i in range(20)])
    splits = dict.fromkeys(("train", "validation", "test"), "train")
    found = account(tmp_path, counts(train=5, validation=4, test=3), splits=splits)
    assert {split: one.left_out for split, one in found.splits.items()} == {
        "train": {"in another split": 7, "not drawn": 8},
        "validation": {"in another split": 8, "not drawn": 8},
        "test": {"in another split": 9, "not drawn": 8},
    }
    (line,) = said("a", found)
    assert line.startswith("data of a: 5 of 20 rows train, 4 of 20 rows validation, 3 of 20 rows test; bad ")


def test_rows_of_a_sorted_file_are_drawn(tmp_path: Path) -> None:
    """Not its first rows; the same in every format; a smaller draw is a part of a larger one."""
    import pyarrow.parquet

    records = [{"text": f"text {i}", "label": int(i >= 100)} for i in range(200)]
    lines(tmp_path / "test.jsonl", records)
    (tmp_path / "test.json").write_text(json.dumps(records))
    (tmp_path / "test.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in records))
    for part in range(2):
        table = pyarrow.Table.from_pylist(records[100 * part : 100 * part + 100])
        pyarrow.parquet.write_table(table, tmp_path / f"test-{part:05d}-of-00002.parquet", row_group_size=30)
    drawn = {}
    for name, rows, seed in (
        ("test.jsonl", 40, 0), ("test.json", 40, 0), ("test.csv", 40, 0), ("*.parquet", 40, 0), ("test.csv", 10, 0),
        ("test.csv", 40, 1), ("test.csv", 200, 0),
    ):  # fmt: skip
        made = {"own": definition(path=str(tmp_path / name), max_rows=rows)}
        (task,) = build_tasks(order([{"name": "a"}], counts(train=0), data_seed=seed), made)
        drawn[name, rows, seed] = [example.prompt for example in task.test]
        assert task.account is not None
        assert task.account.splits["test"].left_out == ({"over max_rows": 200 - rows} if rows < 200 else {})
        assert task.account.splits["test"].rows == 200
    first = drawn["test.jsonl", 40, 0]
    assert len(set(first)) == 40 and 10 < sum(int(text.split()[1]) >= 100 for text in first) < 30
    assert all(drawn[name, 40, 0] == first for name in ("test.json", "test.csv", "*.parquet"))
    assert set(drawn["test.csv", 10, 0]) < set(first) and drawn["test.csv", 40, 1] != first
    assert drawn["test.csv", 200, 0] == [record["text"] for record in records]


def test_cells_in_quotes_and_texts_of_several_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"one"\t0\ntwo\t1\n')
    (tmp_path / "a.csv").write_text('text,label\n"one\n two",0\ntwo,1\n')
    notes = []
    for name in ("a.tsv", "a.csv"):
        (task,) = build_tasks(order([{"name": "a"}], counts(train=0)), {"own": definition(path=str(tmp_path / name))})
        assert task.account is not None
        notes.append(task.account.splits["test"].notes)
    assert notes == [{"rows with a cell in quotes, which are read as characters": 1}, {"rows of several lines": 1}]


def test_many_labels_are_not_counted_one_by_one_on_the_console(tmp_path: Path) -> None:
    lines(tmp_path / "test.jsonl", [{"text": f"text {i}", "label": i % 9} for i in range(30)])
    labels = {str(number): f"class {number}" for number in range(9)}
    assert said("a", account(tmp_path, counts(train=0), labels=labels)) == [
        "data of a: 30 test; 9 labels, each 3 to 4 in test"
    ]


def test_the_report_shows_it(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", [{"text": f"text {i % 8}", "label": i % 2} for i in range(10)])
    lines(tmp_path / "test.jsonl", [{"text": "x", "label": 0}, {"text": "", "label": 1}])
    found = account(tmp_path, counts())
    folder = make_run(tmp_path)
    assert data_tables(read_run(folder)) == [], "a folder of an earlier version"
    (folder / "data.json").write_text(json.dumps({"labels": [], "tasks": {"a": found.content()}}))
    rows, odd = data_tables(read_run(folder))
    name = tmp_path.name
    assert rows.rows == [
        ["a", "train", f"{name}/train.jsonl", "10", "10", "", "bad 5, good 5"],
        ["a", "test", f"{name}/test.jsonl", "2", "1", "no text 1", "bad 1, good 0"],
    ]
    assert odd.rows == [["a", "train", "repeated texts", "2"], ["a", "all", "labels in train alone", "good"]]
