"""From a configuration to the numbers of its plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
from plans import meta, numbers_of, setting
from tiny import tiny_words
from transformers import PreTrainedModel

from cl_runner.compose import compose
from cl_runner.needs import Needs
from cl_runner.planning.numbers import (
    Lengths,
    counts_of,
    local_family,
    local_tasks,
    setting_of,
    skeleton,
    text_lengths,
)
from cl_runner.planning.peaks import sums_bytes
from cl_runner.planning.planner import Planner
from cl_runner.planning.setting import Answers
from cl_runner.planning.tasks import Counts


@pytest.mark.parametrize(
    ("method", "trains", "measured"),
    [
        ("seq_ft", ["all", "all", "all"], [0, 0, 0]),
        ("frozen", ["all", "nothing", "nothing"], [0, 0, 0]),
        ("ewc", ["all", "all", "all"], [0, 48, 72]),
        ("pe", ["all", "selected", "selected"], [0, 48, 72]),
        ("pe_rand", ["all", "selected", "selected"], [0, 48, 72]),  # its EWC measures
        ("piece_s", ["selected", "selected", "selected"], [48, 24, 24]),
        ("lwf", ["all", "all", "all"], [0, 0, 0]),
        ("layer_norm", ["listed", "listed", "listed"], [0, 0, 0]),
        ("slm", ["retrieved", "retrieved", "retrieved"], [0, 0, 0]),
    ],
)
def test_what_trains_and_what_is_measured(method: str, trains: list[str], measured: list[int]) -> None:
    s = numbers_of(f"method={method}")
    assert [task.trains for task in s.tasks] == trains
    assert [task.measured for task in s.tasks] == measured
    assert [task.examples for task in s.tasks] == [48, 24, 24]
    assert [task.steps for task in s.tasks] == [12, 6, 6]


def test_options_reach_the_numbers() -> None:
    s = numbers_of("method=piece_s", "importance.max_examples=30", "training.base.micro_batch=2")
    assert [task.measured for task in s.tasks] == [30, 24, 24]
    assert s.micro_batch == {"base": 2, "incremental": 8}
    assert s.needs.sums == 2 and s.needs.clustered and s.per_example
    assert not any("embeddings.word" in name for name in s.needs.candidates)
    rounded = numbers_of("method=piece_s", "method.piece.compat=[bf16_accumulation]")
    assert not rounded.per_example
    joint = numbers_of("method=seq_ft", "task_order=[reviews,joint]")
    assert [task.examples for task in joint.tasks] == [48, 72, 96]
    alone = numbers_of("method=pe", "task_order=[reviews,single_task]")
    assert {task.trains for task in alone.tasks} == {"all"} and alone.restart


def test_numbers_of_a_language_model() -> None:
    config = compose(tiny_words("backbone=tiny_llama", "method=lwf", "task.reviews.max_new_tokens=5")).config
    model = skeleton(config.backbone, 0)
    counts = [Counts("base", 48, 20), Counts("kettles", 24, 10), Counts("software", 24, 10)]
    unknown = setting_of(config, counts, model, "cpu", None)
    assert unknown.family == "causal" and unknown.max_length == 256 and unknown.max_whole == 256 + 64
    assert unknown.needs.teacher == "logits" and unknown.needs.example_bytes == 0
    assert unknown.evaluated == 4 * 40
    lengths = Lengths(prompts=[10, 20, 30], answers=[3, 5], whole=[14, 26])
    s = setting_of(config, counts, model, "cpu", lengths)
    assert (s.max_length, s.mean_length, s.max_whole, s.mean_whole) == (30, 20, 26, 26)
    assert s.answers == Answers(5, 4, 26, 26, 5, 5)
    assert dataclasses.replace(s, max_length=8).max_whole == 13  # a shorter prompt, the same answer
    mean = s.at_mean()
    assert (mean.max_length, mean.max_whole) == (20, 24)
    assert [answers.mean_generated for answers in written(lengths, model, counts)] == [11, 14.25]
    likely = compose(tiny_words("backbone=tiny_llama", "method=lwf", "evaluation.labels=likelihood")).config
    s = setting_of(likely, counts, model, "cpu", lengths)
    assert s.answers == Answers(5, 4, 26, 26, 0, 0, labels=3, label_length=len("2 stars") + 1, by_label=160)
    sorted_by_length = compose(tiny_words("backbone=tiny_llama", "method=lwf", "training.group_by_length=true")).config
    assert setting_of(sorted_by_length, counts, model, "cpu", lengths).mean_whole == 20


def written(lengths: Lengths, model: PreTrainedModel, counts: Sequence[Counts]) -> Iterator[Answers]:
    """What is written where 16 tokens may be, in an order and in tasks by themselves.

    Of base's answers 4 tokens are the longest of a batch, of the others' 12 and 30. The order asks for 20 + 10 + 10
    answers before the first and after every task: base's three times of four when it was learned, kettles' twice,
    software's once. By themselves each is asked for four times as well, once when it was learned.
    """
    known = dataclasses.replace(lengths, by_task=[[3, 4], [12], [30]])
    for order in ((), ("task_order=[reviews,single_task]",)):
        config = compose(tiny_words("backbone=tiny_llama", "method=seq_ft", *order)).config
        answers = setting_of(config, counts, model, "cpu", known).answers
        assert answers is not None and answers.generated == 16
        yield answers


def test_lengths_of_prompts_and_answers() -> None:
    config = compose(tiny_words("backbone=tiny_t5", "method=seq_ft")).config
    tasks = local_tasks(config)
    assert tasks is not None
    lengths = text_lengths(local_family(config.backbone, tasks), tasks)
    assert lengths is not None
    train = [example for task in tasks for example in task.train]
    assert lengths.answers == [len(example.answer) + 1 for example in train]  # bytes and the end token
    assert lengths.whole == [len(example.prompt) + 1 + len(example.answer) + 1 for example in train]
    assert len(lengths.prompts) == len(train) + 40


def test_tasks_seen_so_far_are_evaluated() -> None:
    # After task 1: 20, after task 2: 20 + 10, after task 3: 20 + 10 + 10.
    assert numbers_of("method=seq_ft", "evaluation.tasks=seen").evaluated == 90
    assert numbers_of("method=seq_ft").evaluated == 4 * 40


def test_importance_of_what_may_be_selected() -> None:
    s = numbers_of("method=piece_s")
    assert s.needs.measured == s.needs.candidates
    assert numbers_of("method=pe").needs.measured == numbers_of("method=pe").needs.candidates
    assert numbers_of("method=ewc").needs.measured is None
    planner = Planner(lambda: meta("bert"), 0)
    weights = sum(p.numel() for p in meta("bert").parameters())
    measured = {"bert.encoder.layer.0.output.dense.weight": 64 * 256}
    plain = setting(device="cuda", needs=Needs("all", "all", mean_bytes=4))
    fewer = dataclasses.replace(plain, needs=Needs("all", "all", mean_bytes=4, measured=measured), importance_batch=1)
    assert sums_bytes(planner.prices, plain) == 4 * weights and sums_bytes(planner.prices, fewer) == 4 * 64 * 256
    assert planner.disk(dataclasses.replace(fewer, cache_bytes=10**9))["cached importance"] == 4 * 64 * 256
    small = planner.prices.importance(fewer)
    assert small.peak_bytes < planner.prices.importance(dataclasses.replace(plain, importance_batch=1)).peak_bytes


def test_a_hub_order_without_numbers_says_what_to_type() -> None:
    config = compose(tiny_words("method=seq_ft", "task_order.incremental.train=null")).config
    with pytest.raises(ValueError, match=r"task_order\.incremental\.train=1000"):
        counts_of(config, None)
    counts = "{train: 5, validation: 0, test: null}"
    tasks = f"task_order.tasks=[{{name: base, domains: [novels]}}, {{name: kettles, counts: {counts}}}]"
    config = compose(tiny_words("method=seq_ft", tasks)).config
    with pytest.raises(ValueError, match=r"task_order\.tasks\[1\]\.counts\.test=1000"):
        counts_of(config, None)
