"""MbPA++ against its definition: what is kept and replayed, the nearest, local steps by autograd, weights undone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import numbers_of
from test_replay import two_tasks
from test_resume import command, dies_and_goes_on
from tiny import learn, seeded, tiny_config, tiny_learner, tiny_words

from cl_runner.compose import compose
from cl_runner.evaluate import evaluate
from cl_runner.methods.memory import own_examples, place_of, recall
from cl_runner.planning.architecture import Architecture
from cl_runner.planning.numbers import skeleton
from cl_runner.planning.peaks import peak_bytes
from cl_runner.planning.prices import Prices
from cl_runner.planning.seconds import seconds
from cl_runner.planning.speed import Speed
from cl_runner.retrieval import nearest
from cl_runner.retrieval.nearest import Nearest

FEW = ("method=mbpa", "method.mbpa.neighbours=4", "method.mbpa.local_steps=3", "method.mbpa.every=4")


def test_all_examples_enter_once_and_some_are_replayed(tmp_path: Path) -> None:
    _, method, _, base, later = two_tasks(tmp_path, *FEW, "method.mbpa.batch_size=5")
    memory = method.methods["mbpa"].memory
    assert [sorted(kept) for kept in memory] == [[[task, row] for row in range(n)] for task, n in ((0, 48), (1, 24))]
    replays = [number for number, steps in enumerate([*base.steps, *later.steps]) if len(steps) == 2]
    assert replays == [3, 7, 11, 15], "every fourth batch, counted through all tasks"
    for steps in (base.steps[3], later.steps[3]):
        drawn = steps[1][0].examples
        assert len(set(drawn)) == 5 and steps[1][0].kind == "replay"
    assert all(e.task == 0 for steps in base.steps[3:4] for e in steps[1][0].examples)
    first = {e for steps in base.steps[:4] for e in steps[0][0].examples}
    assert set(base.steps[3][1][0].examples) <= first, "drawn from what was seen so far"


def test_a_share_enters(tmp_path: Path) -> None:
    _, method, _, _, _ = two_tasks(tmp_path, *FEW, "method.mbpa.share=0.25")
    assert [len(kept) for kept in method.methods["mbpa"].memory] == [12, 6]


@pytest.fixture(scope="module", params=["tiny_bert", "tiny_llama"])
def learned(request: Any, tmp_path_factory: Any) -> tuple[Any, Any, Any, Any]:
    """Two tasks, and the model that nothing has trained."""
    config = tiny_config(tmp_path_factory.mktemp("mbpa"), *FEW, f"backbone={request.param}", "training.max_steps=3")
    learner, method, tasks = tiny_learner(config)
    start, _, _ = tiny_learner(config)
    start.model.eval()
    for task in tasks[:2]:
        learn(learner, method, task, config)
    return learner, method, start, config


def test_keys_are_what_the_backbone_made_of_texts_before_it_learned(learned: Any) -> None:
    learner, method, start, _ = learned
    mbpa = method.methods["mbpa"]
    with torch.no_grad():
        for kept, keys in zip(mbpa.memory, mbpa.keys, strict=True):
            for place, key in list(zip(kept, keys, strict=True))[:3]:
                batch = start.collate(recall(learner.tasks, [place]), answers=False)
                torch.testing.assert_close(start.features(batch)[0], key, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_local_steps_are_those_of_autograd(learned: Any, optimizer: str) -> None:
    """The loss written out, -log p of the neighbours and the distance, and torch's own optimizer, in a loop."""
    learner, method, other, _ = learned
    mbpa = method.methods["mbpa"]
    mbpa.optimizer, mbpa.local_rate, mbpa.strength = optimizer, 0.01, 0.3
    mbpa.pass_size = 3 if optimizer == "sgd" else 32  # Adam makes whole steps of rounding
    examples = own_examples(learner.tasks[0])[:5]
    weights = learner.weights()
    other.put(weights)
    other.model.eval()
    trained = {n: p.requires_grad_() for n, p in other.parameters().items() if n in mbpa.adapted}
    make: Any = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    steps = make(trained.values(), lr=0.01, **({"momentum": 0.9} if optimizer == "sgd" else {"eps": 1e-6}))
    for _ in range(mbpa.local_steps):
        steps.zero_grad()
        batch = other.collate(examples)
        output = other.family.forward(other.model, batch)
        chances = output.logits.log_softmax(-1)[torch.arange(len(output.targets)), output.targets]
        distance: Any = sum((p - weights[n]).square().sum() for n, p in trained.items())
        (0.3 * distance - chances.mean()).backward()
        steps.step()
    with torch.no_grad(), learner.restored():
        mbpa.adapt(learner, examples)
        found = learner.weights()
    moved = 0
    for name, values in other.parameters().items():
        if not name.endswith("key.bias"):  # whose gradient is rounding alone
            close = 2e-5 if optimizer == "sgd" else 5e-4
            torch.testing.assert_close(found[name], values.detach(), rtol=1e-4, atol=close)
        moved += not torch.equal(found[name], weights[name])
    assert moved > 5
    assert all(torch.equal(value, weights[name]) for name, value in learner.weights().items()), "undone, bit for bit"


def test_a_question_is_answered_at_its_own_weights(learned: Any) -> None:
    """Each as if it were alone, by its own neighbours; afterwards the weights are what they were, bit for bit."""
    learner, method, _, config = learned
    mbpa = method.methods["mbpa"]
    mbpa.optimizer, mbpa.local_rate, mbpa.strength = "sgd", 0.02, 0.001
    task = learner.tasks[1]
    before = learner.weights()
    flags = {name: p.requires_grad for name, p in learner.parameters().items()}
    learner.evaluation = config.evaluation
    found = evaluate(learner, method, [task], config.evaluation, after="x")[task.name]
    assert all(torch.equal(value, before[name]) for name, value in learner.weights().items())
    assert flags == {name: p.requires_grad for name, p in learner.parameters().items()}
    places = [place for kept in mbpa.memory for place in kept]
    keys = torch.cat(mbpa.keys)
    for number in (0, 3):
        batch = learner.collate([task.test[number]], answers=False)
        nearest = (keys - mbpa._key(learner, batch)).norm(dim=1).argsort()[:4]
        with torch.no_grad(), learner.restored():
            mbpa.adapt(learner, recall(learner.tasks, [places[i] for i in nearest.tolist()]))
            alone = learner.answer(batch, learner.answering(task))[0]
        assert alone.text == found[number].text
    said = mbpa.describe(learner, task, Path())
    assert said["memory"] == len(places) and said["milliseconds_per_example"] > 0
    mbpa.local_steps = 0
    plain = evaluate(learner, method, [task], config.evaluation, after="x")[task.name]
    mbpa.local_steps = 3
    assert [one.logits for one in plain] != [one.logits for one in found], "local steps change what is answered by"


def test_the_nearest_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, asked = torch.randn(300, 12, generator=seeded()), torch.randn(9, 12, generator=seeded(1))
    vectors[17] = vectors[5]
    wanted = torch.stack([(vectors.double() - one.double()).norm(dim=1).argsort(stable=True)[:7] for one in asked])
    assert torch.equal(Nearest(vectors)(asked, 7), wanted)
    monkeypatch.setattr(nearest, "AT_ONCE", 12 * 31)
    assert torch.equal(Nearest(vectors)(asked, 7), wanted), "in parts"
    assert Nearest(vectors)(vectors[17:18], 2).tolist() == [[5, 17]], "of equal ones the first"
    assert Nearest(vectors)(asked, 1000).shape == (9, 300)


def test_an_index_finds_nearly_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    vectors, asked = torch.randn(2000, 8, generator=seeded()), torch.randn(20, 8, generator=seeded(1))
    assert torch.equal(Nearest(vectors, "faiss")(asked, 5), Nearest(vectors)(asked, 5)), "few are searched exactly"
    monkeypatch.setattr(nearest, "MANY", 1000)
    exact, found = Nearest(vectors)(asked, 5), Nearest(vectors, "faiss")(asked, 5)
    right = sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True))
    assert right >= 70, "of 100"


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, method, _ = tiny_learner(tiny_config(tmp_path, *FEW, "method.mbpa.search=faiss"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Type: pip install faiss-cpu"):
        method.check(learner.model, 10)


def test_what_trained_adapts(tmp_path: Path) -> None:
    """Beside adapters nothing else moves, and under single_task no other task is remembered."""
    config = tiny_config(tmp_path, "method=[mbpa,seq_lora]", *FEW[1:])
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    mbpa, before = method.methods["mbpa"], learner.weights()
    assert mbpa.adapted and all("lora_" in name or "classifier" in name for name in mbpa.adapted)
    with learner.restored():
        mbpa.adapt(learner, tasks[0].train[:4])
        moved = {name for name, value in learner.weights().items() if not torch.equal(value, before[name])}
    assert moved and moved <= set(mbpa.adapted)


def test_nothing_is_kept_of_other_tasks_where_each_starts_anew(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, *FEW)
    learner, method, tasks = tiny_learner(config)
    learner.restart = True
    for task in tasks[:2]:
        learn(learner, method, task, config)
    mbpa = method.methods["mbpa"]
    assert [place_of(e) for e in own_examples(tasks[1])] == sorted(mbpa.memory[0]) and len(mbpa.keys) == 1


@pytest.mark.usefixtures("no_pictures")
def test_death_in_the_middle_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory, keys and the counter of batches go on, and so do the answers."""
    options = [*FEW[:2], "method.mbpa.local_steps=1", "method.mbpa.every=4", "evaluation.tasks=seen"]

    def typed(root: Path) -> list[str]:
        return tiny_words(*command(root), *options, "task_order.base.test=3", "task_order.incremental.test=2")

    dies_and_goes_on(typed, (9,), "accuracy.csv", tmp_path, monkeypatch)


def test_plans_know_what_answers_cost() -> None:
    """Passes of local steps before each answer after a task, in time and memory; none before the first task."""
    options = ["method=mbpa", "method.mbpa.pass_size=8", "evaluation.tasks=all", "evaluation.batch_size=1"]
    few, many = (numbers_of(*options, f"method.mbpa.local_steps={steps}") for steps in (0, 6))
    assert few.adapting() is None and many.adapted == 3 * (20 + 10 + 10) < many.evaluated == 4 * (20 + 10 + 10)
    adapting, task = many.adapting() or (many, many.tasks[0])
    assert adapting.pass_size(task) == 8 and task.largest_part == 32 and task.trains == "all"
    config = compose(tiny_words(*options)).config
    prices = Prices(Architecture(lambda: skeleton(config.backbone, 3)))
    speed = Speed(flops_per_second=1e9, bytes_per_second=1e12, seconds_per_operation=0.0)
    one = speed.seconds(prices.train(adapting, task), many.mean_whole / many.max_whole)
    more = seconds(prices, many, speed)["evaluate"] - seconds(prices, few, speed)["evaluate"]
    assert more == pytest.approx(120 * 6 * 4 * one, rel=0.01)
    weights = prices.architecture.parameters(many)
    assert peak_bytes(prices, many, "evaluate", 0) - peak_bytes(prices, few, "evaluate", 0) > 20 * weights
