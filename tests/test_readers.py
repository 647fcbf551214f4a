"""Files of others: what is read as it stands, and what is refused because it could be read in two ways."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError
from sources import counts, definition, order

from cl_runner.data.task import Task, build_tasks, outlines, source_files

STEPS = order([{"name": "a"}], counts(train=0))


def read(path: object, **changes: Any) -> Task:
    """The only task, of test examples alone."""
    (task,) = build_tasks(STEPS, {"own": definition(path=path if isinstance(path, list) else str(path), **changes)})
    return task


def pairs(task: Task) -> list[tuple[str, str]]:
    return [(example.prompt, example.answer) for example in task.test]


def lines(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def parquet(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": [0] * len(texts)}), path)
    return path


# Cells ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "changes", "texts"),
    [
        ("a.tsv", 'text\tlabel\n"open\t0\nsays "no"\t1\n"all"\t0\n', {}, ['"open', 'says "no"', '"all"']),
        ("a.tsv", "text\tlabel\nC:\\new\t1\n", {}, ["C:\\new"]),
        ("a.tsv", 'text\tlabel\n"a ""b""\nc"\t0\n', {"quoting": "double"}, ['a "b"\nc']),
        ("a.csv", 'text,label\na 17" screen,0\n"a ""b"", c",1\n', {}, ['a 17" screen', 'a "b", c']),
        ("a.csv", 'text,label\n"fine" it is,0\n', {"quoting": "none"}, ['"fine" it is']),
        ("a.csv", 'text,label\n"\\"fine\\", C:\\new \\\\",0\n', {"quoting": "backslash"}, ['"fine", C:\\new \\']),
        ("a.csv", "text;label\none, two;0\n", {"delimiter": ";"}, ["one, two"]),
        ("a.txt", "text\tlabel\none\t0\n", {"delimiter": "tab"}, ["one"]),
        ("a.csv", "one,0\ntwo,1\n", {"header": ["text", "label"]}, ["one", "two"]),
        ("a.csv", "one,0\ntwo,1\n", {"header": False, "text": ["1"], "label": "2"}, ["one", "two"]),
        ("a.csv", "\ufefftext,label\r\none,0\r\n\r\ntwo\u2028\0,1\r\n", {}, ["one", "two\u2028\0"]),
        ("a.csv", "text,label\rone,0\r", {}, ["one"]),
        ("a.csv", 'text,label\n"one,\n two",0\n', {}, ["one,\n two"]),
        # Each line could be a row by itself; that they are one text has to be said.
        ("a.csv", 'text,label\n"one,0\ntwo",0\n', {"quoting": "double"}, ["one,0\ntwo"]),
    ],
)  # fmt: skip
def test_cells_as_they_stand(
    name: str, content: str, changes: dict[str, Any], texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert [text for text, _ in pairs(read(tmp_path / name, **changes))] == texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "cp1252"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nGröße,0\n".encode(encoding))
    assert pairs(read(path, encoding=encoding)) == [("Größe", "bad")]
    if encoding != "utf-8":
        typed = {"utf-16": "utf-16", "utf-16-le": "(utf-16-le|cp1252)", "cp1252": "cp1252"}[encoding]
        with pytest.raises(ValueError, match=rf"a.csv .*[Tt]ype: task.own.encoding={typed}"):
            read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", 'text,label\none,0\n"two,1\nthree,0\n', r'row 2 of .*a.csv \(line 3\) opens a quote .*quoting=none'),
        ("a.csv", 'text,label\n"one" more,0\n', r"row 1 of .* goes on behind a closing quote.*quoting=none"),
        ("a.csv", 'text,label\n"say \\"no\\", twice",0\n', r"row 1 of .*task.own.quoting=backslash"),
        ("a.csv", 'text,label\nx,1\n"one,0\ntwo,1\nthree",0\n', r"row 2 of .*\(lines 3 to 5\) is several rows .*=none"),
        ("a.csv", 'label,text\n0,"one\n1,two"\n', r"row 1 of .* is several rows that a quote joins"),
        ("a.tsv", 'text\tlabel\n"one\ntwo"\t0\n', r"row 1 of .* fewer cells .*type: task.own.quoting=double"),
        ("a.csv", "text,label,label\none,0,1\n", r"2 columns that are called 'label' \(columns 2 and 3\)"),
        ("a.csv", "text;label\none;0\n", r"""no column 'text'; it has: text;label.*"task.own.delimiter=';'\""""),
        ("a.csv", "text\tlabel\none\t0\n", r"Type: task.own.delimiter=tab"),
        ("a.csv", "one,0\ntwo,1\n", r"no column 'text'.*'task.own.header=\[text,label\]'"),
        ("a.tsv", '"text"\t"label"\n"one"\t"0"\n', r"no column 'text'.*task.own.quoting=double"),
        ("a.csv", "te\u0301xt,label\none,0\n", r"no column 'text'"),
        ("a.csv", "text,label\none,\n", r"row 1 of .*no label in column 'label'.*'': null"),
        ("a.jsonl", '{"text": "one", "label": 0, "label": 1}\n', r"line 1 of .*: the field 'label' stands in it twice"),
        ("a.json", '[{"text": "one", "label": 0},\n {"text": "a", "text": "b"}]', r"element 2 of .*: the field 'text'"),
        ("a.jsonl", '{"text": "one", "label": 0}\n{"text": "\\ud83d", "label": 1}\n', r"row 2 of .*'text' holds half"),
        ("a.json", '{\n "data": [{"text": "one"}]\n}', r"over several lines.*what its 'data' holds"),
        ("a.jsonl", '{"text": "one", "label": null}\n', r"row 1 of .* has no label in column 'label'"),
        ("a.jsonl", '{"text": "one", "label": NaN}\n', r"row 1 of .* has no label in column 'label'"),
        ("a.jsonl", '{"text": "one", "label": "e\\u0301"}\n', r"differs from the known 'é' in Unicode form only"),
        ("a.jsonl", '{"text": "one", "label": "1\\u00a0"}\n', r"in white space only: '1\\xa0' and '1'.*\"1\\xa0\": "),
        ("a.jsonl", '{"text": "one", "label": "1\\u200b"}\n', r"known '1' in invisible characters only"),
        ("a.jsonl", '{"te\\u200bxt": "one", "label": 1}\n', r"'text'.*differs in invisible characters only"),
        ("a.jsonl", '{"text": "one", "label": "\\ud83d"}\n', r"row 1 of .*'label' holds half a character"),
        ("a.csv", "sep=;\ntext;label\none;0\n", r"Its first line is Excel's: delete it"),
        ("a.csv", "TEXT,LABEL\none,0\n", r"it has: TEXT, LABEL. Type: task.own.text="),
        ("a.jsonl", "[" * 100_000, r"a.jsonl cannot be read \(its JSON is nested too deeply\)"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(ValueError, match=said):
        read(tmp_path / name, labels={"0": "bad", "1": "good", "é": "fair", "None": "nothing"})


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n" + b"fine,0\n" * 5000 + b"caf\xe9,0\n")
    with pytest.raises(ValueError, match=r"line 5002 of .*a.csv is no UTF-8 .*task.own.encoding=cp1252"):
        read(tmp_path / "a.csv")


# Fields -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "changes", "said"),
    [
        ([{"text": "a", "label": 0}, {"sentence": "b", "label": 1}], {}, r"row 2 .* no field 'text'.*sentence, label"),
        ([{"sentence": "a", "label": 0}, {"text": "b", "label": 1}], {}, r"row 1 of .* no field 'text', which other"),
        ([{"text": "a", "label": 0}, {"text": "b"}], {}, r"row 2 of .* no field 'label'"),
        ([{"text": "a", "label": 0}, {"text": "b"}], {"labels": None}, r"row 2 of .* no field 'label'"),
        ([{"text": "a", "label": 0, "title": "t"}, {"text": "b", "label": 0}], {"template": "{title}"}, r"'title'"),
        ([{"text": "a", "label": 0}, {"txt": "b", "label": 0}], {}, r"Nearest: 'txt'.*missing_fields=empty"),
    ],
)  # fmt: skip
def test_a_field_that_some_rows_lack(records: list[Any], changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(records))
    for path in (lines(tmp_path / "a.jsonl", records), tmp_path / "a.json"):
        with pytest.raises(ValueError, match=said):
            read(path, **changes)


def test_missing_fields_may_be_empty(tmp_path: Path) -> None:
    records = [{"text": "a", "label": "None"}, {"label": "1", "other": 0}, {"text": "c"}, {"text": None, "label": "1"}]
    labels = {"None": "nothing", "1": "something", "": None}
    task = read(lines(tmp_path / "a.jsonl", records), labels=labels, missing_fields="empty")
    assert pairs(task) == [("a", "nothing")]
    assert task.account is not None and task.account.splits["test"].left_out == {"no text": 2, "no label": 1}


# Files ------------------------------------------------------------------------------------------------------


def test_patterns_and_shards(tmp_path: Path) -> None:
    for number in range(2):
        parquet(tmp_path / f"test-{number:05d}-of-00002.parquet", [f"{number}.{i}" for i in range(3)])
    every = [f"{number}.{i}" for number in range(2) for i in range(3)]
    shards = [str(tmp_path / f"{{split}}-{number:05d}-of-00002.parquet") for number in range(2)]
    for path in (
        shards,
        [shards],
        tmp_path / "{split}-*.parquet",
        tmp_path / "*-of-0000?.parquet",
        tmp_path / "**/*.parquet",
    ):
        assert [text for text, _ in pairs(read(path))] == every
    made = {"own": definition(path=str(tmp_path / "{split}-*.parquet"))}
    assert [path.name[5:10] for path in source_files(STEPS, made)] == ["00000", "00001"]
    for path in (shards[1], [shards[1]], [[shards[0]]]):
        with pytest.raises(
            ValueError, match=r"is one of 2 shards.*Type: 'task.own.path=.*\{split\}-\*-of-00002.parquet"
        ):
            read(path)
    (tmp_path / "test-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"-of-00002 has 2 shards, of which 1 is missing: 00000"):
        read(tmp_path / "*.parquet")
    with pytest.raises(ValueError, match=r"00000-of-00002.parquet does not exist"):
        read(shards)
    parquet(tmp_path / "test-00000-of-00003.parquet", ["x"])
    with pytest.raises(ValueError, match=r"two sets of shards"):
        read(tmp_path / "*.parquet")


def test_several_places(tmp_path: Path) -> None:
    one, other = parquet(tmp_path / "a.parquet", ["one"]), parquet(tmp_path / "b.parquet", ["two"])
    with pytest.raises(ValueError, match=r"a.parquet and .*b.parquet, and both are there.*\[\[A, B\]\]"):
        read([str(one), str(other)])
    assert [text for text, _ in pairs(read([[str(one), str(other)]]))] == ["one", "two"]
    with pytest.raises(ValueError, match=r"names .*a.parquet twice"):
        read([[str(one), str(tmp_path / "[ab].parquet")]])
    lines(tmp_path / "a.jsonl", [{"text": "same", "label": 0}])
    assert [text for text, _ in pairs(read([str(tmp_path / "a.jsonl"), str(one)]))] == ["same"]
    lines(tmp_path / "c.jsonl", [{"txt": "x", "label": 0}])
    with pytest.raises(ValueError, match=r"row 1 of .*c.jsonl has no field 'text', which other rows have"):
        read([[str(one), str(tmp_path / "c.jsonl")]])
    with pytest.raises(ValueError, match=r"holds no 'x\*.csv'"):
        read(tmp_path / "x*.csv")


def test_columns_of_one_name_in_parquet(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays(
        [pyarrow.array(["a"]), pyarrow.array([0]), pyarrow.array([1])], ["text", "label", "label"]
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has several columns that are called 'label'"):
        read(tmp_path / "a.parquet")


def saved(texts: Sequence[str], names: Sequence[str] = ("poor", "fine")) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"text": list(texts), "label": [i % 2 for i in range(len(texts))]}, features)


def test_folders_of_save_to_disk_and_names_from_the_schema(tmp_path: Path) -> None:
    texts = ["a", "b", "c"]
    saved(texts).save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"test": saved(texts), "train": saved(["x"])}).save_to_disk(tmp_path / "both")
    saved(texts).to_parquet(tmp_path / "a.parquet")
    named = [("a", "poor"), ("b", "fine"), ("c", "poor")]
    for path in ("one", "both", "a.parquet"):
        assert pairs(read(tmp_path / path, labels="schema")) == named
        assert read(tmp_path / path, labels="schema").labels == ("poor", "fine")
        assert pairs(read(tmp_path / path)) == [("a", "bad"), ("b", "good"), ("c", "bad")]
        with pytest.raises(ValueError, match=r"its schema names: poor, fine.*Type: task.own.labels=schema"):
            read(tmp_path / path, labels=None)
        with pytest.raises(ValueError, match=r"labels calls 0 'Fine', and the schema of .* calls it 'poor'"):
            read(tmp_path / path, labels={"0": "Fine", "1": "poor"})
    with pytest.raises(ValueError, match=r"holds the splits test, train, and none is called 'eval'"):
        read(tmp_path / "both", splits={"train": None, "validation": None, "test": "eval"})
    shard = sorted((tmp_path / "one").glob("*.arrow"))[0]
    with pytest.raises(ValueError, match=r"Name the folder itself: 'task.own.path=\".*/one\"'"):
        read(shard)
    shard.unlink()
    with pytest.raises(ValueError, match=r"one, a folder of save_to_disk, cannot be read"):
        read(tmp_path / "one")
    with pytest.raises(ValueError, match=r"is a folder, and none that .*by save_to_disk"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"takes the names of labels from the schema, and .*a.csv has none"):
        (tmp_path / "a.csv").write_text("text,label\na,0\n")
        read(tmp_path / "a.csv", labels="schema")
    saved(texts, ["fine", "poor"]).to_parquet(tmp_path / "b.parquet")
    steps = order([{"name": "both", "domains": ["a", "b"]}], counts(train=0))
    with pytest.raises(ValueError, match=r"the schemas of a \(test\) and b \(test\) name other labels"):
        build_tasks(steps, {"own": definition(path=str(tmp_path / "{domain}.parquet"), labels="schema")})


# Definitions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": {"0": "  "}}, "the name of a label"),
        ({"labels": {"0": False}}, "labels"),
        ({"delimiter": ";;"}, "one character, or tab"),
        ({"delimiter": '"'}, "one character, or tab"),
        ({"encoding": "utf-9"}, "an encoding that Python knows"),
        ({"quoting": "all"}, "none"),
        ({"header": ["text", "text"]}, "the names of all columns"),
        ({"header": []}, "the names of all columns"),
        ({"path": 3}, "list"),
    ],
)
def test_wrong_options(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        definition(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": {"0": "é", "1": "e\u0301"}}, r"two labels of task.own are called .* differ in Unicode form only"),
        ({"labels": {"0": "good", "1": "good "}}, r"differ in white space only"),
        ({"labels": {"é": "x", "e\u0301": "y"}}, r"task.own.labels gives 'é' and 'e.u0301'".replace("é", r".xe9")),
        ({"delimiter": ";"}, r"delimiter says how csv and tsv files are read.*Type: task.own.delimiter=null"),
        ({"header": ["text", "label"]}, r"Type: task.own.header=true"),
        ({"source": "hub", "encoding": "cp1252"}, r"encoding says something of source=files alone.*encoding=null"),
    ],
)
def test_mistaken_definitions(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read(parquet(tmp_path / "a.parquet", ["a"]), **changes)


def test_labels_of_two_tasks_that_look_the_same(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"text": "one", "label": 0}])
    made = {
        name: definition(path=str(tmp_path / "a.jsonl"), labels={"0": label})
        for name, label in (("own", "é"), ("b", "e\u0301"))
    }
    steps = order([{"name": "a"}, {"name": "b", "task": "b"}], counts(train=0))
    with pytest.raises(ValueError, match=r"two labels of this order are called .* differ in Unicode form only"):
        build_tasks(steps, made)


# Chats ------------------------------------------------------------------------------------------------------

CHATS: list[Any] = [
    {"messages": [{"role": "user", "content": " Hi? "}, {"role": "assistant", "content": "Yes."}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "One?"}]},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "2"},
        ]
    },
    {"messages": [{"role": "user", "content": "Nobody?"}]},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "unasked", "weight": 0}]},
]
CHAT = {"convert": "messages", "text": ["text"], "label": "answer", "labels": None}


def test_chats_are_trained_on_what_the_assistant_says(tmp_path: Path) -> None:
    task = read(lines(tmp_path / "a.jsonl", CHATS), **CHAT)
    begun = "System: Be brief.\n\nUser: One?\n\nAssistant:"
    assert pairs(task) == [("Hi?", "Yes."), (begun, "1"), (f"{begun} 1\n\nUser: Two?\n\nAssistant:", "2")]
    assert task.account is not None and task.account.splits["test"].left_out == {"no answer": 2}
    shared = [{"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]}]
    assert pairs(read(lines(tmp_path / "b.jsonl", shared), **CHAT)) == [("Hi?", "Yes.")]


def test_turns_of_a_chat_never_come_into_two_splits(tmp_path: Path) -> None:
    turns = [{"role": role, "content": f"{i}"} for i in range(3) for role in ("user", "assistant")]
    path = lines(
        tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": f"chat {i}"}, *turns]} for i in range(20)]
    )
    steps = order([{"name": "a"}], counts(train=12, validation=6, test=6))
    (task,) = build_tasks(steps, {"own": definition(path=str(path), **CHAT)})
    chats = [{example.prompt.split("\n")[0] for example in split} for split in (task.train, task.validation, task.test)]
    assert all(chats) and not (chats[0] & chats[1] or chats[0] & chats[2] or chats[1] & chats[2])


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ("text", r"record 1 of .* has no list 'messages' or 'conversations'; it holds: messages"),
        (["x"], r"turn 1 that is no object with role and content"),
        ([{"role": "tool", "content": "3"}], r"turn 1 of 'tool'; known are system, developer, user"),
        ([{"role": "assistant", "content": None, "tool_calls": [1]}], r"turn 1 that calls a tool"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"parts that are no text: image"),
    ],
)
def test_chats_that_are_none(chat: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read(lines(tmp_path / "a.jsonl", [{"messages": chat}]), **CHAT)


def test_a_chat_without_the_converter_is_told_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"It is a chat. Type: task.own.convert=chats 'task.own.text=\[text\]' task"):
        read(lines(tmp_path / "a.jsonl", CHATS), text=["messages"], label="messages", labels=None)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_pointer_of_git_lfs_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4379985\n")
    with pytest.raises(ValueError, match=rf"{name} is a pointer of Git LFS, not the data. Type: git lfs pull"):
        read(tmp_path / name)


def test_a_plan_knows_the_labels_of_a_local_schema(tmp_path: Path) -> None:
    names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    rows = {"text": ["one", "two"], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=names).to_parquet(tmp_path / "a.parquet")
    own = {"own": definition(path=str(tmp_path / "a.parquet"), labels="schema")}
    (task,) = outlines(STEPS, own)
    assert task.labels == ("bad", "good") and not task.test


def test_fields_that_records_of_the_hub_lack_may_be_empty() -> None:
    own = {"own": definition(source="hub", dataset="a/b", revision="c", path=None, missing_fields="empty")}
    assert [task.name for task in outlines(STEPS, own)] == ["a"]
