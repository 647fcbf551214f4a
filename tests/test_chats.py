"""Chats: turns as the template writes them, the tokens of what the assistant says, what has no room, a whole run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import MARKED, TEMPLATE, THINKING, TOOLS, checkpoint, family, said, tokenizer, written
from tiny import run_command, without_report
from torch.nn import functional

from cl_runner.compose import compose
from cl_runner.data.chats import chats
from cl_runner.data.converters import Unfit
from cl_runner.data.example import Example
from cl_runner.data.task import Task, build_tasks
from cl_runner.families.causal import Causal
from cl_runner.identity import config_hash

TWO = said("s: Be brief.", "u: One?", "a: 1", "u: Two?", "a: 22")


def examples(turns: list[dict[str, Any]], learned: str = "all", **record: Any) -> list[Example]:
    rows = chats({"messages": turns, **record}, learned)
    return [Example(row["text"], row["answer"], chat=row["chat"]) for row in rows]


def learned_of(made: Causal, example: Example) -> dict[int, str]:
    """The text of each learned turn."""
    row = made._chats.row(example)
    pairs = list(zip(row.ids, row.turns, strict=True))
    return {n: made.tokenizer.decode([i for i, turn in pairs if turn == n]) for n in sorted({*row.turns} - {0})}


def text_of(made: Causal, ids: Any) -> str:
    return str(made.tokenizer.decode(list(ids)))


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
@pytest.mark.parametrize(
    ("turns", "found"),
    [("all", [{1: "1</s>", 2: "22</s>"}]), ("last", [{2: "22</s>"}]), ("each", [{1: "1</s>"}, {2: "22</s>"}])],
)
def test_what_the_assistant_says_is_learned_and_nothing_else(
    template: str, turns: str, found: list[dict[int, str]]
) -> None:
    made = family(template)
    asked = examples(TWO, turns)
    assert [learned_of(made, one) for one in asked] == found
    row = made._chats.row(asked[-1])
    whole = made.tokenizer.apply_chat_template(TWO, tokenize=True, return_dict=True)["input_ids"]
    assert list(row.ids) == whole[: len(row.ids)], "the tokens that transformers makes of the whole chat"
    opened = made.tokenizer.apply_chat_template(TWO[:-1], add_generation_prompt=True, tokenize=True, return_dict=True)
    assert made._prompts(asked[-1:])[0] == opened["input_ids"], "asked with the earlier turns given"


def test_marks_of_a_template_agree_with_those_of_transformers() -> None:
    made = family(MARKED)
    row = made._chats.row(examples(TWO)[0])
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    mask = made.tokenizer.apply_chat_template(TWO, **options)["assistant_masks"]
    assert [int(turn > 0) for turn in row.turns] == mask[: len(row.ids)]
    assert not any(mask[len(row.ids) :])


def test_the_loss_is_the_mean_over_the_tokens_of_learned_turns() -> None:
    made = family()
    model, _ = made.build(0)
    one, text = examples(TWO)[0], Example("hi", "there")
    batch = made.collate([one, text])
    output = made.forward(model, batch)
    assert made.targets([one, text]) == [5, 6] and len(output.targets) == 11
    row = made._chats.row(one)
    logits = model(torch.tensor([list(row.ids)])).logits[0].float()
    places = [place for place, turn in enumerate(row.turns) if turn]
    losses = functional.cross_entropy(
        logits[[p - 1 for p in places]], torch.tensor(list(row.ids))[places], reduction="none"
    )
    of_chat = functional.cross_entropy(output.logits, output.targets, reduction="none")[output.rows == 0]
    torch.testing.assert_close(of_chat, losses, rtol=1e-4, atol=1e-5)
    assert batch["turns"][0][batch["labels"][0] != -100].tolist() == [1, 1, 2, 2, 2]


def test_a_template_that_writes_earlier_answers_otherwise_is_refused_and_each_turn_is_not() -> None:
    made = family(THINKING)
    with pytest.raises(ValueError, match=r"turn 3 of a chat otherwise .* Type: task.NAME.turns=each .*turns=last"):
        made._chats.row(examples(TWO)[0])
    assert learned_of(made, examples(TWO, "last")[0]) == {2: "<think></think>22</s>"}
    assert next(learned_of(made, one) for one in examples(TWO, "each")) == {1: "<think></think>1</s>"}


def test_a_template_that_opens_an_answer_otherwise_is_refused() -> None:
    made = family(TEMPLATE.replace("[assistant]{% endif %}", "[bot]{% endif %}"))
    with pytest.raises(ValueError, match=r"\[bot\]' against .* Type: task.NAME.convert=messages"):
        made._chats.row(examples(TWO, "last")[0])


def test_special_tokens_that_somebody_says_are_letters() -> None:
    made = family()
    turns = said("u: </s>", "a: a</s>b", "u: q", "a: x")
    row = made._chats.row(examples(turns)[0])
    assert list(row.ids).count(made.tokenizer.eos_token_id) == 4, "the template's own alone"
    assert learned_of(made, examples(turns)[0]) == {1: "a</s>b</s>", 2: "x</s>"}
    with pytest.raises(ValueError, match=r"changes what a turn says: '</s>'"):
        family(TEMPLATE.replace("{{ m.content }}", "{{ m.content | upper }}"))._chats.row(examples(turns)[0])


def test_an_answer_without_an_end_in_the_template_gets_one() -> None:
    made = family(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:".replace(
            "assistant:", "{% if add_generation_prompt %}assistant: {% endif %}"
        )
    )
    assert learned_of(made, examples(said("u: a", "a: b"))[0]) == {1: "b\n</s>"}


def test_tools_and_their_calls_are_written_as_the_template_has_them() -> None:
    made = family()
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}],
    }
    turns = [*said("u: One and none?"), call, *said("t: 1", "a: One.")]
    [one] = examples(turns, tools=json.dumps(TOOLS))
    row = made._chats.row(one)
    assert text_of(made, row.ids).startswith('[tools [{"type": "function"')
    assert learned_of(made, one) == {1: '<call>{"name": "add", "arguments": {"a": 1}}</call></s>', 2: "One.</s>"}
    [asked] = examples(turns[:2], "last", tools=TOOLS)
    assert asked.answer == '{"name": "add", "arguments": {"a": 1}}'
    shared = {
        "conversations": [
            {"from": "human", "value": "One and none?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "One."},
        ],
        "tools": TOOLS,
    }
    [row_of] = chats(shared, "all")
    assert row_of["chat"] == one.chat, "ShareGPT's names are the same chat"


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([{"role": "critic", "content": "x"}], "turn 1 of 'critic'"),
        ([{"from": "function_call", "value": "add"}], "function_call that is no JSON"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "tool call that has no name"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x"}]}], "arguments are no JSON"),
        ([{"role": "assistant", "content": " "}], "the assistant says nothing"),
    ],
)
def test_chats_that_are_none(turns: list[Any], what: str) -> None:
    with pytest.raises(Unfit, match=what):
        list(chats({"messages": turns}, "all"))


LONG = said("s: S", "u: first?", "a: one", "u: second?", "a: two", "u: third?", "a: three")


def test_the_oldest_exchanges_go_first_and_the_system_stays() -> None:
    made = family(max_length=70)
    [one] = examples(LONG)
    row = made._chats.row(one)
    assert row.left_out == 2 and learned_of(made, one) == {2: "two</s>", 3: "three</s>"}
    assert text_of(made, row.ids).startswith("[system]S</s>\n[user]second?</s>")
    assert made.noted([one]) == {
        "chats without their oldest turns, to fit into 70 tokens": 1,
        "turns that are left out of them": 2,
    }
    assert made._prompts([one])[0] == list(row.ids[: row.answer]), "trained as it is asked"


def test_what_has_no_room_at_all_is_cut_and_said() -> None:
    made = family(max_length=40, max_answer_length=3)
    [one] = examples(said("u: old?", "a: old", "u: " + "0123456789" * 5, "a: three"))
    row = made._chats.row(one)
    assert row.answer == 40 and text_of(made, row.ids) == "[user]012345678900123456789</s>\n[assistant]thr"
    assert list(row.ids)[-1] != made.tokenizer.eos_token_id, "an answer that is cut has no end"
    assert made.noted([one]) == {
        "chats without their oldest turns, to fit into 40 tokens": 1,
        "turns that are left out of them": 2,
        "chats whose last question is cut, to fit into 40 tokens": 1,
        "last answers cut at 3 tokens": 1,
    }
    [wordy] = examples(said("s: " + "x" * 50, "u: q", "a: a"))
    with pytest.raises(ValueError, match=r"beside what is asked last .*. Type: backbone.max_length=\d+"):
        made._chats.row(wordy)


def test_an_answer_that_a_method_puts_in_place_is_learned() -> None:
    made = family()
    other = dataclasses.replace(examples(TWO, "last")[0], answer="else")
    assert learned_of(made, other) == {2: "else</s>"}


def test_runs_of_before_keep_their_names() -> None:
    resolved = compose(["backbone=tiny_bert"]).resolved
    definitions = resolved["task"]
    assert all(definition["turns"] == "all" for definition in definitions.values())
    without = {name: {k: v for k, v in one.items() if k != "turns"} for name, one in definitions.items()}
    before = {**resolved, "task": without}
    assert config_hash(before) == config_hash(resolved)


# A run ------------------------------------------------------------------------------------------------------


def asked_for(root: Path, folder: Path, *more: str) -> list[str]:
    """Two tasks of chats on a decoder in a folder."""
    return [
        f"root={root / 'out'}",
        f"data_root={root / 'data'}",
        "backbone=causal_folder",
        f"backbone.checkpoint={folder}",
        "backbone.chat_template=true",
        "backbone.max_length=128",
        "backbone.max_answer_length=16",
        "task_order=chats",
        "task_order.tasks=[{name: sums}, {name: greetings}]",
        "training.base.epochs=2",
        "training.incremental.epochs=2",
        "training.base.batch_size=4",
        "training.incremental.batch_size=4",
        "task.chats.max_new_tokens=4",
        "hardware.threads=1",
        "wandb=disabled",
        "method=seq_ft",
        *more,
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chats")
    checkpoint(root / "model")
    for name in ("sums", "greetings"):
        for split, count in (("train", 8), ("test", 4)):
            rows = [
                {"messages": said("s: S", f"u: {name} {i}", f"a: {i}", "u: more?", f"a: {i + 1}")} for i in range(count)
            ]
            written(root / "data" / name / f"{split}.jsonl", rows)
    return root


def test_a_run_on_chats(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(asked_for(place, place / "model", "probe=task_loss")) == 0
    capsys.readouterr()
    (folder,) = (path.parent for path in (place / "out").rglob("COMPLETED"))
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in steps if line["kind"] == "train"]
    assert len(steps) == 8 and all({"loss_turn_1", "loss_turn_2"} <= set(line) for line in steps)
    page = (folder / "report.html").read_text()
    assert "Loss by turn" in page and "turn 2" in page
    for line in steps:
        losses = [line["loss_turn_1"], line["loss_turn_2"]]
        assert min(losses) - 1e-5 <= line["loss"] <= max(losses) + 1e-5 and math.isfinite(line["loss"])


def test_micro_batches_say_the_same_losses_by_turn(place: Path) -> None:
    found = []
    for size in ("null", "1"):
        root = place / f"micro{size}"
        given = [o for o in asked_for(place, place / "model") if not o.startswith("root=")]
        with without_report():
            more = [f"root={root}", f"training.base.micro_batch={size}", f"training.incremental.micro_batch={size}"]
            assert run_command([*given, *more]) == 0
        (path,) = root.rglob("metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found.append([[line[f"loss_turn_{k}"] for k in (1, 2)] for line in lines if line["kind"] == "train"])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        (["backbone.chat_template=false"], "Type: backbone.chat_template=true"),
        (["task.chats.convert=messages"], "Type: task.chats.convert=chats (or backbone.chat_template=false)"),
        (["method=sdft"], "task.NAME.convert=messages backbone.chat_template=false"),
        (["method=lamol"], "task.NAME.convert=messages backbone.chat_template=false"),
        (["task.chats.template='{text}'"], "Type: task.chats.template=null"),
        (["task.chats.labels={a: one}"], "Type: task.chats.labels=null"),
    ],
)
def test_what_does_not_go_with_chats(
    more: list[str], remedy: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = {o.partition("=")[0] for o in more}
    given = [o for o in asked_for(place, place / "model") if o.partition("=")[0] not in replaced]
    assert run_command([*given, *more]) == 2
    assert remedy in " ".join(capsys.readouterr().err.split())


def test_a_backbone_that_is_no_decoder_says_what_to_type(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [o for o in asked_for(place, place / "model") if not o.startswith("backbone")]
    for backbone in (["backbone=tiny_t5"], ["backbone=tiny_llama", "backbone.chat_template=true"]):
        assert run_command([*given, *backbone]) == 2
        assert "task.chats.convert=messages" in capsys.readouterr().err.replace("task.NAME", "task.chats")


def test_turns_are_drawn_as_the_option_says(place: Path) -> None:
    def tasks(turns: str) -> list[Task]:
        config = compose(
            [
                f"data_root={place / 'data'}",
                *[f"task.chats.turns={turns}"],
                "task_order=chats",
                "task_order.tasks=[{name: sums}]",
                "backbone=tiny_llama",
            ]
        ).config
        return build_tasks(config.task_order, config.task)

    counts = {turns: [len(one.train) for one in tasks(turns)] for turns in ("all", "last", "each")}
    assert counts == {"all": [8], "last": [8], "each": [16]}
    first = tasks("all")[0].train[0]
    assert first.chat is not None and first.chat.learned == (2,) and tokenizer().chat_template
    assert not any(task.train[0].chat.learned for task in tasks("each") if task.train[0].chat)
