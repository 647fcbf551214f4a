"""What methods say of themselves, and what a plan makes of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from plans import numbers_of
from tiny import TINY, run_command, tiny, tiny_config, tiny_learner, tiny_words

from cl_runner.build import build_method
from cl_runner.compose import compose
from cl_runner.needs import Added, Asks, Needs, combine
from cl_runner.planning.numbers import (
    asked_after,
    counts_of,
    local_family,
    local_tasks,
    setting_of,
    skeleton,
    text_lengths,
)
from cl_runner.planning.peaks import phases
from cl_runner.planning.planner import Planner
from cl_runner.planning.seconds import work
from cl_runner.planning.speed import Speed
from cl_runner.planning.tasks import Counts, ask, task_numbers


def needs_of(*overrides: str) -> Needs:
    """Of the methods of a tiny run."""
    config = compose(tiny_words(*overrides)).config
    return ask(build_method(config.method), config, skeleton(config.backbone, 3))


# A chain ------------------------------------------------------------------------------------------------------------


def test_a_chain_needs_what_its_methods_do() -> None:
    def one_more(earlier: Sequence[int], epochs: Sequence[int]) -> Sequence[int]:
        return [*epochs, sum(earlier)]

    def doubled(earlier: Sequence[int], epochs: Sequence[int]) -> Sequence[int]:
        return [2 * examples for examples in epochs]

    said = {
        "chooser": Needs("all", "selected", candidates={"w": 9}, fraction=0.5, entry_bytes=1, epochs=one_more),
        "fisher": Needs(measures=frozenset({"old_tasks"}), measured="selected", sums=2, mean_bytes=4, entry_bytes=4),
        "mine": None,
        "memory": Needs(memory_bytes=7, teacher="kept", adds=lambda *_: Added(5, 1), several_parts=True),
        "teacher": Needs(teacher="logits", example_bytes=3, adds=lambda *_: Added(1), epochs=doubled),
        "joined": Needs(weight_bytes=2, largest_part=lambda batch: 2 * batch),
    }
    needs = combine(said, "chooser")
    assert (needs.first, needs.later, needs.fraction, needs.measured) == ("all", "selected", 0.5, {"w": 9})
    assert (needs.measures, needs.sums, needs.sum_item, needs.mean_bytes) == ({"old_tasks"}, 2, 4, 4)
    assert (needs.entry_bytes, needs.weight_bytes, needs.example_bytes, needs.memory_bytes) == (5, 2, 3, 7)
    assert (needs.teacher, needs.several_parts, needs.unsaid) == ("logits", True, ("mine",))
    assert needs.epochs is not None and needs.adds is not None and needs.largest_part is not None
    assert needs.epochs([3, 4], [10]) == [20, 14]
    assert needs.adds([3], 1, 10) == Added(6, 1)
    assert needs.largest_part(8) == 16
    assert combine({"fisher": said["fisher"]}, None).measured is None  # all weights train, and all are measured
    assert combine({"mine": None}, "mine").first is None


def test_a_method_that_chooses_says_both() -> None:
    with pytest.raises(AssertionError, match="both first and later"):
        Needs(first="all")


# Methods that do not say --------------------------------------------------------------------------------------------

MINE = """
from dataclasses import dataclass
from typing import ClassVar
from cl_runner.methods.base import Method
from cl_runner.trained import Trained

@dataclass
class Beside(Method):
    strength: float

@dataclass
class Choosing(Method):
    chooses: ClassVar[bool] = True

    def trains(self, learner, task):
        return Trained()
"""


@pytest.fixture
def own_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments for a folder with two methods that do not say what they need."""
    (tmp_path / "own_methods.py").write_text(MINE)
    options = tmp_path / "conf" / "method"
    options.mkdir(parents=True)
    for name, rest in (("mine", "Beside\n  strength: 1.0"), ("choosing", "Choosing")):
        text = f"# @package _global_.method\n{name}:\n  _target_: own_methods.{rest}\n"
        (options / f"{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return [f"--config-dir={tmp_path / 'conf'}", *TINY, f"root={tmp_path / 'runs'}"]


def test_a_method_that_does_not_say_is_named(own_methods: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["plan", *own_methods, "method=[ewc,mine]"]) == 0
    assert "Not in this plan: method mine, which does not say what it needs" in capsys.readouterr().out
    assert run_command(["plan", "--json", *own_methods, "method=[ewc,mine]"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["unsaid"] == ["method mine"]
    assert run_command(["plan", "--json", *TINY, "method=ewc"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["unsaid"] == []
    assert content["trainable"] == known["trainable"] and content["disk"] == known["disk"]


def test_a_chooser_that_does_not_say_is_not_guessed(
    own_methods: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["plan", *own_methods, "method=choosing"]) == 2
    said = "method choosing does not say what it needs (Method.needs), so this run cannot be planned"
    assert said in capsys.readouterr().err
    assert run_command([*own_methods, "method=choosing", "training.max_steps=1"]) == 0
    assert f"No plan of this run: {said}; the run itself is not concerned" in capsys.readouterr().out
    assert not list(tmp_path.rglob("plan.json"))


# Old examples -------------------------------------------------------------------------------------------------------


def summary_of(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the only run below a folder; and its plan."""
    (path,) = root.rglob("summary.json")
    return json.loads(path.read_text()), json.loads((path.parent / "plan.json").read_text())


@pytest.mark.parametrize(
    ("overrides", "examples"),
    [
        (["method=replay", "method.replay.share=0.1"], [96, 48 + 2 * 5, 48 + 2 * (5 + 2)]),
        (["method=replay_trace"], [96, 48 + 5, 48 + 5 + 2]),
        (["method=replay_piece"], [96, 48 + 2 * 5, 48 + 2 * (5 + 2)]),
        (["method=replay", "method.replay.way=periodic", "method.replay.every=3"], [96, 48 + 2 * 8, 48 + 2 * 2 * 8]),
        (["method=replay_online"], [2 * 96 - 8, 96, 96]),
        (["method=[replay,der]", "training.max_steps=4"], [3 * 32 - 16, 3 * (8 + 8 + 8 + 5), 3 * (8 + 8 + 8 + 7)]),
    ],
)
def test_old_examples_are_counted_as_the_run_meets_them(
    overrides: list[str], examples: list[int], tmp_path: Path
) -> None:
    """But for the first batch of all, when the memory is empty yet."""
    few = ["task_order.base.test=3", "task_order.incremental.test=3"]
    assert run_command(tiny(tmp_path, *overrides, *few)) == 0
    details = summary_of(tmp_path)[0]["tasks_detail"]
    config = compose(tiny(tmp_path, *overrides, *few)).config
    needs = ask(build_method(config.method), config, skeleton(config.backbone, 3))
    planned = task_numbers(config, needs, counts_of(config, None))
    assert [task["examples_seen"] for task in details] == examples
    first = planned[0].passed - examples[0]
    assert first in (0, 8, 16) and [task.passed for task in planned[1:]] == examples[1:]
    assert [task.steps for task in planned] == [task["optimizer_steps"] for task in details]
    assert not needs.unsaid


def test_a_memory_with_logits_by_hand() -> None:
    assert needs_of("method=der", "method.der.size=50").memory_bytes == 50 * 4 * 3  # an example has three logits
    spoken = needs_of("method=der", "method.der.size=50", "backbone=tiny_llama", "backbone.max_answer_length=20")
    assert spoken.memory_bytes == 50 * 4 * 20 * 259
    s = numbers_of("method=der", "method.der.size=50")
    planner = Planner(lambda: skeleton(compose([*TINY, "method=der"]).config.backbone, 3), 0)
    without = numbers_of("method=replay_online")  # the same otherwise, but for the distance of logits
    for phase in ("evaluate", "train base", "train incremental"):
        assert planner.peak(s, phase) - planner.peak(without, phase) >= 4 * 3 * 50
    assert planner.peak(s, "load") == planner.peak(without, "load")
    assert planner.disk(s)["state while running"] - planner.disk(without)["state while running"] == 2 * 4 * 3 * 50
    assert work(s)["train"][0] == 3 * 2 * (48 + 24 + 24)


def test_parts_of_a_step_are_passes_of_their_own() -> None:
    plain, parts = numbers_of("method=seq_ft"), numbers_of("method=replay_online")
    assert [parts.pass_size(task) for task in parts.tasks] == [8, 8, 8]
    assert not any(plain.accumulates(task) for task in plain.tasks)
    assert all(parts.accumulates(task) for task in parts.tasks)
    periodic = numbers_of("method=replay", "method.replay.way=periodic", "method.replay.batch_size=20")
    assert [periodic.pass_size(task) for task in periodic.tasks] == [8, 8, 8]  # too few batches to replay any
    periodic = numbers_of(
        "method=replay", "method.replay.way=periodic", "method.replay.batch_size=20", "method.replay.every=2"
    )
    assert [periodic.pass_size(task) for task in periodic.tasks] == [8, 20, 20]
    assert not any(periodic.accumulates(task) for task in periodic.tasks)
    cut = numbers_of("method=replay_online", "training.incremental.micro_batch=3")
    assert [cut.pass_size(task) for task in cut.tasks] == [8, 3, 3]


def test_a_larger_part_takes_a_larger_pass() -> None:
    config = compose([*TINY, "method=seq_ft", "training.base.micro_batch=12"]).config
    needs = Needs("all", "all", adds=lambda earlier, *_: Added(10 * len(earlier)), largest_part=lambda batch: 2 * batch)
    tasks = task_numbers(config, needs, [Counts("base", 48, 5), Counts("kettles", 24, 5), Counts("software", 24, 5)])
    assert [task.largest_part for task in tasks] == [8, 16, 16]
    assert [task.passed for task in tasks] == [96, 48 + 10, 48 + 20]
    assert [task.later for task in tasks] == [False, True, True]


# Answers between tasks, examples before questions -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "after"),
    [
        (["method=opr"], [48, 48 + 24, 0]),
        (["method=opr_sc", "method.opr.candidates=10"], [10, 20, 0]),
        (["method=opr", "task_order=[reviews,single_task]"], [0, 0, 0]),
        (["method=seq_ft"], [0, 0, 0]),
    ],
)
def test_answers_to_old_prompts_are_planned(overrides: list[str], after: list[int]) -> None:
    config = compose(tiny_words(*overrides, "backbone=tiny_llama")).config
    tasks = local_tasks(config)
    model = skeleton(config.backbone, 3)
    counts = counts_of(config, tasks)
    needs = ask(build_method(config.method), config, model)
    assert [sum(texts) for texts in asked_after(config, needs, counts)] == after
    s = setting_of(config, counts, model, "cpu", text_lengths(local_family(config.backbone, tasks), tasks))
    assert s.asked == sum(after) and ("answers" in phases(s)) == (s.asked > 0)
    if not s.asked:
        return
    most = max(max(texts) for texts in asked_after(config, needs, counts) if texts)
    assert needs.asks is not None and s.asking().evaluation_batch == min(needs.asks.batch_size, most)
    assert work(s)["answers"][0] == s.asked and s.answers is not None and s.asked_answers is not None
    # Of learned tasks answers end as their data's do; before, they may be as long as they may.
    assert s.asked_answers.mean_generated < s.answers.mean_generated
    planner, speed = Planner(lambda: skeleton(config.backbone, 3), 0), Speed(1e9, 1e9, 0.0)
    found = planner.seconds(s, speed)
    again = planner.seconds(
        dataclasses.replace(s, needs=dataclasses.replace(s.needs, asks=Asks(sum, 16, False))), speed
    )
    assert found["answers"] > again["answers"] if "opr_sc" in overrides[0] else found["answers"] == again["answers"] > 0
    assert planner.peak(s, "answers") <= planner.peak(s, "evaluate")  # 16 at once, there 64


def test_examples_before_questions_are_planned(tmp_path: Path) -> None:
    """As long as the prompts that a run makes."""
    config = tiny_config(tmp_path, "method=icl", "backbone=tiny_llama", "method.icl.shots=3", "backbone.max_length=320")
    learner, method, tasks = tiny_learner(config)
    icl: Any = method.methods["icl"]
    tested = [example for task in tasks for example in task.test]
    asked = [dataclasses.replace(one, prompt=icl._prompt(learner, one)) for one in tested]
    lengths = learner.family.lengths(asked, answers=False)
    s = setting_of(config, counts_of(config, tasks), learner.model, "cpu", text_lengths(learner.family, tasks))
    assert s.mean_length == pytest.approx(sum(lengths) / len(lengths), rel=0.15)
    assert max(lengths) <= s.max_length <= 320
    plain = min(learner.family.lengths(tested, answers=False))
    assert min(lengths) > 1.5 * plain, "no example stands before a question"
