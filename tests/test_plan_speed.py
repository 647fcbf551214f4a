"""Of what a plan says of time: equal layers counted from few, the sample that is timed, and the time left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import CONFIGURATIONS, TASKS, meta, setting
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from cl_runner.needs import Needs, ProbePass
from cl_runner.planning import imitation, speed
from cl_runner.planning.alike import Cost, Counted, extended, stack_of
from cl_runner.planning.planner import Planner
from cl_runner.planning.prices import Prices
from cl_runner.planning.sample import FEWEST, PASS_SECONDS, SHORT, sampled, smaller
from cl_runner.planning.seconds import COMPARED
from cl_runner.planning.setting import Setting
from cl_runner.planning.speed import EFFICIENCY, Speed
from cl_runner.planning.work import _planned
from cl_runner.tracking.pace import Paces


def deep(kind: str, layers: int = 6) -> PreTrainedModel:
    """A model of many equal layers, without weights."""
    options: Any = CONFIGURATIONS[kind].to_dict() | {"num_hidden_layers": layers}
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(type(CONFIGURATIONS[kind])(**options))
    return model


PASSES: dict[str, Callable[[Prices, Setting], Any]] = {
    "all": lambda prices, s: prices.train(s, TASKS[0]),
    "all, checkpointed": lambda prices, s: prices.train(dataclasses.replace(s, gradient_checkpointing=True), TASKS[0]),
    "selected, checkpointed": lambda prices, s: prices.train(
        dataclasses.replace(s, gradient_checkpointing=True), TASKS[1]
    ),
    "importance": lambda prices, s: prices.importance(s),
    "evaluation": lambda prices, s: prices.evaluate(s),
}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_equal_layers_are_counted_from_few_to_the_byte(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s = setting(needs=Needs("all", "all"))
    assert stack_of(deep(kind)) is not None
    few = Planner(lambda: deep(kind), 0).prices
    passed: list[int | None] = []
    counted = imitation.Imitation._counted

    def count(self: Any, stages: Any, layers: int | None = None) -> list[Counted]:
        passed.append(layers)
        return counted(self, stages, layers)

    with monkeypatch.context() as patched:
        patched.setattr(imitation.Imitation, "_counted", count)
        found = {name: price(few, s) for name, price in PASSES.items()}
    assert set(passed) == {2, 3}
    monkeypatch.setattr(imitation, "stack_of", lambda model: None)
    whole = Planner(lambda: deep(kind), 0).prices
    assert found == {name: price(whole, s) for name, price in PASSES.items()}


def test_layers_that_differ_are_all_passed() -> None:
    assert stack_of(meta("bert")) is None, "two layers alone"
    model = deep("llama")
    stack = stack_of(model)
    assert stack is not None and stack.size == 6
    names = [name for name, _ in model.named_parameters()]
    assert stack.alike(names)
    assert not stack.alike([name for name in names if ".layers.5." in name]), "the last layer alone"
    with stack.cut(2):
        assert len(model.model.layers) == 2
    assert [name for name, _ in model.named_parameters()] == names
    model.model.layers[3].self_attn.scaling = 0.5
    assert stack_of(model) is None


def test_what_a_further_layer_adds_by_hand() -> None:
    """Each keeps 10 bytes going forward, and 3 of them when it has gone back; in between one needs 5 more."""

    def stages(layers: int) -> list[Counted]:
        forward, back = [7, *[5, 5, -5 + 5] * layers, 100, -100], [20, *[-4, -3] * layers, -20]
        peak = 7 + 10 * layers
        return [
            Counted(Cost(peak + 100, 2 * layers, 1, 3), 0, forward),
            Counted(Cost(peak + 20, layers, 0, layers), peak, back),
        ]

    found = extended(stages(2), stages(3), 9)
    assert found == [counted.cost for counted in stages(9)]
    assert extended(stages(2), [stages(3)[0], Counted(Cost(0, 0, 0, 0), 0, [1, 2])], 9) is None


def test_a_sample_tells_what_passes_reach(tmp_path: Path) -> None:
    speed, s = Speed(1e12, 1e12, 1e-9), setting(needs=Needs("all", "all"))
    s = dataclasses.replace(s, probes=(ProbePass("held text", 8, None, 0, 4),))
    planner = Planner(lambda: meta("bert"), 0, tmp_path)
    found = sampled(planner.prices, lambda: meta("bert"), s, lambda: speed)
    assert found.reached is not None and set(found.reached) == {"read", "train", "importance", "probe"}
    assert all(0 < share < 0.5 for share in found.reached.values()), "no processor is as fast as this"
    cost = planner.prices.train(s, TASKS[0])
    assert found.seconds(cost, 1.0, "train") == pytest.approx(speed.seconds(cost) / found.reached["train"])
    assert dataclasses.replace(speed, reached={}).seconds(cost) == pytest.approx(speed.seconds(cost) / EFFICIENCY)
    # Another process of the same kind times nothing; a damaged file is made anew.
    again = Planner(lambda: meta("bert"), 0, tmp_path).prices
    assert sampled(again, lambda: meta("bert"), s, _nothing) == found
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    assert sampled(again, lambda: meta("bert"), s, lambda: speed) != found
    # What the sample cannot do is not in the way of a plan, which says so.
    untimed = sampled(Planner(lambda: meta("bert"), 0).prices, _nothing, s, lambda: speed)
    assert dataclasses.replace(untimed, untimed=None) == speed and "is not to be made" in (untimed.untimed or "")
    assert "could not be timed: AssertionError" in str(dataclasses.replace(untimed, reached={}))


def test_what_a_slow_processor_cannot_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers so wide that the shortest pass takes long no sample is made; products are of a size that ends."""
    slow, s = Speed(1e3, 1e9, 1e-5, reached={}), setting()
    prices = Planner(lambda: meta("bert"), 0).prices
    found = sampled(prices, lambda: meta("bert"), s, lambda: slow)
    assert not found.reached and "their shortest pass takes" in str(found)
    products: list[torch.Size] = []
    ticks = iter(range(10_000))
    monkeypatch.setattr(speed, "now", lambda device: float(next(ticks)))  # whatever is done takes a second and more
    monkeypatch.setattr(torch, "mm", lambda a, b, out: products.extend([a.shape, b.shape]))
    speed.calibrate(8192, 2048, torch.bfloat16, torch.device("cpu"))
    assert products == [torch.Size([1024, 1024])] * 4, "once to warm up, once for the time"


def test_a_coarse_clock_tells_the_time_of_quick_work(monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0

    def work() -> None:
        nonlocal done
        done += 1

    monkeypatch.setattr(speed, "now", lambda device: round(done * 2e-6, 2))  # of 2 microseconds, in hundredths
    assert speed._quickest(work, torch.device("cpu")) == pytest.approx(2e-6, rel=0.5)


def _nothing() -> Any:
    raise AssertionError("is not to be made")


def test_a_sample_is_cut_to_what_may_be_spent() -> None:
    s = setting()
    assert smaller(s, PASS_SECONDS) is s
    half = smaller(s, 2 * PASS_SECONDS)
    assert (half.micro_batch["base"], half.importance_batch, half.evaluation_batch) == (4, 2, 4)
    assert half.max_length == s.max_length
    least = smaller(s, 1000 * PASS_SECONDS)
    assert (least.micro_batch["base"], least.max_length) == (FEWEST, SHORT)


def test_importance_counts_the_comparison_and_what_is_selected() -> None:
    planner, s = Planner(lambda: meta("bert"), 0), setting()
    speed = Speed(1e9, 1e9, 1e-5)
    slow = dataclasses.replace(speed, streamed_per_second=1e8)
    one = dataclasses.replace(s, needs=dataclasses.replace(s.needs, candidates={}))
    few, many = (planner.seconds(each, speed)["importance"] for each in (one, s))
    assert many > few > 0, "what is selected from is gone through"
    assert planner.seconds(s, slow)["importance"] > many
    twice = dataclasses.replace(one, tasks=(TASKS[0], dataclasses.replace(TASKS[1], measured=2 * 64)))
    assert planner.seconds(twice, speed)["importance"] == pytest.approx(few * (128 + COMPARED) / (64 + COMPARED))


def test_the_time_left_takes_costs_of_examples_from_a_plan() -> None:
    phases = {
        "load": {"seconds": 0.0, "examples": 0},
        "train": {"seconds": 20.0, "examples": 10},
        "importance": {"seconds": 9.0, "examples": 1},
        "probe": {"seconds": None, "examples": 4},
    }
    assert _planned({"phases": phases}) == {"train": 1.0, "importance": 4.5}
    assert _planned({}) == {}


def test_each_kind_of_phase_has_its_own_pace() -> None:
    plan = {"a/train": 10.0, "a/evaluate": 2.0, "b/train": 10.0, "b/evaluate": 2.0}
    paces = Paces()
    paces.add("train", 10.0, 10.0)
    assert paces.left(plan, position=10.0, elapsed=10.0, worked=10.0) == pytest.approx(14.0)
    paces.add("evaluate", 20.0, 2.0)  # ten times what was announced
    assert paces.left(plan, position=12.0, elapsed=30.0, worked=12.0) == pytest.approx(10 + 20)
    # What lies between the phases is shared out.
    assert paces.left(plan, position=12.0, elapsed=60.0, worked=12.0) == pytest.approx(2 * (10 + 20))
