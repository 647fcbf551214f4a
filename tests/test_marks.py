"""The check marks beside methods: what their classes and a run's options say of old data and of a question's task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import make_run

from cl_runner.access import Access, access, mark
from cl_runner.built_in import METHODS
from cl_runner.compose import compose
from cl_runner.groups import nodes_of
from cl_runner.parts import SPOKEN, method_spec, part_class
from cl_runner.report.folder import find_runs, read_run
from cl_runner.report.grouping import group_runs
from cl_runner.report.tables import exact_csv, long_table, table_shape
from cl_runner.report.text_table import as_csv, as_markdown
from cl_runner.said import OLD_DATA, TOLD, texts, wrong

ORDER = {"joint": False, "restart": False}


def given(*chain: str, family: str = "classifier", order: dict[str, bool] | None = None, **values: Any) -> Access:
    """Of a chain of options, with other values of some options of any node that has them."""
    nodes = {name: node for option in chain for name, node in nodes_of(option).items()}
    nodes = {name: {key: values.get(key, value) for key, value in node.items()} for name, node in nodes.items()}
    return access({"method": nodes, "task_order": ORDER | (order or {})}, family)


@pytest.mark.parametrize("name", METHODS)
def test_every_built_in_method_says_it(name: str) -> None:
    spec = method_spec(name)
    for said, words in ((spec.old_data, OLD_DATA), (spec.told, TOLD), (spec.keeps, None), (spec.learns, None)):
        assert wrong(said, spec.schema.model_fields, words) is None
    assert None not in (spec.old_data, spec.told, spec.keeps), 'say "" for nothing'
    assert (spec.learns is not None) == spec.chooses, "a method that chooses says what trains"
    cls = part_class("methods", name)  # read from the source as the class itself has it
    assert [getattr(cls, each) for each in SPOKEN] == [getattr(spec, each) for each in SPOKEN]
    assert spec.text.split() == cls.__doc__.split()


@pytest.mark.parametrize(
    ("found", "old_data", "told"),
    [
        (given("seq_ft"), (), ()),
        (given("frozen"), (), ()),
        (given("ewc"), ("importance",), ()),
        (given("ewc_online"), (), ()),
        (given("ewc_piece", "lwf_piece"), (), ()),
        (given("pe"), ("importance",), ()),
        (given("pe_rand"), ("importance",), ()),  # its EWC
        (given("pe_select", score="random"), (), ()),
        (given("magnitude_smallest"), (), ()),
        (given("piece_s"), (), ()),
        (given("piece_s", score_data="old_tasks", first_task="whole"), ("importance",), ()),
        (given("replay", "ewc_online", "piece_s"), ("learned",), ()),
        (given("replay", "ewc"), ("learned", "importance"), ()),
        (given("der"), ("learned",), ()),
        (given("multi_task"), ("learned",), ()),
        (given("gem"), ("gradients",), ()),
        (given("agem"), ("gradients",), ()),
        (given("ogd", "bitfit"), (), ()),
        (given("mas", "si", "l2", "migu"), (), ()),
        (given("opr_sc"), ("answers",), ()),
        (given("lamol"), ("generated",), ()),
        (given("lfpt5"), ("generated",), ()),
        (given("icl", family="causal"), ("shots",), ("task",)),
        (given("slm"), (), ()),
        (given("slm_ti"), (), ("task",)),
        (given("slm_release"), (), ("labels", "batch")),
        (given("slm_release", family="causal"), (), ("batch",)),  # no classifier's head is read
        (given("seq_ft", order={"joint": True}), ("learned",), ()),
        (given("seq_ft", order={"restart": True}), (), ("task",)),
        (given("replay", "ewc", order={"restart": True}), (), ("task",)),
    ],
)
def test_a_run_is_given_what_its_options_say(found: Access, old_data: tuple[str, ...], told: tuple[str, ...]) -> None:
    assert (set(found.old_data), set(found.told)) == (set(old_data), set(told))


def test_a_mark_is_the_most_of_its_words() -> None:
    assert [mark(words, OLD_DATA) for words in ((), ("importance",), ("importance", "learned"))] == ["", "(✓)", "✓"]
    assert mark(("importance", "?"), OLD_DATA) == "?" and mark(("learned", "?"), OLD_DATA) == "✓"
    assert mark(("<b>forged",), TOLD) == "?"


def test_what_a_class_may_not_say() -> None:
    assert wrong({"size": {1: "learned"}}, ["size"], OLD_DATA) is None
    words = "learned, gradients, answers, shots, generated, importance"
    assert wrong("replays", [], OLD_DATA) == f"'replays' is none of {words}"
    assert wrong({"siez": {1: "learned"}}, ["size"], OLD_DATA) == "there is no option 'siez'"
    assert wrong("{siez} examples", ["size"], None) == "there is no option 'siez'"
    assert "text" in str(wrong({"size": {1: 3}}, ["size"], None)) and wrong("{", [], None) and wrong(3, [], None)  # type: ignore[arg-type]
    spec = method_spec("parts")
    bitfit, head = nodes_of("bitfit")["parts"], nodes_of("head_only")["parts"]
    assert texts(spec.learns, spec.schema, bitfit, None) == ["tensors named {names}", "the head"]
    assert texts(spec.learns, spec.schema, head, None) == ["the head"], "what is 0 or empty is not spoken of"
    spec = method_spec("slm")
    assert texts(spec.told, spec.schema, {}, None) is None, "options that are missing say nothing, not `no`"


def test_own_methods_are_asked_once_and_never_by_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    head = "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom cl_runner.methods.base import Method\n"
    (tmp_path / "marks_own.py").write_text(
        head
        + "@dataclass\nclass Quiet(Method):\n    size: int\n"
        + "@dataclass\nclass Loud(Method):\n    size: int\n    old_data: ClassVar[object] = {'size': {3: 'learned'}}\n"
        + "    told: ClassVar[str] = ''\n"
        + "@dataclass\nclass Wrong(Method):\n    size: int\n    told: ClassVar[str] = 'tasks'\n"
    )

    def config(name: str) -> dict[str, Any]:
        return {"method": {"mine": {"_target_": f"marks_own.{name}", "size": 3}}, "task_order": ORDER}

    assert access(config("Quiet"), "causal", foreign=True) == Access(("?",), ("?",))
    assert "marks_own" not in __import__("sys").modules, "a report imports what a configuration names"
    assert access(config("Quiet"), "causal") == Access(("?",), ("?",))
    assert access(config("Loud"), "causal") == Access(("learned",), ())
    with pytest.raises(
        ValueError, match=r"what Wrong.told says cannot be read: 'tasks' is none of task, labels, batch"
    ):
        access(config("Wrong"), "causal")


def test_tables_have_the_marks_beside_the_methods(tmp_path: Path) -> None:
    make_run(tmp_path, "pe")
    make_run(tmp_path, "seq_ft", last=60.0)
    make_run(tmp_path, "seq_ft", joint=True, last=90.0)
    folder = make_run(tmp_path, "piece_s")
    summary = json.loads((folder / "summary.json").read_text())
    noted = {"old_data": [], "told": ["task"]}  # as its run noted it
    (folder / "summary.json").write_text(json.dumps(summary | {"access": noted}))
    groups = group_runs(find_runs([tmp_path])[0])
    table = long_table(groups)
    assert table.header[:4] == ["method", "old data", "task told", "n"] and table.left == 3
    rows = {row[0]: row[1:3] for row in table.rows}
    assert rows == {"joint": ["✓", ""], "pe": ["(✓)", ""], "piece_s": ["", "✓"], "seq_ft": ["", ""]}
    text = as_markdown(table)
    assert "old data (papers: RP): ✓ learned again; (✓) read between tasks, to measure importance" in text
    assert "task told (papers: ID): ✓ its task" in text
    down = table_shape(groups, "method", "task_order", "average_accuracy")
    assert down.header == ["method", "old data", "task told", "fdu_mtl"] and down.left == 3
    assert {row[0]: row[1:3] for row in down.rows if row[0] != "mean"} == rows and down.rows[-1][1:3] == ["", ""]
    across = table_shape(groups, "task_order", "method", "average_accuracy")
    order = across.header[1:]
    assert across.below == [
        ["old data", *(rows[name][0] for name in order)],
        ["task told", *(rows[n][1] for n in order)],
    ]
    assert "| old data | " in as_markdown(across) and "old data" not in as_csv(across)
    assert not table_shape(groups[:1], "task_order", "backbone", "average_accuracy").below
    lines = [line.split(",") for line in exact_csv(groups).splitlines()]
    column = lines[0].index("old data")
    assert [line[column] for line in lines[1:]] == ["importance", "", "", "learned"]


def test_a_pivot_says_where_runs_of_one_name_differ(tmp_path: Path) -> None:
    make_run(tmp_path, "ewc", order="x")
    folder = make_run(tmp_path, "ewc", order="y")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("fisher_data: old_tasks", "fisher_data: last_task"))
    across = table_shape(group_runs(find_runs([tmp_path])[0]), "task_order", "method", "average_accuracy")
    assert across.below[0] == ["old data", "(✓) / –"]


@pytest.mark.parametrize("access", ["[]", '{"old_data": "x"}', '{"old_data": [1], "told": []}'])
def test_a_forged_note_is_named(access: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path, "pe")
    text = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(text.replace("{", f'{{"access": {access}, ', 1))
    with pytest.raises(ValueError, match=r"summary\.json is not a run's, or was changed \(access"):
        read_run(folder)


def test_what_a_run_is_given_is_composed_as_typed() -> None:
    resolved = compose(["method=[replay,ewc]", "task_order=[reviews,single_task]"]).resolved
    assert access(resolved, "classifier") == Access((), ("task",))
