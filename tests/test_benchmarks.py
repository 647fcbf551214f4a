"""What benchmarks ask of the data: prompts, answers, converters, files in several places, releases as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from sources import counts, definition, order, tasks_by_name, tasks_of

from cl_runner.compose import compose
from cl_runner.data.task import Task, build_tasks, source_files


def one(made: dict[str, Any], count: int | None = None, **changes: Any) -> Task:
    """The only task, of one domain `a`, with test examples only."""
    (task,) = build_tasks(order([{"name": "a"}], counts(train=0, test=count), **changes), {"own": definition(**made)})
    return task


def prompts(task: Task) -> list[str]:
    return [example.prompt for example in task.test]


def answers(task: Task) -> list[str]:
    return [example.answer for example in task.test]


# Prompts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Two rows with a note each, one of them missing; braces in a text."""
    records = [{"text": " {options} are {text} ", "note": 3, "label": 1}, {"text": "x", "note": None, "label": 0}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(tmp_path / "a.jsonl")


def test_only_known_placeholders_are_replaced(rows: str) -> None:
    made = {"path": rows, "template": "{text}|{note}|{options}|{negative/neutral}|{}|{{text}}"}
    assert prompts(one(made)) == [
        "{options} are {text}|3|bad, good|{negative/neutral}|{}|{{options} are {text}}",
        "x||bad, good|{negative/neutral}|{}|{x}",
    ]
    assert prompts(one({"path": rows, "text": [], "template": "note: {note}"})) == ["note: 3"]  # no note: no text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "{txt}"}, r"template holds {txt}, but .*a.jsonl has: {text}, {options}, .* Nearest: {text}"),
        ({"template": "{text} {notes}"}, r"holds {notes}.*Nearest: {note}"),
        ({"template": "Options: {options}"}, r"takes nothing from a row.*Write one of these into it: {text}, {opt"),
        ({"template": "{text} {options}", "labels": None}, r"{options}, the label names, but task.own.labels is null"),
        ({"labels": None, "balance": True}, r"balance=true .*labels is null.*Type: task.own.balance=false"),
    ],
)
def test_mistakes_in_templates(rows: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        one({"path": rows, **changes})


def test_generated_reviews_take_a_template() -> None:
    config = compose(["task_order.tasks=[{name: kettles}]", "task_order.base.test=3"]).config
    (plain,) = build_tasks(config.task_order, config.task)

    def written(template: str) -> list[str]:
        made = {"reviews": config.task["reviews"].model_copy(update={"template": template})}
        return prompts(build_tasks(config.task_order, made)[0])

    assert written("{text} ({options})") == [f"{text} (1 star, 2 stars, 3 stars)" for text in prompts(plain)]
    with pytest.raises(ValueError, match=r"holds {texts}, but the generated benchmark has: {text}, {options}"):
        written("{texts}")


# Answers and files ------------------------------------------------------------------------------------------


def test_free_answers_are_kept_as_text(tmp_path: Path) -> None:
    records = [
        {"text": "a", "label": 12},
        {"text": "b", "label": "two\n lines\n"},
        {"text": "c", "label": 0.5},
        {"text": "d", "label": None},
        {"text": "e", "label": "  "},
        {"text": "f", "label": ""},
    ]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    task = one({"path": str(tmp_path / "a.json"), "labels": None})
    assert answers(task) == ["12", "two\n lines\n", "0.5"] and task.labels == ()
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a", "label": [1]}]))
    with pytest.raises(ValueError, match=r"row 1 of .*column 'label' holds \[1\] \(list\), not text or a number"):
        one({"path": str(tmp_path / "a.json"), "labels": None})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "a", "label": 1}, 3]', r"element 2 of .*a.json is not a JSON object"),
        ('\n [{"text": "a"', r"a.json is not JSON"),
        ("[]", r"a.json holds no rows"),
    ],
)
def test_broken_arrays(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        one({"path": str(tmp_path / "a.json")})


def test_first_place_that_exists_is_read(tmp_path: Path) -> None:
    places = [f"{tmp_path}/{{variant}}/{{domain}}.json", f"{tmp_path}/{{domain}}.jsonl"]
    (tmp_path / "a.jsonl").write_text('{"text": "second", "label": 1}\n')
    steps = order([{"name": "a"}], counts(train=0), variant=7)
    made = {"own": definition(path=places)}
    assert prompts(build_tasks(steps, made)[0]) == ["second"]
    assert source_files(steps, made) == [tmp_path / "a.jsonl"]
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "a.json").write_text('[{"text": "first", "label": 1}]')
    assert prompts(build_tasks(steps, made)[0]) == ["first"]
    assert source_files(steps, made) == [tmp_path / "7" / "a.json"]
    other = steps.model_copy(update={"variant": "x"})
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path}/x/a.json does not exist.*Nor is there {tmp_path}/a.jsonl. Set"):
        build_tasks(other, made)
    with pytest.raises(ValueError, match=r"holds {variant}, but .* names no variant. Type: task_order.variant=NAME"):
        build_tasks(steps.model_copy(update={"variant": None}), made)


def test_counts_of_one_task_are_named_by_a_key_that_can_be_typed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name}{i}", "label": i % 2}) for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    own = {"own": definition(path=f"{tmp_path}/{{domain}}.jsonl")}
    tasks = [{"name": "a"}, {"name": "b", "counts": counts(train=31, test=5)}]
    with pytest.raises(ValueError, match=r"task_order.tasks.1.counts.train=31 needs 31 .*has 25 left. Type: \S+=25$"):
        build_tasks(order(tasks, counts(train=10, test=5)), own)
    tasks[1]["counts"]["train"] = 25
    built = build_tasks(order(tasks, counts(train=10, test=5)), own)
    assert [(len(task.train), len(task.test)) for task in built] == [(10, 5), (25, 5)]
    typed = compose(["task_order=llama_8", "task_order.tasks.2.counts.test=30"]).config.task_order.tasks
    assert [task.counts and task.counts.test for task in typed] == [31111, 14976, 30]
    with pytest.raises(ValueError, match=r"Nearest: 'task_order.tasks.2.counts.test'"):
        compose(["task_order=llama_8", "task_order.tasks.2.counts.tests=30"])


# Converters -------------------------------------------------------------------------------------------------


def squad(*questions: tuple[str, str | None]) -> dict[str, Any]:
    """A document as LAMOL writes it: one article, paragraph and question for each text and answer."""
    articles = [
        {
            "title": "yelp",
            "paragraphs": [
                {
                    "context": text,
                    "qas": [
                        {
                            "question": "Is this review good?",
                            "id": str(number),
                            "answers": [] if answer is None else [{"answer_start": 0, "text": answer}, {"text": "?"}],
                        }
                    ],
                }
            ],
        }
        for number, (text, answer) in enumerate(questions)
    ]
    return {"version": "2.0", "data": articles}


@pytest.mark.parametrize("indent", [None, 2])
def test_squad_files(indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "lamol").mkdir()
    train = squad(("Great food.", "very positive"), ("Cold soup.", "negative"), ("Fine.", "neutral"))
    test = squad(("Slow.", "negative"), ("Nice.", "positive"))
    for split, document in (("train", train), ("test", test)):
        path = tmp_path / "lamol" / f"yelp_to_squad-{split}-v2.0.json"
        path.write_text(json.dumps(document, indent=indent))
    request = compose(
        [
            "task_order=bert_5",
            f"data_root={tmp_path}",
            "task_order.tasks=[{name: yelp, task: bert_yelp}]",
            "task_order.base={train: 2, validation: 1, test: null}",
        ]
    )
    (task,) = tasks_of(request)
    assert [(e.prompt, e.answer) for e in task.test] == [("Slow.", "negative"), ("Nice.", "positive")]
    assert {e.prompt for e in (*task.train, *task.validation)} == {"Great food.", "Cold soup.", "Fine."}
    assert len(source_files(request.config.task_order, request.config.task)) == 2


def test_squad_rows_are_counted_after_conversion(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(squad(("one", "x"), ("two", None), ("three", "y"))))
    made = {"path": str(path), "convert": "squad", "text": ["context"], "label": "answer", "labels": None}
    assert prompts(one(made)) == ["one", "three"]
    drawn = one({**made, "max_rows": 2}).account
    assert drawn is not None and drawn.splits["test"].left_out["over max_rows"] == 1
    asked = one({**made, "template": "{question} {text}"})
    assert prompts(asked)[0] == "Is this review good? one"
    path.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"a.json is not one JSON object, which convert: squad expects"):
        one(made)
    path.write_text(json.dumps({"dta": []}))
    with pytest.raises(ValueError, match=r"record 1 of .*a.json has no list 'data'; it holds: dta"):
        one(made)


def test_multiple_choice(tmp_path: Path) -> None:
    records = [
        {"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1, "subject": ""},
        {"question": " Sky? ", "choices": ["blue", "red", "tall", "wet"], "answer": "A", "subject": ""},
    ]
    (tmp_path / "llama").mkdir()
    path = tmp_path / "llama" / "mmlu.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records[:1]), path)
    chosen = ["task_order=llama_8", f"data_root={tmp_path}", "task_order.base={train: 0, validation: 0, test: null}"]
    chosen += ["task_order.tasks=[{name: mmlu, task: llama_mmlu}]"]
    request = compose(chosen)
    (task,) = tasks_of(request)
    assert prompts(task) == ["Question: 1 + 1?\nChoices:\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"]
    assert answers(task) == ["B"] and task.labels == ("A", "B", "C", "D")
    path.unlink()
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join(json.dumps(record) for record in records))
    (task,) = tasks_of(request)
    assert answers(task) == ["B", "A"] and prompts(task)[1].startswith("Question: Sky?\nChoices:\nA. blue\n")
    for answer in (4, -1, "E", None, True, "1"):
        path.write_text(json.dumps(records[0] | {"answer": answer}))
        with pytest.raises(
            ValueError, match=r"record 1 of .* has 4 choices, but the answer .*index from 0 or a letter"
        ):
            tasks_of(request)


def test_marked_turns(tmp_path: Path) -> None:
    texts = [
        "### Instruction: What is the sentiment?\nChoose. ### Human: Profit rose 5 %. ### Assistant: positive",
        "### Human: Sales\nfell.\n### Assistant:negative\n",
    ]
    (tmp_path / "llama").mkdir()
    path = tmp_path / "llama" / "finance.json"
    path.write_text(json.dumps([{"text": text} for text in texts]))
    chosen = ["task_order=llama_8", f"data_root={tmp_path}", "task_order.base={train: 0, validation: 0, test: null}"]
    chosen += ["task_order.tasks=[{name: finance, task: llama_finance}]"]
    request = compose(chosen)
    (task,) = tasks_of(request)
    assert prompts(task) == ["What is the sentiment?\nChoose.\n\nProfit rose 5 %.", "\n\nSales\nfell."]
    assert answers(task) == ["positive", "negative"]
    for wrong in ("### Human: a", "### Human: a ### Human: b ### Assistant: c", "no marks"):
        path.write_text(json.dumps([{"text": wrong}]))
        with pytest.raises(
            ValueError, match=r"record 1 of .*finance.json has the marks .*expected are ### Instruction:"
        ):
            tasks_of(request)


def test_test_examples_of_one_file_are_drawn_without_replacement(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    records = [{"instruction": "Help.", "input": f"question {i}", "output": f"answer {i}"} for i in range(20)]
    path = tmp_path / "llama" / "medical.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    task = tasks_by_name(
        "task_order=llama_9",
        f"data_root={tmp_path}",
        "task_order.tasks=[{name: medical, task: llama_medical, counts: {train: null, validation: 0, test: 3}}]",
    )["medical"]
    assert (len(task.train), len(task.test), task.labels) == (17, 3, ())
    assert {e.prompt for e in (*task.train, *task.test)} == {f"Help.\n\nquestion {i}" for i in range(20)}
    assert all(e.answer == e.prompt.replace("Help.\n\nquestion", "answer") for e in task.train)


# Releases ---------------------------------------------------------------------------------------------------


def test_trace_release_is_read_by_its_own_layout(tmp_path: Path) -> None:
    for split, size in (("train", 500), ("test", 3)):
        path = tmp_path / "LLM-CL-Benchmark_500" / "20Minuten" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps([{"prompt": f"{split} {i}\nSimplification:", "answer": f"{i}\n"} for i in range(size)])
        )
    task = tasks_by_name(
        "task_order=trace",
        f"data_root={tmp_path}",
        "task_order.variant=500",
        "task_order.tasks=[{name: 20Minuten, task: trace_20minuten}]",
    )["20Minuten"]
    assert (len(task.train), len(task.test)) == (500, 3)
    assert answers(task) == ["0\n", "1\n", "2\n"] and prompts(task)[0] == "test 0\nSimplification:"


def test_o_lora_release(tmp_path: Path) -> None:
    folder = tmp_path / "CL_Benchmark" / "NLI" / "MNLI"
    folder.mkdir(parents=True)
    rows = [{"sentence": "sentence 1: A.\nsentence 2: B.\n", "label": "neutral"}, {"sentence": "C", "label": "-"}]
    (folder / "test.json").write_text(json.dumps(rows))
    (task,) = tasks_of(
        compose(
            [
                "task_order=long_4",
                f"data_root={tmp_path}",
                "task_order.tasks=[{name: mnli, task: o_lora_mnli}]",
                "task_order.base={train: 0, validation: 0, test: null}",
            ]
        )
    )
    # The prompt of uie_dataset_lora.py without the names of task and data set before it, the text's ends stripped.
    assert prompts(task) == [
        'What is the logical relationship between the "sentence 1" and the "sentence 2"? Choose one from the option.\n'
        "Option: neutral, entailment, contradiction \nsentence 1: A.\nsentence 2: B.\nAnswer:"
    ]
    assert answers(task) == ["neutral"]


def test_yes_and_no_are_texts() -> None:
    config = compose(["task_order=long_4"]).config
    options = [
        list((config.task[f"o_lora_{name}"].labels or {}).values()) for name in ("qqp", "boolq", "multirc", "wic")
    ]
    assert options == [["False", "True"], ["True", "False"], ["False", "True"], ["True", "False"]]
