"""The real data, where they are: sizes as published, and no text in two splits."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from sources import tasks_by_name, tasks_of

from cl_runner.compose import compose
from cl_runner.data.task import Task, label_union

real_data = pytest.mark.skipif("CL_RUNNER_DATA" not in os.environ, reason="CL_RUNNER_DATA names no data root")


def sizes(tasks: list[Task]) -> dict[str, tuple[int, int, int]]:
    return {task.name: (len(task.train), len(task.validation), len(task.test)) for task in tasks}


def shared_prompts(task: Task) -> int:
    """Distinct prompts that are in the training and in the test set."""
    return len({e.prompt for e in task.train} & {e.prompt for e in task.test})


@real_data
def test_real_trace() -> None:
    tasks = tasks_of(compose(["task_order=trace_whole"]))
    assert sizes(tasks) == {
        "C-STANCE": (1000, 0, 2000),
        "FOMC": (1000, 0, 496),
        "ScienceQA": (1000, 0, 2000),
        "NumGLUE-cm": (1000, 0, 81),
        "NumGLUE-ds": (1000, 0, 325),
        "20Minuten": (1000, 0, 200),
    }
    # Overlaps of the release itself.
    assert {task.name: n for task in tasks if (n := shared_prompts(task))} == {"FOMC": 10, "NumGLUE-ds": 31}
    by_name = {task.name: task for task in tasks}
    assert by_name["C-STANCE"].labels == ("A", "B", "C") and by_name["ScienceQA"].labels == ()
    assert all(e.prompt.endswith("\nAnswer:") and e.answer[0] in "ABCDE" for e in by_name["ScienceQA"].train)
    assert all(e.prompt.endswith("Simplification:") and e.answer.endswith("\n") for e in by_name["20Minuten"].train)
    english = tasks_of(compose(["task_order=trace_english"]))
    for task in english:
        assert [e.content() for e in task.train] == [e.content() for e in by_name[task.name].train]
    smaller = tasks_by_name("task_order=trace_english", "task_order.variant=500")
    assert {len(task.train) for task in smaller.values()} == {500}
    with pytest.raises(ValueError, match=r"base.train=5000 needs 5000 .*trace/FOMC/train.parquet has 1000 left"):
        tasks_by_name("task_order=trace_english", "task_order.variant=5000")


@real_data
def test_real_trace_tasks_that_are_not_whole() -> None:
    tasks = tasks_by_name(
        "task_order=trace",
        "task_order.tasks=[{name: MeetingBank, task: trace_meetingbank}, {name: Py150, task: trace_py150}]",
        "task.trace_meetingbank.splits={train: eval_small, validation: eval_small, test: eval_small}",
        "task.trace_py150.splits.test=eval_small",
        "task_order.base={train: 30, validation: 0, test: 20}",
    )
    assert sizes(list(tasks.values())) == {"MeetingBank": (30, 0, 20), "Py150": (1000, 0, 50)}
    assert all(e.prompt.endswith("<EOL>") for e in tasks["Py150"].test)
    assert all(e.prompt.endswith("Summary:") for e in tasks["MeetingBank"].test)


@real_data
def test_real_few_shot() -> None:
    classes = {"ag": 4, "amazon": 5, "db": 14, "yahoo": 10}
    samples = []
    for name, variant in (("few_shot_1", 0), ("few_shot_2", 1), ("few_shot_3", 1)):  # the third sample is not there
        tasks = tasks_of(compose([f"task_order={name}", f"task_order.variant={variant}"]))
        assert sizes(tasks) == {t.name: (16 * c, 16 * c, 100 * c) for t in tasks for c in [classes[t.name]]}
        for task in tasks:
            assert not shared_prompts(task)
            assert (
                set(Counter(e.answer for e in task.train).values()) == {16} and len(task.labels) == classes[task.name]
            )
            assert len({label.split()[0] for label in task.labels}) == len(task.labels)  # for first_word
        samples.append({task.name: [e.content() for e in task.train] for task in tasks})
    assert samples[0] != samples[1] == samples[2]


@real_data
def test_real_cl_text() -> None:
    tasks = tasks_of(compose(["task_order=cl_text_4"]))
    assert sizes(tasks) == {
        "ag": (4000, 0, 7600),
        "yelp": (4000, 0, 1000),
        "amazon": (5000, 0, 7600),
        "db": (5000, 0, 2600),
    }
    assert len(label_union(tasks)) == 23
    assert not any(shared_prompts(task) for task in tasks)
    small = ["base.train=60", "base.test=40", "incremental.train=60", "incremental.test=40"]
    for number in (5, 6, 7):
        cut = tasks_of(compose([f"task_order=cl_text_{number}", *[f"task_order.{count}" for count in small]]))
        assert set(sizes(cut).values()) == {(60, 0, 40)} and set(label_union(cut)) == set(label_union(tasks))


@real_data
def test_real_o_lora() -> None:
    tasks = tasks_by_name("task_order=long_whole")
    assert {name: (len(t.train), len(t.test)) for name, t in tasks.items()} == {
        "cb": (250, 56),
        "copa": (400, 100),
        "rte": (2000, 277),
        "yelp": (4000, 1000),
        "amazon": (5000, 7600),
        "sst2": (2000, 872),
        "db": (5000, 2600),
        "ag": (4000, 7600),
    }
    assert not any(shared_prompts(task) for task in tasks.values())
    for name, task in tasks.items():
        assert all(e.prompt.endswith("\nAnswer:") for e in task.train)
        listed = f"\nOption: {', '.join(task.labels)} \n"
        assert all((listed in e.prompt) == (name != "copa") for e in task.train)
        assert {e.answer for e in task.train} == set(task.labels)
