"""The command `methods`: the table of all, one with its options, comments of files, methods of the user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from own import write
from tiny import run_command

from cl_runner.build import build_method
from cl_runner.built_in import METHODS
from cl_runner.catalogue.comments import comments
from cl_runner.catalogue.entries import Entry, entry
from cl_runner.combinations import combinations, plainest, refusal
from cl_runner.compose import compose
from cl_runner.groups import nodes_of, options
from cl_runner.methods.base import Method
from cl_runner.needs import Needs
from cl_runner.parts import method_spec, part_class
from cl_runner.planning.numbers import skeleton
from cl_runner.planning.tasks import ask
from cl_runner.said import filled, texts


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return {name: entry(name) for name in options("method")}


def test_every_option_of_every_method_is_documented(entries: dict[str, Entry]) -> None:
    """Its meaning stands as a comment in the YAML that gives its value, or in one that this starts from."""
    silent = [
        option.key for one in entries.values() for node in one.nodes for option in node.options if not option.meaning
    ]
    assert not silent, "write what it means, and where its value is from, behind it in conf/method"
    assert all(one.source for one in entries.values()), "the first line of a file names its paper, or says `control`"
    assert all(node.text for one in entries.values() for node in one.nodes)


def test_a_row_says_what_the_classes_and_values_say(entries: dict[str, Entry]) -> None:
    pe, ti, replay = entries["pe"], entries["slm_ti"], entries["replay"]
    assert (pe.source, pe.command) == ("2022.naacl-industry.35", "python -m cl_runner method=pe")
    assert pe.trains == "all weights in the first task, then 0.005 of them, of each layer, the smallest by fisher"
    assert [node.key for node in pe.nodes] == ["method.ewc", "method.lwf", "method.pe"]
    assert pe.old_data == ("importance",) and pe.told == () and len(pe.families) == 4
    assert (ti.told, ti.families) == (("task",), ("classifier", "causal", "seq2seq"))
    assert replay.keeps == ("0.1 of the examples of each task, as numbers of rows",)
    assert entries["ewc_online"].source == "Schwarz et al. 2018, arXiv:1805.06370"
    assert entries["slm_prompt"].source == "Peng et al., ICLR 2024" and entries["frozen"].source == "control"
    assert entries["pe_0.1"].source == pe.source, "the papers of the option that it starts from"
    options = {option.key: option for option in pe.nodes[2].options}
    keep = options["method.pe.keep"]
    assert (keep.value, keep.may_be) == ("smallest", "smallest | largest")
    assert keep.read == "not read with method.pe.score=random"
    assert options["method.pe.fraction"].may_be == "a number > 0, <= 1"
    assert options["method.pe.learning_rate"].may_be == "a number > 0 | null"
    assert "section 4.2" in options["method.pe.learning_rate"].meaning
    online = {option.key: option for option in entries["ewc_online"].nodes[0].options}
    decay = online["method.ewc.decay"]
    assert (
        decay.meaning == "of the older Fisher when fisher_data=last_task; here: gamma of eq. 9" and decay.value == 0.95
    )
    encoder = {option.key: option.value for option in entries["slm_bert"].nodes[0].options}
    assert encoder["method.slm.encoder.checkpoint"] == "sentence-transformers/nli-mpnet-base-v2"


def test_combinations_are_those_that_the_tests_run(entries: dict[str, Entry]) -> None:
    for option, companion in combinations():
        found = entries[option].beside
        assert found is not None and found[companion] == refusal((option, companion))
    assert {name for name, option in plainest().items() if entries[option].beside is None} == set()
    assert entries["pe"].beside is not None and set(entries["pe"].beside) == {"replay", "piece_s"}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_kept_is_what_plans_count(name: str) -> None:
    """Nothing is said to be kept where a method has no state and no bytes, and the bytes per weight are the plan's."""
    backbone = "tiny_bert" if "classifier" in method_spec(name).families else "tiny_llama"
    for chosen in sorted(found for found in options("method") if list(nodes_of(found)) == [name]):
        node = nodes_of(chosen)[name]
        spec = method_spec(name)
        keeps = [filled(text, node, str) for text in texts(spec.keeps, spec.schema, node, None) or ()]
        config = compose([f"method={chosen}", f"backbone={backbone}"]).config
        needs: Needs = ask(build_method(config.method), config, skeleton(config.backbone, 4))
        held = (needs.entry_bytes, needs.weight_bytes, needs.example_bytes, needs.memory_bytes, needs.directions)
        state = part_class("methods", name).state
        if not keeps:
            assert not any(held) and (not state or chosen == "migu"), f"{chosen} keeps {state} {held}"
        elif not state and not any(held):
            grows = part_class("methods", name).grow is not Method.grow  # what it keeps lies in the model
            assert spec.old_data or grows, f"{chosen} keeps nothing: {keeps}"
        said = " ".join(keeps)
        per_weight = re.search(r"(\d+) bytes per weight of the model", said)
        assert int(per_weight[1] if per_weight else 0) == needs.weight_bytes, chosen
        times = {"gem": len(config.task_order.tasks) - 1, "ogd": node.get("examples")}.get(name, 1)
        per_entry = re.search(r"(\d+) bytes per trained weight", said)
        assert int(per_entry[1] if per_entry else 0) * times == (
            needs.entry_bytes + needs.task_bytes + 4 * needs.directions
        ), chosen


def test_comments_belong_to_values() -> None:
    found = comments(
        "# the file\n"
        "one:            # a node\n"
        "  a: '# no # comment' # quoted\n"
        "  b: \"it's\"  # with a sign: it's\n"
        "  c: [x, '#',\n"
        "      y]        # of a list\n"
        "              # that goes on\n"
        "  # above d\n"
        "  # in two lines\n"
        "  d: x#y\n"
        "  e: |\n"
        "    text # no comment\n"
        "  f:\n"
        "    g: 1  # nested\n"
        "  h: # nothing\n"
        "  i: 3\n"
        "# the end\n"
    )
    assert found == {
        "one": "a node",
        "one.a": "quoted",
        "one.b": "with a sign: it's",
        "one.c": "of a list that goes on",
        "one.d": "above d in two lines",
        "one.f.g": "nested",
        "one.h": "nothing",
    }
    assert comments("") == {} and comments("# only\n") == {}


def test_the_table_has_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["methods"]) == 0
    shown = capsys.readouterr()
    rows = {line.split()[0]: line for line in shown.out.splitlines() if line.startswith(" ") and line[1:2].isalpha()}
    assert set(options("method")) <= set(rows) and not shown.err
    assert "(✓)" in rows["pe"] and "✓" in rows["replay"] and "✓" not in rows["seq_ft"]
    assert "their gradients steer every step" in shown.out and "python -m cl_runner methods NAME" in shown.out


def test_one_method_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["methods", "ewc_piece", "frozen"]) == 0
    text = capsys.readouterr().out
    for line in (
        "ewc_piece: EWC as in PIECE's release",
        "Type: python -m cl_runner method=ewc_piece",
        "method.ewc.strength=400.0",
        "read with method.ewc.fisher_data=last_task",
        "beside ewc: frozen leaves all weights",
        "L_EWC = strength",
    ):
        assert line in text
    assert run_command(["methods", "--json", "opr"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["name"] == "opr" and content["old_data"] == ["answers"] and content["beside"]["piece_s"] is None
    assert {"key": "method.opr.budget", "value": 50, "may_be": "a whole number >= 1", "read": ""}.items() <= content[
        "nodes"
    ][0]["options"][0].items()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["pice_s"], "Nearest: 'piece_s'. Type: python -m cl_runner methods piece_s"),
        (["method=pice_s"], "Nearest: 'piece_s'. Type: python -m cl_runner methods piece_s"),
        (
            ["parts"],
            "node of bitfit, first_layers, head_only, last_layers. Type: python -m cl_runner methods bitfit",
        ),
        (["piece"], "Type: python -m cl_runner methods piece_s"),
        (["--jsn"], "unrecognized arguments: --jsn. See: python -m cl_runner methods --help"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
    ],
)
def test_mistakes_get_one_message(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["methods", *typed]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("cl_runner: ") and said in shown.err and not shown.out


def test_a_command_behind_a_flag_is_told_where_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--config-dir", str(tmp_path), "methods", "pe"]) == 2
    said = f"the command methods is the first word. Type: python -m cl_runner methods --config-dir {tmp_path} pe"
    assert said in capsys.readouterr().err
    assert run_command(["--config-dir", str(tmp_path), "report", "RUN"]) == 2
    assert "Type: python -m cl_runner report RUN\n" in capsys.readouterr().err


OWN = '''
from dataclasses import dataclass
from typing import Annotated, ClassVar
from pydantic import Field
from cl_runner.methods.base import Method

@dataclass
class Mine(Method):
    """Does this and that."""

    size: int
    rate: Annotated[float, Field(gt=0, description="of its own")] = 0.5

    keeps: ClassVar[str] = "{size} numbers"
    old_data: ClassVar[object] = {"size": {3: "learned"}}
'''


def test_methods_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "catalogue_own.py", OWN)
    write(
        tmp_path / "mine/method/mine.yaml",
        "# Mine. Who et al. 2025\nmine:\n  _target_: catalogue_own.Mine\n  size: 3  # of it\n",
    )
    write(tmp_path / "mine/method/half.yaml", "# Half of it\ndefaults: [mine, si, _self_]\nmine: {rate: 0.25}\n")
    write(tmp_path / "theirs/method/ewc.yaml", "# Replaced\ndefaults: [lwf, _self_]\n")
    assert run_command(["methods", "-cd", "mine", "-cd", "theirs", "--json", "mine", "half", "ewc"]) == 0
    mine, half, ewc = json.loads(capsys.readouterr().out)
    assert mine["command"] == "python -m cl_runner --config-dir mine --config-dir theirs method=mine"
    assert (mine["source"], mine["keeps"], mine["old_data"]) == ("Who et al. 2025", ["3 numbers"], ["learned"])
    assert (mine["told"], mine["beside"], mine["nodes"][0]["text"]) == (["?"], None, "Does this and that.")
    found = [(o["key"], o["value"], o["meaning"]) for o in mine["nodes"][0]["options"]]
    assert found == [("method.mine.size", 3, "of it"), ("method.mine.rate", 0.5, "of its own")]
    assert half["nodes"][0]["options"][1]["value"] == 0.25 and [n["key"] for n in half["nodes"]][1:] == ["method.si"]
    assert ewc["nodes"][0]["key"] == "method.lwf", "the user's file replaces ours"
    found = {"gentle": "pack.it:Gentle of the package pack 1.0", "mine": "pack.it:Mine of the package pack 1.0"}
    monkeypatch.setattr("cl_runner.catalogue.command.installed", lambda kind: found)
    assert run_command(["methods", "--config-dir", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "not tried" in shown
    assert "The installed pack.it:Gentle of the package pack 1.0 brings the method gentle." in shown
    assert "brings the method mine" not in shown, "it has a file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine: {size: [}\n", "mine/method/broken.yaml cannot be read: while parsing"),
        ("- a\n", "mine/method/broken.yaml cannot be read: it holds list where options stand"),
        ("ewc: 3\n", "mine/method/broken.yaml cannot be read: ewc holds 3 where its options stand"),
        ("defaults: [nothing]\n", "nothing.yaml"),
        ("defaults: [broken]\n", "broken starts from itself"),
        (
            "defaults: [ewc, _self_]\newc: {strength: -1}\n",
            "method.ewc.strength must be greater than or equal to 0, got -1",
        ),
        ("defaults: [ewc, _self_]\newc: {streng: 1}\n", "Nearest: 'method.ewc.strength'"),
        ("mine: {_target_: no_such_module.Mine}\n", "there is no module 'no_such_module'"),
        ("mine: {}\n", "no method is called 'mine'"),
    ],
)
def test_a_file_that_is_wrong_is_named_and_the_others_are_shown(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine/method/broken.yaml", text)
    assert run_command(["methods", "--config-dir", "mine", "broken", "frozen"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("cl_runner: method broken: ") and said in shown.err and shown.err.count("\n") <= 2
    assert "frozen: Control" in shown.out
