"""Tasks from files and the hub: drawing, formats, and what is said of every mistake."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from sources import counts, definition, order

from cl_runner.compose import compose
from cl_runner.config import TaskDefinition
from cl_runner.data.example import Example
from cl_runner.data.task import Task, build_tasks, fingerprint, label_union, source_files


def rows(count: int, prefix: str = "") -> list[dict[str, Any]]:
    """Every third row is good."""
    return [{"text": f"{prefix}text {i}", "label": int(i % 3 == 0)} for i in range(count)]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    form = path.name.removesuffix(".gz").rpartition(".")[2]
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return
    with (
        gzip.open(path, "wt", encoding="utf-8", newline="")
        if path.suffix == ".gz"
        else path.open("w", encoding="utf-8", newline="") as file
    ):
        if form in ("csv", "tsv"):
            writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
        else:
            file.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two domains, `books` with 30 + 12 rows and `music` with 24 + 12."""
    for domain, size in (("books", 30), ("music", 24)):
        write(tmp_path / domain / "train.jsonl", rows(size, f"{domain} "))
        write(tmp_path / domain / "test.jsonl", rows(12, f"{domain} test "))
    return tmp_path


def own(folder: Path, **changes: Any) -> dict[str, TaskDefinition]:
    return {"own": definition(path=f"{folder}/{{domain}}/{{split}}.jsonl", **changes)}


def prompts(examples: tuple[Example, ...]) -> list[str]:
    return [example.prompt for example in examples]


# Reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl", "json", "csv.gz", "tsv.gz", "jsonl.gz", "json.gz"])
def test_formats(tmp_path: Path, form: str) -> None:
    texts = ['He said "no", twice', "two\nlines", "Größe", " tab\there "]
    write(tmp_path / f"shop_test.{form}", [{"other": 1, "text": t, "label": i % 2} for i, t in enumerate(texts)])
    quoting = "double" if form.startswith("tsv") else None  # as the module csv writes it
    made = {"own": definition(path=f"{tmp_path}/{{domain}}_{{split}}.{form}", quoting=quoting)}
    (task,) = build_tasks(order([{"name": "shop"}], counts(train=0)), made)
    assert prompts(task.test) == [text.strip() for text in texts]
    assert [e.answer for e in task.test] == ["bad", "good", "bad", "good"]
    assert {e.domain for e in task.test} == {"shop"}
    assert task.labels == ("bad", "good")
    assert source_files(order([{"name": "shop"}], counts(train=0)), made) == [tmp_path / f"shop_test.{form}"]


def test_columns_are_joined_and_missing_parts_skipped(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"title": "Fine", "body": "Read it.", "label": 1.0},
        {"title": None, "body": "Dull.", "label": 0.0},
        {"title": float("nan"), "body": "", "label": 0.0},
        {"title": None, "body": "No title.", "label": 2.0},
    ]
    write(tmp_path / "a.jsonl", records)
    labels = {"0.0": "bad", "1.0": "good", "2.0": None}
    made = definition(path=f"{tmp_path}/{{domain}}.jsonl", text=["title", "body"], labels=labels)
    (task,) = build_tasks(order([{"name": "a"}], counts(train=0)), {"own": made})
    # The third row has no text, the fourth a label that is dropped.
    wanted = (Example("Fine Read it.", "good", "a", task=0, row=0), Example("Dull.", "bad", "a", task=0, row=1))
    assert task.test == wanted


def test_rows_of_an_amazon_file_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "amazon_2018" / "Kindle_Store.json.gz"
    records = [
        {"overall": float(i % 5 + 1), "summary": f"title {i}", "reviewText": f"text {i}", "verified": True}
        for i in range(100)
    ]
    write(path, records)
    request = compose(
        [
            "task_order=amazon_1",
            f"data_root={tmp_path}",
            "task_order.tasks=[{name: Kindle_Store}]",
            "task_order.base={train: 50, validation: 20, test: 30}",
            "task.amazon_reviews.max_rows=100",
        ]
    )
    (task,) = build_tasks(request.config.task_order, request.config.task)
    for split, size in ((task.train, 10), (task.validation, 4), (task.test, 6)):
        assert Counter(e.answer for e in split) == {f"{i} star{'s' if i > 1 else ''}": size for i in range(1, 6)}
    used = prompts(task.train) + prompts(task.validation) + prompts(task.test)
    assert sorted(used) == sorted(f"title {i} text {i}" for i in range(100))


# Drawing ----------------------------------------------------------------------------------------------------


def test_splits_of_one_source_do_not_overlap(folder: Path) -> None:
    (task,) = build_tasks(order([{"name": "books"}], counts(train=None, validation=10, test=5)), own(folder))
    assert (len(task.train), len(task.validation), len(task.test)) == (20, 10, 5)
    assert sorted(prompts(task.train) + prompts(task.validation)) == sorted(r["text"] for r in rows(30, "books "))
    assert all(prompt.startswith("books test ") for prompt in prompts(task.test))


def test_domains_and_labels_are_spread_evenly(folder: Path) -> None:
    steps = [{"name": "base", "domains": ["books", "music"]}]
    (task,) = build_tasks(order(steps, counts(train=15, test=6)), own(folder, balance=True))
    assert Counter(e.domain for e in task.train) == {"books": 8, "music": 7}
    # Books draw 4 + 4, music 4 + 3: the label that gets one more follows on where books stopped.
    assert Counter(e.answer for e in task.train) == {"bad": 8, "good": 7}
    # Three each: books 2 bad and 1 good, music 1 bad and 2 good.
    assert Counter((e.domain, e.answer) for e in task.test) == {
        ("books", "bad"): 2,
        ("books", "good"): 1,
        ("music", "bad"): 1,
        ("music", "good"): 2,
    }


def contents(examples: Sequence[Example]) -> list[Any]:
    return [example.content() for example in examples]


def test_draws_depend_on_seed_task_and_domain_only(folder: Path) -> None:
    both = [{"name": "books"}, {"name": "music"}]
    wanted = counts(train=10, validation=5, test=5)
    books, music = build_tasks(order(both, wanted), own(folder))
    again_music, again_books = build_tasks(order(both[::-1], wanted), own(folder))
    assert contents(books.train) == contents(again_books.train) and contents(music.test) == contents(again_music.test)
    assert {e.task for e in books.train} == {0} and {e.task for e in again_books.train} == {1}
    assert fingerprint(books) == fingerprint(build_tasks(order(both, wanted), own(folder))[0])
    other = build_tasks(order(both, wanted, data_seed=1), own(folder))[0]
    assert set(other.train) != set(books.train)
    assert fingerprint(other) != fingerprint(books)
    # Fewer test examples leave the others where they are.
    assert build_tasks(order(both, counts(10, 5, 4)), own(folder))[0].test == books.test[:4]


def test_draw_is_the_same_on_every_machine(folder: Path) -> None:
    (task,) = build_tasks(order([{"name": "books"}], counts(train=3, test=2)), own(folder))
    # Locked: another draw would change what every published result was measured on.
    assert prompts(task.train) == ["books text 16", "books text 28", "books text 29"]


def test_labels_of_all_tasks_in_order_of_appearance() -> None:
    alike: dict[str, Any] = {"train": (), "validation": (), "test": (), "metrics": {}, "max_new_tokens": 1}
    tasks = [Task(index=0, name="a", labels=("x", "y"), **alike), Task(index=1, name="b", labels=("z", "x"), **alike)]
    assert label_union(tasks) == ("x", "y", "z")


# Mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "base", "changes", "message"),
    [
        ([], counts(), {}, r"no tasks. Choose one: task_order=reviews"),
        ([{"name": "books"}] * 2, counts(), {}, r"two tasks named 'books'.*books_2"),
        ([{"name": "a", "domains": ["books", "books"]}], counts(), {}, r"lists the domain 'books' twice"),
        ([{"name": "books", "task": "owm"}], counts(), {}, r"'owm', which is not loaded.*Nearest: 'own'"),
        (
            [{"name": "book"}],
            counts(),
            {},
            r"no 'book'. Nearest: 'books'. Set data_root=FOLDER, or CL_RUNNER",
        ),
        (
            [{"name": "books"}],
            counts(),
            {"text": ["txt"]},
            r"no column 'txt'; it has: text, label. Nearest: 'text'",
        ),
        ([{"name": "books"}], counts(), {"label": "y"}, r"no column 'y'.*Type: task.own.label=COLUMN"),
        ([{"name": "books"}], counts(), {"text": ["label"]}, r"row 1 of .*holds 1 \(int\), not text"),
        (
            [{"name": "books"}],
            counts(),
            {"labels": {"1": "good"}},
            r"row 2 of .*test.jsonl has the label '0'.*known: '1'. Add under task.own.labels: '0': NAME",
        ),
        ([{"name": "books"}], counts(), {"labels": {"0": None, "1": None}}, r"task.own has no labels"),
        ([{"name": "books"}], counts(), {"labels": {"0": None, "1": None, "2": "x"}}, r"none of the 12 rows"),
        (
            [{"name": "books"}],
            counts(train=31),
            {},
            r"base.train=31 needs 31 examples of domain 'books'.*has 30 left. Type: \S+base.train=30$",
        ),
        (
            [{"name": "base", "domains": ["books", "music"]}],
            counts(train=40),
            {"balance": True, "max_rows": 60},
            # Music has 8 good rows of the 10 asked for; 8 x 2 labels x 2 domains can be had.
            r"10 examples with the label 'good' of domain 'music'.*has 8 left. "
            r"Type: task_order.base.train=32, or task.own.balance=false, or more than task.own.max_rows=60$",
        ),
        (
            [{"name": "books"}],
            counts(train=10, validation=None),
            {},
            r"validation and train of task 'books' share .*Say how many: task_order.base.validation=100",
        ),
        ([{"name": "books"}], counts(None, 30, 1), {}, r"nothing is left in .*Type: task_order.base.train=0"),
        (
            [{"name": "books"}],
            counts(validation=5),
            {"splits": {"train": "train", "validation": None, "test": "test"}},
            r"no validation split, but task_order.base.validation asks for 5 of it",
        ),
        (
            [{"name": "books"}],
            counts(),
            {"label_noise": 0.1},
            r"label_noise=0.1: .* generated benchmark only.*source=files. Type: task.own.label_noise=0$",
        ),
        (
            [{"name": "books"}],
            counts(),
            {"grammar": "plain"},
            r"grammar says something of source=generated alone, .*source=files. Type: task.own.grammar=full$",
        ),
        ([{"name": "books"}], counts(), {"path": "~nobody_by_this_name/x.csv"}, r"path=~nobody_by.*home"),
        ([{"name": "books"}], counts(), {"path": None}, r"has no path. Type: 'task.own.path=\""),
        ([{"name": "books"}], counts(), {"path": "x.xlsx"}, r"the format is told by the ending"),
    ],
)
def test_mistakes(
    folder: Path, tasks: list[dict[str, Any]], base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    path = {"path": f"{folder}/{{domain}}/{{split}}.jsonl"}
    with pytest.raises(ValueError, match=message):
        build_tasks(order(tasks, base), {"own": definition(**(path | changes))})


def test_mistake_in_a_later_task_names_its_key(folder: Path) -> None:
    steps = order([{"name": "books"}, {"name": "music"}], counts(train=10), incremental=counts(train=25))
    with pytest.raises(ValueError, match="task_order.incremental.train=25 needs 25"):
        build_tasks(steps, own(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl holds no rows"),
        ("a.jsonl", b'{"text": 1', "line 1 of .*is not JSON, one object a line"),
        ("a.jsonl", b"[1]\n", "line 1 of .*is not a JSON object"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1 of .*a.jsonl is no UTF-8"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz cannot be read .*[Nn]ot a gzip"),
        ("a.parquet", b"plain", "a.parquet is not a readable parquet file"),
        ("a.csv", b"text;label\nx;1\n", "no column 'text'; it has: text;label"),
        (
            "a.csv",
            b"txt,label\nx,1\n\nx,y,1\n",
            r"row 2 of .*a.csv has more cells than the header \(3, the header has 2: txt, label\)",
        ),
        ("a.tsv", b"text\tlabel\nx\n", r"row 1 of .*a.tsv has fewer cells than the header \(1, the"),
        ("a.csv", b"", "a.csv holds no rows"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        build_tasks(order([{"name": "a"}], counts(train=0)), {"own": definition(path=str(tmp_path / name))})


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_damaged_archive_is_never_taken_for_wrong_labels(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}.gz"
    write(path, rows(60))
    sound = path.read_bytes()
    made, steps = {"own": definition(path=str(path))}, order([{"name": "a"}], counts(train=0))
    for place in range(0, len(sound), 3):
        changed = bytearray(sound)
        changed[place] ^= 0x10
        for content in (bytes(changed), sound[:place]):
            path.write_bytes(content)
            try:
                build_tasks(steps, made)
            except ValueError as error:
                assert str(error).startswith(f"{path} "), (place, error)
                assert "cannot be read" in str(error) or not content, (place, error)
    path.write_bytes(sound)
    with pytest.raises(ValueError, match="row 1 of .* has the label '1'"):
        build_tasks(steps, {"own": definition(path=str(path), labels={"0": "bad"})})


def test_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    made = {"own": definition(path="~/{domain}/{split}.jsonl")}
    steps = order([{"name": "books"}], counts(train=0))
    assert source_files(steps, made) == [folder / "books" / "test.jsonl"]
    assert len(build_tasks(steps, made)[0].test) == 12


# Hub --------------------------------------------------------------------------------------------------------


def hub(**changes: Any) -> dict[str, TaskDefinition]:
    values = {"source": "hub", "dataset": "owner/news", "configuration": "{domain}_v1", "revision": "c0ffee"}
    return {"own": definition(**(values | changes))}


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*args: Any, **options: Any) -> datasets.Dataset:
        calls.append((args, options))
        return datasets.Dataset.from_list(rows(30, f"{args[1]} {options['split']} "))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    steps = order([{"name": "sport"}], counts(train=6, validation=6, test=None))
    (task,) = build_tasks(steps, hub(max_rows=12))
    # The split `train` is loaded once and shared by ours for training and validation.
    assert calls == [
        (("owner/news", "sport_v1"), {"split": "test", "revision": "c0ffee"}),
        (("owner/news", "sport_v1"), {"split": "train", "revision": "c0ffee"}),
    ]
    assert len(set(prompts(task.test))) == 12 and all(p.startswith("sport_v1 test text ") for p in prompts(task.test))
    assert len({*prompts(task.train), *prompts(task.validation)}) == 12
    assert source_files(steps, hub()) == []


def test_hub_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> datasets.Dataset:
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    steps = order([{"name": "sport"}], counts())
    reached = r"owner/news \(sport_v1, test, c0ffee\) cannot be read: Couldn't reach the hub. Check task.own"
    with pytest.raises(ValueError, match=reached):
        build_tasks(steps, hub())
    with pytest.raises(ValueError, match="must name the revision of owner/news.*task.own.revision=COMMIT"):
        build_tasks(steps, hub(revision=None))
    with pytest.raises(ValueError, match="has source=hub. Type: task.own.label_noise=0"):
        build_tasks(steps, hub(label_noise=0.5))
    with pytest.raises(ValueError, match="names no data set. Type: task.own.dataset=OWNER/NAME"):
        build_tasks(steps, hub(dataset=None))
