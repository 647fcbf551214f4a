"""Shipped task orders and definitions, as published."""

from __future__ import annotations

import functools
import os
from collections import Counter
from pathlib import Path

import pytest
from sources import tasks_of

from cl_runner.compose import compose
from cl_runner.config import TaskOrder
from cl_runner.data.task import build_tasks, source_files

CONF = Path(__file__).parents[1] / "conf"


#: PE (2022.naacl-industry.35), appendix.
ORDER_1 = [
    "Kindle_Store",
    "Arts_Crafts_and_Sewing",
    "Electronics",
    "Magazine_Subscriptions",
    "Pet_Supplies",
    "Sports_and_Outdoors",
    "Prime_Pantry",
    "Office_Products",
    "Movies_and_TV",
    "Automotive",
    "CDs_and_Vinyl",
    "Gift_Cards",
    "Digital_Music",
    "Clothing_Shoes_and_Jewelry",
    "Home_and_Kitchen",
    "Software",
    "Grocery_and_Gourmet_Food",
]
MISSING = {
    "amazon_2": "Kindle_Store Arts_Crafts_and_Sewing Sports_and_Outdoors Movies_and_TV Automotive "
    "Clothing_Shoes_and_Jewelry Software",
    "amazon_3": "Sports_and_Outdoors",
    "amazon_4": "Movies_and_TV Automotive",
}
FIRST_AND_LAST = {
    "amazon_2": ("Pet_Supplies", "Grocery_and_Gourmet_Food"),
    "amazon_3": ("Digital_Music", "Gift_Cards"),
    "amazon_4": ("Magazine_Subscriptions", "Gift_Cards"),
}


@functools.cache
def shipped(name: str) -> TaskOrder:
    return compose([f"task_order={name}"]).config.task_order


def names(name: str) -> list[str]:
    return [task.name for task in shipped(name).tasks]


def test_amazon_orders_as_printed() -> None:
    first = shipped("amazon_1")
    assert names("amazon_1") == ["base", *ORDER_1]
    assert len(first.tasks[0].domains) == 12 and not set(first.tasks[0].domains) & set(ORDER_1)
    for name, missing in MISSING.items():
        printed = shipped(name)
        assert printed.model_copy(update={"tasks": []}) == first.model_copy(update={"tasks": []})
        assert printed.tasks[0] == first.tasks[0]
        assert sorted(names(name)[1:]) == sorted(set(ORDER_1) - set(missing.split()))
        assert (names(name)[1], names(name)[-1]) == FIRST_AND_LAST[name]
        assert names(f"{name}_complete") == [*names(name), *missing.split()]
    assert first.base.model_dump() == {"train": 6000, "validation": 2000, "test": 2000}
    assert first.incremental.model_dump() == {"train": 300, "validation": 100, "test": 100}


@pytest.mark.parametrize("path", sorted((CONF / "task_order").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_order_composes(path: Path) -> None:
    switches = path.stem in ("joint", "single_task")
    config = compose([f"task_order={f'[reviews,{path.stem}]' if switches else path.stem}"]).config
    assert config.task_order.task in config.task
    assert config.task_order.joint == (path.stem == "joint")
    assert config.task_order.restart == (path.stem == "single_task")


def test_data_root_is_named_when_it_is_missing(tmp_path: Path) -> None:
    config = compose(["task_order=fdu_mtl", f"data_root={tmp_path}/nowhere"]).config
    with pytest.raises(ValueError, match="holds no 'nowhere'. Set data_root=FOLDER"):
        build_tasks(config.task_order, config.task)


@pytest.mark.skipif("CL_RUNNER_DATA" not in os.environ, reason="CL_RUNNER_DATA names no data root")
def test_fdu_mtl() -> None:
    config = compose(["task_order=[fdu_mtl,joint]"]).config
    tasks = build_tasks(config.task_order, config.task)
    assert [len(task.train) for task in tasks] == [3000, *[300] * 6]
    assert [len(task.test) for task in tasks] == [1200, *[200] * 6]
    assert Counter(e.domain for e in tasks[0].train) == dict.fromkeys(
        ["books", "dvd", "electronics", "kitchen_housewares", "imdb", "music"], 500
    )
    assert all(Counter(e.answer for e in task.train)["positive"] == len(task.train) // 2 for task in tasks)
    assert len(source_files(config.task_order, config.task)) == 24


TRACE = ["C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten", "Py150"]
#: Numbers of the tasks of `trace`: the published orders (PIECE, TRACE, and the two others of PIECE's authors).
TRACE_ORDERS = {"trace": "12345678", "trace_original": "12384567", "trace_2": "56271348", "trace_3": "32714568"}
OTHER_ORDERS = {
    "trace_whole": "C-STANCE FOMC ScienceQA NumGLUE-cm NumGLUE-ds 20Minuten",
    "trace_english": "FOMC ScienceQA NumGLUE-cm NumGLUE-ds",
    "few_shot_1": "db amazon yahoo ag",
    "few_shot_2": "db amazon ag yahoo",
    "few_shot_3": "yahoo amazon ag db",
    "standard_1": "db amazon yahoo ag",
    "standard_2": "db amazon ag yahoo",
    "standard_3": "yahoo amazon ag db",
    "bert_4": "ag yelp amazon yahoo db",
    "bert_5": "yelp yahoo amazon db ag",
    "bert_6": "db yahoo ag amazon yelp",
    "bert_7": "yelp ag db amazon yahoo",
    "cl_text_4": "ag yelp amazon db",
    "cl_text_5": "yelp amazon db ag",
    "cl_text_6": "db ag amazon yelp",
    "cl_text_7": "yelp ag db amazon",
    "long_4": "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 db ag multirc yahoo",
    "long_5": "multirc boolq wic mnli cb copa qqp rte imdb sst2 db ag yelp amazon yahoo",
    "long_6": "yelp amazon mnli cb copa qqp rte imdb sst2 db ag yahoo multirc boolq wic",
    "long_whole": "cb copa rte yelp amazon sst2 db ag",
    "llama_8": "medical mmlu finance",
    "llama_9": "finance mmlu medical",
}


@pytest.mark.parametrize("name", [*TRACE_ORDERS, *OTHER_ORDERS])
def test_orders_as_published(name: str) -> None:
    config = compose([f"task_order={name}"]).config
    published = (
        [TRACE[int(digit) - 1] for digit in TRACE_ORDERS[name]] if name in TRACE_ORDERS else OTHER_ORDERS[name].split()
    )
    assert [task.name for task in config.task_order.tasks] == published
    assert all((task.task or config.task_order.task) in config.task for task in config.task_order.tasks)


def test_trace_is_scored_as_piece_and_trace_do() -> None:
    config = compose(["task_order=trace"]).config
    made = {task.name: config.task[task.task or ""] for task in config.task_order.tasks}
    letters = ["C-STANCE", "FOMC", "ScienceQA"]
    assert all(made[name].metrics == ["first_letter"] for name in letters)
    assert [made[name].metrics[0] for name in TRACE[2:]] == [
        "bleu_rouge",
        "first_letter",
        "number",
        "number",
        "bleu_rouge",
        "edit_similarity",
    ]
    assert [made[name].released_metrics["piece"] for name in TRACE] == [
        ["piece_stance"],
        ["piece_letter"],
        ["piece_bleu_rouge"],
        ["piece_letter"],
        ["piece_number"],
        ["piece_number"],
        ["piece_bleu_rouge"],
        ["piece_edit_similarity"],
    ]
    assert made["20Minuten"].released_metrics["trace"] == ["trace_sari"]
    assert [made[name].max_new_tokens for name in TRACE] == [16, 16, 256, 256, 16, 16, 256, 256]
    # The published eval split of FOMC is its test split: validation examples come out of the training file.
    assert made["FOMC"].splits["validation"] == "train"


def test_sizes_of_trace_follow_the_variant() -> None:
    for variant in (500, 1000, 5000):
        taken = compose(["task_order=trace", f"task_order.variant={variant}"]).config.task_order
        assert (taken.base.train, taken.incremental.train, taken.base.test) == (variant, variant, None)


def test_label_spaces() -> None:
    for name, classes in (("bert_6", 33), ("cl_text_7", 23)):
        config = compose([f"task_order={name}"]).config
        labels = [config.task[task.task or ""].labels or {} for task in config.task_order.tasks]
        assert len({label for of_task in labels for label in of_task.values()}) == classes
        if name == "bert_6":
            assert config.task["bert_yelp"] == config.task["bert_amazon"]


def test_sampled_setting_counts_texts_by_class() -> None:
    for name in ("bert_4", "bert_7"):
        whole, sampled = compose([f"task_order={name}"]).config, compose([f"task_order={name}_sampled"]).config
        assert [t.name for t in whole.task_order.tasks] == [t.name for t in sampled.task_order.tasks]
        assert (whole.task_order.base.train, whole.task_order.incremental.test) == (115_000, 7_600)
        for task in sampled.task_order.tasks:
            made = sampled.task[task.task or ""]
            assert task.counts is not None and task.counts.test is None and made.balance
            assert task.counts.train == task.counts.validation == 2_000 * len(made.labels or {})


def test_hub_takes_the_place_of_the_archive() -> None:
    given = [f"task.bert_{name}.revision=0123456" for name in ("ag", "yelp", "amazon", "yahoo", "db")]
    config = compose(["task_order=bert_5", "task=bert_hub", *given, "task.bert_amazon.dataset=OWNER/NAME"]).config
    archive = compose(["task_order=bert_5"]).config
    for task in config.task_order.tasks:
        hub, files = config.task[task.task or ""], archive.task[task.task or ""]
        assert hub.source == "hub" and hub.path is None
        assert list((hub.labels or {}).values()) == list((files.labels or {}).values())
    with pytest.raises(ValueError, match=r"task.bert_ag.revision has no value. Type: .*task.bert_ag.revision=VALUE"):
        compose(["task_order=bert_5", "task=bert_hub"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trace", r"LLM-CL-Benchmark_1000.*Nor is there .*trace/C-STANCE/test.parquet. Download TRACE's data"),
        ("few_shot_3", r"split2/yahoo/test.parquet does not exist.*Lifelong-Fewshot-Language-Learning"),
        ("bert_6", r"dbpedia_to_squad-test-v2.0.json does not exist.*LAMOL's archive.*bert_hub"),
        ("cl_text_4", r"cl_text/ag/test.parquet does not exist.*O-LoRA"),
        ("long_4", r"NLI/MNLI/test.json does not exist.*git clone https://github.com/cmnfriend/O-LoRA"),
        ("llama_8", r"medical.json\. The hub's data sets are LinhDuong/chatdoctor-200k"),
    ],
)
def test_missing_files_say_what_to_download(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said + r".* Set data_root=FOLDER, or CL_RUNNER_DATA, to the folder"):
        tasks_of(compose([f"task_order={name}", f"data_root={tmp_path}"]))
