"""IFEval: rows and answers against the harness's own functions; what is missing is said, and nothing is fetched."""

from __future__ import annotations

import json
import random
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from probing import probed, state

from cl_runner.probes import ifeval
from cl_runner.probes.ifeval import NUMBERS, accuracies, judge

pytestmark = pytest.mark.filterwarnings("default")  # of the harness and its own packages


def row(key: int, prompt: str, **asked: dict[str, Any]) -> dict[str, Any]:
    """A prompt as the file has it, with kwargs of all instructions that the hub fills with null."""
    names = [name.replace("__", ":") for name in asked]
    kwargs = [{"relation": None, "num_words": None, **each} for each in asked.values()]
    return {"key": key, "prompt": prompt, "instruction_id_list": names, "kwargs": kwargs}


ROWS = [
    row(1000, "Write no comma, all in lower case.", punctuation__no_comma={}, change_case__english_lowercase={}),
    row(1001, "Answer in JSON.", detectable_format__json_format={}),
    row(
        1002,
        "Write at least 5 words, in quotation marks, with rain in them.",
        length_constraints__number_words={"relation": "at least", "num_words": 5},
        startend__quotation={},
        keywords__existence={"keywords": ["rain"]},
    ),
    row(1003, "Say it again.", combination__repeat_prompt={"prompt_to_repeat": "Say it again."}),
]
SPLIT = row(2, "Two sentences.", length_constraints__number_sentences={"relation": "at least", "num_sentences": 2})
ANSWERS = [
    "",
    "this is a line without any mark of that kind",
    "Sure:\nthis is a line without any mark of that kind",
    '{"rain": 1}',
    '"it will rain all day long"',
    '**"it will rain, all day long"**',
    "Say it again. Well.",
    "One. Two. THREE.",
]


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "input_data.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.fixture
def harness() -> Any:
    for name in ("lm_eval", "langdetect", "immutabledict", "nltk"):
        pytest.importorskip(name, reason="the extra ifeval is not installed")
    return ifeval.checks()


@pytest.fixture
def splitter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nltk's punkt_tab without anything learned, in the only place where it is looked for."""
    folder = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "nltk")])


def test_what_is_followed_is_what_the_harness_says(harness: Any, splitter: None, tmp_path: Path) -> None:
    path = write(tmp_path, [*ROWS, SPLIT])
    _, probe, _ = probed(tmp_path, "probe=ifeval", f"probe.ifeval.path={path}")
    probe.check()
    before = random.getstate()
    for answers in zip(*[ANSWERS[place:] + ANSWERS[:place] for place in range(5)], strict=True):
        found = [judge(each, answer) for each, answer in zip(probe.rows, answers, strict=True)]
        with ifeval.same_chance():
            theirs = [
                harness.process_results(each, [answer]) for each, answer in zip([*ROWS, SPLIT], answers, strict=True)
            ]
        assert [each["strict"] for each in found] == [each["inst_level_strict_acc"] for each in theirs]
        assert [each["loose"] for each in found] == [each["inst_level_loose_acc"] for each in theirs]
        for way in ("strict", "loose"):
            share = harness.agg_inst_level_acc([each[f"inst_level_{way}_acc"] for each in theirs])
            assert accuracies(found)[f"inst_level_{way}_acc"] == pytest.approx(100 * share)
            share = sum(each[f"prompt_level_{way}_acc"] for each in theirs) / len(theirs)
            assert accuracies(found)[f"prompt_level_{way}_acc"] == pytest.approx(100 * share)
    assert random.getstate() == before, "a run's own chance is left alone"
    loose = judge(probe.rows[2], '**"it will rain, all day long"**')
    assert loose == {"strict": [True, False, True], "loose": [True, True, True]}
    assert judge(probe.rows[4], "One. Two.") == {"strict": [True], "loose": [True]}
    assert judge(probe.rows[4], "One") == {"strict": [False], "loose": [False]}


def test_the_live_model_is_asked_and_left_alone(harness: Any, tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    typed = [f"probe.ifeval.path={path}", "probe.ifeval.max_new_tokens=12", "probe.ifeval.batch_size=3"]
    learner, probe, folder = probed(tmp_path, "probe=ifeval", *typed)
    probe.check()
    probe.prepare(learner, folder)
    before = state(learner)
    found = probe.measure(learner, folder, "start")
    assert found == probe.measure(learner, folder, "base") and state(learner) == before
    assert tuple(probe.names()) == NUMBERS and set(found) == set(NUMBERS)
    lines = [json.loads(line) for line in (folder / "start.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["1000", "1001", "1002", "1003"]
    with ifeval.same_chance():
        theirs = [harness.process_results(each, [line["answer"]]) for each, line in zip(ROWS, lines, strict=True)]
    assert found["prompt_level_loose_acc"] == 25 * sum(each["prompt_level_loose_acc"] for each in theirs)
    (passes,) = probe.passes([])
    assert passes.texts == 541 and passes.generated == 12
    probe.max_new_tokens = 1000
    with pytest.raises(ValueError, match=r"tiny_llama reads 1024 tokens.*Type: probe.ifeval.max_new_tokens=9\d\d$"):
        probe.prepare(learner, folder)


def test_nothing_is_fetched_and_what_is_missing_is_said(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    monkeypatch.setattr(socket.socket, "connect", closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    ifeval.checks.cache_clear()
    try:
        _, probe, _ = probed(tmp_path, "probe=ifeval", f"probe.ifeval.path={write(tmp_path, ROWS)}")
        probe.check()  # these need no file
        write(tmp_path, [*ROWS, SPLIT])
        _, probe, _ = probed(tmp_path, "probe=ifeval", f"probe.ifeval.path={tmp_path / 'input_data.jsonl'}")
        said = r"^length_constraints:number_sentences split.* Type, .*: python -m nltk.downloader punkt_tab$"
        with pytest.raises(ValueError, match=said):
            probe.check()
    finally:
        ifeval.checks.cache_clear()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [row(7, "p", punctuation__no_coma={})],
            r"prompt 7 has the instruction 'punctuation:no_coma'.*'punctuation:no_c",
        ),
        (
            [row(7, "p", punctuation__no_comma={"words": 3})],
            r"prompt 7, kwargs of punctuation:no_comma are .*cannot read",
        ),
        ([{**ROWS[0], "kwargs": [{}]}], r"prompt 1000 has 2 instructions, but kwargs \[\{\}\]"),
        ([{"key": 1, "prompt": "p"}], r"row 1 lacks instruction_id_list, kwargs. Get input_data.jsonl of https"),
        ([], "holds no prompt"),
    ],
)
def test_other_rows_are_refused(harness: Any, rows: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    _, probe, _ = probed(tmp_path, "probe=ifeval", f"probe.ifeval.path={write(tmp_path, rows)}")
    with pytest.raises(ValueError, match=said):
        probe.check()


def test_a_missing_file_or_package_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, probe, _ = probed(tmp_path, "probe=ifeval", f"probe.ifeval.path={tmp_path / 'none.jsonl'}")
    with pytest.raises(ValueError, match=r"is no .jsonl.*type: probe.ifeval.path=FOLDER/input_data.jsonl"):
        assert probe.rows
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Type: pip install 'cl-runner\\[ifeval\\]'"):
        probe.check()
