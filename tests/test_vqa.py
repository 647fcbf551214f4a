"""VQA v2 in its released layout: which question is of which kind, Karpathy's splits, mistakes in the files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import run_command

from cl_runner.compose import compose
from cl_runner.data.example import Example
from cl_runner.data.task import Task, build_tasks
from cl_runner.data.vqa import KINDS, Question
from cl_runner.metrics.base import score

#: kind -> a question of it and its type, as the annotations have them.
ASKED = {
    "recognition": ("What is the dog carrying?", "what is the"),
    "location": ("Where is the cat?", "where is the"),
    "judge": ("Is this man happy?", "is this"),
    "commonsense": ("Does the dog like it?", "does the"),
    "count": ("How many birds are there?", "how many"),
    "action": ("Is the man running?", "is the man"),
    "color": ("What color is the car?", "what color is the"),
    "type": ("What kind of tree is it?", "what kind of"),
    "subcategory": ("Which's the fastest?", "none of the above"),
    "causal": ("Why is he sad?", "why"),
}
SPLITS = {"train": ("train2014", 1, "train"), "restval": ("val2014", 2, "restval"), "test": ("val2014", 3, "test")}


def write_release(root: Path, of_each: int = 3) -> Path:
    """A data root with both halves, and pictures: `of_each` questions of every kind in every part."""
    folder = root / "vqa_v2"
    folder.mkdir(parents=True)
    questions: dict[str, list[Any]] = {"train2014": [], "val2014": []}
    annotations: dict[str, list[Any]] = {"train2014": [], "val2014": []}
    images = []
    for half, image, part in SPLITS.values():
        name = f"COCO_{half}_{image:012d}.jpg"
        (root / "coco" / half).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), "red").save(root / "coco" / half / name)
        images.append({"filepath": half, "filename": name, "split": part, "cocoid": image, "sentences": []})
        for place, (kind, (text, type_)) in enumerate(ASKED.items()):
            for number in range(of_each):
                identity = image * 1000 + place * 10 + number
                questions[half].append({"image_id": image, "question": text, "question_id": identity})
                people = [{"answer": kind, "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
                annotations[half].append(
                    {
                        "question_type": type_,
                        "multiple_choice_answer": f"{kind} {part}",
                        "answers": people,
                        "image_id": image,
                        "answer_type": "other",
                        "question_id": identity,
                    }
                )
    about = {"info": {}, "license": {}, "data_type": "mscoco"}
    for half in questions:
        whole: dict[str, Any] = {**about, "data_subtype": half}
        asked = {**whole, "task_type": "Open-Ended", "questions": questions[half]}
        (folder / f"v2_OpenEnded_mscoco_{half}_questions.json").write_text(json.dumps(asked))
        answered = {**whole, "annotations": annotations[half][::-1]}
        (folder / f"v2_mscoco_{half}_annotations.json").write_text(json.dumps(answered))
    (root / "coco" / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("data"))


def tasks_of(root: Path, *overrides: str) -> list[Task]:
    order = [] if any(o.startswith("task_order=") for o in overrides) else ["task_order=vqa_v2"]
    said = {override.partition("=")[0] for override in overrides}
    keys = [f"task_order.{part}.train" for part in ("base", "incremental")]
    counts = [f"{key}=4" for key in keys if key not in said]
    config = compose(["backbone=tiny_llava", *order, *counts, f"data_root={root}", *overrides]).config
    return build_tasks(config.task_order, config.task)


@pytest.mark.parametrize(
    ("text", "type_", "kind"),
    [
        ("Is this woman happy?", "is this", "action"),  # of 58 such questions in VQACL's test set
        ("Are the men on a boat?", "are the", "action"),
        ("Are both men wearing ties?", "are", "action"),
        ("Is this man happy?", "is this", "judge"),  # as all such of PIECE's data
        ("Is this a woman or man?", "is this a", "judge"),
        ("Are these two men on the same team?", "are these", "judge"),
        ("Are these women or men?", "are these", "judge"),
        ("How is the weather?", "how", None),
        ("Has it rained?", "has", "commonsense"),
        ("What number is on the bus?", "what number is", "count"),
    ],
)
def test_a_question_is_of_the_kind_that_its_type_says(text: str, type_: str, kind: str | None) -> None:
    assert Question(1, text, "yes", type_, "p").kind == kind


def test_kinds_share_no_type_and_leave_out_one_of_the_65() -> None:
    types = [type_ for of_kind in KINDS.values() for type_ in of_kind]
    assert len(types) == len(set(types)) == 64 and "how" not in types
    assert {kind: Question(1, *ask[:1], "yes", ask[1], "p").kind for kind, ask in ASKED.items()} == {
        k: k for k in KINDS
    }


def test_orders_of_three_and_of_ten_kinds(root: Path) -> None:
    three = tasks_of(root)
    assert [task.name for task in three] == ["action", "commonsense", "count"]
    ten = tasks_of(root, "task_order=vqa_v2_ten")
    assert [task.name for task in ten] == list(KINDS)
    for task in ten:
        assert {e.prompt for e in (*task.train, *task.test)} == {ASKED[task.name][0]}
        # Karpathy: what is left of COCO's second half is learned from, and tests are on his test pictures alone.
        assert {e.answer.split()[1] for e in task.train} <= {"train", "restval"} and len(task.train) == 4
        assert [e.answer for e in task.test] == [f"{task.name} test"] * 3
        assert {e.picture.name for e in task.test if e.picture} == {"val2014/COCO_val2014_000000000003.jpg"}
    assert {"train", "restval"} == {e.answer.split()[1] for task in ten for e in task.train}
    account = ten[0].account
    assert account is not None and "questions of other kinds" in json.dumps(account.splits["test"].notes)


def test_halves_need_no_file_of_karpathys(root: Path) -> None:
    counts = ("task_order.base.train=2", "task_order.base.validation=1", "task_order.tasks=[{name: action}]")
    (task,) = tasks_of(root, "task_order.task=vqa_v2_halves", *counts)
    assert {e.answer for e in (*task.train, *task.validation)} == {"action train"}
    assert Counter(e.answer for e in task.test) == {"action restval": 3, "action test": 3}


def test_answers_are_scored_in_lower_case_without_punctuation() -> None:
    """The paper's accuracy is of an empty file; this is what we read it as."""
    asked = [Example("?", "Yes"), Example("?", "2"), Example("?", "tennis"), Example("?", "no")]
    assert score("olora_exact_match", ["yes.", " 2", "the tennis", ""], asked, None) == [100, 100, 0, 0]


def test_mistakes_in_the_release(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(where: Path, *more: str) -> str:
        arguments = ["backbone=tiny_llava", "task_order=vqa_v2", f"data_root={where}", f"root={tmp_path}/out", *more]
        assert run_command(arguments) == 2
        return capsys.readouterr().err

    message = said(tmp_path)
    assert "v2_OpenEnded_mscoco_train2014_questions.json" in message and "v2_Questions_Train_mscoco.zip" in message
    named = said(
        root, "task_order.tasks=[{name: colour}]", *(f"task_order.{p}.train=4" for p in ("base", "incremental"))
    )
    assert "no kind of question 'colour'" in named and "Nearest: 'color'" in named
    other = write_release(tmp_path / "other")
    file = other / "vqa_v2" / "v2_mscoco_val2014_annotations.json"
    content = json.loads(file.read_text())
    lost = content["annotations"].pop()
    file.write_text(json.dumps(content))
    assert f"the question {lost['question_id']} of VQA v2 has no annotation" in said(other)
    file.write_text(json.dumps({"images": []}))
    assert "is not as VQA v2 has its files" in said(other)
