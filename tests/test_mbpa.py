"""MbPA++ against its definition: what is kept and replayed, the nearest, local steps by autograd, weights undone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plans import numbers_of
from safetensors.torch import load_file
from test_plan_measured import WIDE
from test_replay import two_tasks
from test_resume import command, dies_and_goes_on
from tiny import learn, seeded, tiny_config, tiny_learner, tiny_words

from cl_runner.compose import compose
from cl_runner.evaluate import evaluate
from cl_runner.methods.memory import own_examples, place_of, recall
from cl_runner.planning import peaks
from cl_runner.planning.architecture import Architecture
from cl_runner.planning.imitation import Ledger
from cl_runner.planning.numbers import counts_of, setting_of, skeleton, text_lengths
from cl_runner.planning.peaks import peak_bytes
from cl_runner.planning.planner import Planner
from cl_runner.planning.prices import Prices
from cl_runner.planning.seconds import seconds
from cl_runner.planning.speed import Speed
from cl_runner.retrieval import nearest
from cl_runner.retrieval.nearest import Nearest

FEW = ("method=mbpa", "method.mbpa.neighbours=4", "method.mbpa.local_steps=3", "method.mbpa.every=4")


def test_all_examples_enter_once_and_some_are_replayed(tmp_path: Path) -> None:
    _, method, _, base, later = two_tasks(tmp_path, *FEW, "method.mbpa.batch_size=5")
    memory = method.methods["mbpa"].memory
    assert [sorted(kept.tolist()) for kept in memory] == [
        [[task, row] for row in range(n)] for task, n in ((0, 48), (1, 24))
    ]
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
        for number, kept in enumerate(mbpa.memory):
            for place, key in list(zip(kept.tolist(), mbpa._keys_of(learner, number), strict=True))[:3]:
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
    places = torch.cat(mbpa.memory).tolist()
    keys = torch.cat([mbpa._keys_of(learner, number) for number in (0, 1)])
    for number in (0, 3):
        batch = learner.collate([task.test[number]], answers=False)
        nearest = (keys - mbpa._key(learner, batch)).norm(dim=1).argsort()[:4]
        with torch.no_grad(), learner.restored():
            mbpa.adapt(learner, recall(learner.tasks, [places[i] for i in nearest.tolist()]))
            alone = learner.answer(batch, learner.answering(task))[0]
        assert alone.text == found[number].text
    assert mbpa.describe(learner, task, Path()) == {"memory": len(places)}
    mbpa.local_steps = 0
    plain = evaluate(learner, method, [task], config.evaluation, after="x")[task.name]
    mbpa.local_steps = 3
    assert [one.logits for one in plain] != [one.logits for one in found], "local steps change what is answered by"


def test_the_nearest_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, asked = torch.randn(300, 12, generator=seeded()), torch.randn(9, 12, generator=seeded(1))
    vectors[17] = vectors[5]
    wanted = torch.stack([(vectors.double() - one.double()).norm(dim=1).argsort(stable=True)[:7] for one in asked])
    assert torch.equal(Nearest([vectors])(asked, 7), wanted)
    monkeypatch.setattr(nearest, "AT_ONCE", 12 * 31)
    parts = [vectors[:100], vectors[100:101], vectors[101:]]
    assert torch.equal(Nearest(parts)(asked, 7), wanted), "in parts"
    assert Nearest(parts)(vectors[17:18], 2).tolist() == [[5, 17]], "of equal ones the first"
    assert Nearest(parts)(asked, 1000).shape == (9, 300)


class Products:
    """What FAISS's flat index computes: distances by products, which round."""

    def __init__(self, width: int):
        self.kept: list[Any] = []

    def add(self, rows: Any) -> None:
        self.kept.append(torch.from_numpy(rows))

    def search(self, asked: Any, count: int) -> tuple[Any, Any]:
        kept, questions = torch.cat(self.kept), torch.from_numpy(asked)
        squares = questions.square().sum(1, keepdim=True) - 2 * questions @ kept.T + kept.square().sum(1)
        return tuple(each.numpy() for each in squares.topk(count, largest=False))  # type: ignore[return-value]


@pytest.mark.parametrize("real", [False, True])
def test_faiss_finds_the_same(real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if real:
        pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    else:
        monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(IndexFlatL2=Products))
    monkeypatch.setattr(nearest, "MANY", 1000)
    monkeypatch.setattr(nearest, "has_faiss", lambda: True)
    vectors, asked = torch.randn(2000, 8, generator=seeded()), torch.randn(40, 8, generator=seeded(1))
    vectors[500:600] = vectors[3]  # more equal ones than are asked for
    asked[7], asked[8] = vectors[3], vectors[3] + 1e-6
    parts = [vectors[:900], vectors[900:]]
    assert Nearest(parts[:1], "faiss")._index is None, "few are searched here"
    found = Nearest(parts, "faiss")
    assert found._index is not None and torch.equal(found(asked, 5), Nearest(parts)(asked, 5))
    assert found(asked[7:8], 5).tolist() == [[3, 500, 501, 502, 503]]
    far = [part + 1000 for part in parts]  # where products say nothing any more
    assert torch.equal(Nearest(far, "faiss")(asked + 1000, 5), Nearest(far)(asked + 1000, 5))


def test_without_faiss_the_search_is_exact_which_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MANY", 10)
    monkeypatch.setattr("cl_runner.methods.mbpa.has_faiss", lambda: False)
    monkeypatch.setattr(nearest, "has_faiss", lambda: False)
    config = tiny_config(tmp_path, *FEW, "method.mbpa.search=faiss", "training.max_steps=2")
    learner, method, tasks = tiny_learner(config)
    said: list[str] = []
    learner.warn = said.append
    for task in tasks[:2]:
        learn(learner, method, task, config)
    assert [line for line in said if "pip install faiss-cpu" in line] == said != []
    assert Nearest([torch.randn(30, 4)], "faiss")(torch.zeros(1, 4), 3).shape == (1, 3)


def test_keys_lie_on_disk_and_are_made_again_where_they_are_not_what_was_written(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, *FEW, "training.max_steps=2")
    learner, method, tasks = tiny_learner(config)
    learner.store = tmp_path / "kept"
    for task in tasks[:2]:
        learn(learner, method, task, config)
    mbpa, files = method.methods["mbpa"], sorted(learner.store.iterdir())
    assert [path.name for path in files] == ["mbpa_00.safetensors", "mbpa_01.safetensors"] and not mbpa._keys
    assert all(tensor.shape[1:] in ((2,), ()) for tensor in mbpa.state_dict()["memory"]), "a checkpoint has rows alone"
    wanted = [mbpa._keys_of(learner, number).clone() for number in (0, 1)]
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    files[1].unlink()
    other, again, _ = tiny_learner(config)  # as a process that goes on
    again.load_state_dict(method.state_dict())
    said: list[str] = []
    other.warn, other.store = said.append, learner.store
    for number, keys in enumerate(wanted):
        assert torch.equal(again.methods["mbpa"]._keys_of(other, number), keys)
    assert "mbpa_00.safetensors is damaged" in said[0] and "mbpa_01.safetensors is gone" in said[1] and len(said) == 2
    assert torch.equal(load_file(files[0])["keys"], wanted[0])  # the order of a header's names is safetensors' affair
    files[0].write_bytes(files[1].read_bytes())  # another memory's
    again.methods["mbpa"]._keys.clear()
    assert torch.equal(again.methods["mbpa"]._keys_of(other, 0), wanted[0])


def test_an_answer_that_is_broken_off_leaves_the_weights(learned: Any) -> None:
    learner, method, _, _ = learned
    mbpa, before = method.methods["mbpa"], learner.weights()
    batch = learner.collate(learner.tasks[1].test[:2], answers=False)

    def stopped(one: Any) -> Any:
        assert any(not torch.equal(p, before[name]) for name, p in learner.parameters().items()), "it had moved"
        raise KeyboardInterrupt

    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        mbpa.predict(learner, batch, stopped)
    assert all(torch.equal(p, before[name]) for name, p in learner.parameters().items())
    assert all(p.grad is None for p in learner.parameters().values())


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


def test_of_selected_entries_no_others_adapt(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=[mbpa,piece_s]", *FEW[1:], "training.max_steps=2")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    mbpa, before = method.methods["mbpa"], learner.weights()
    with learner.restored():
        mbpa.adapt(learner, tasks[0].train[:4])
        for name, value in learner.weights().items():
            moved = (value != before[name]).view(-1).nonzero()[:, 0]
            assert set(moved.tolist()) <= set(mbpa.entries.get(name, torch.empty(0)).tolist())
            assert name not in mbpa.entries or len(moved), name


def test_nothing_is_kept_of_other_tasks_where_each_starts_anew(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, *FEW)
    learner, method, tasks = tiny_learner(config)
    learner.restart = True
    for task in tasks[:2]:
        learn(learner, method, task, config)
    mbpa = method.methods["mbpa"]
    assert [place_of(e) for e in own_examples(tasks[1])] == sorted(mbpa.memory[0].tolist()) and len(mbpa.memory) == 1


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
    assert peak_bytes(prices, many, "evaluate", 0) - peak_bytes(prices, few, "evaluate", 0) > 16 * weights


def test_a_plan_is_within_a_quarter_of_what_lives_while_answers_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "HEAP_SHARE", 1.0)  # what the heap keeps beside it is measured on real runs
    few = ("method.mbpa.local_steps=2", "method.mbpa.neighbours=8", "method.mbpa.pass_size=4")
    config = tiny_config(tmp_path, *WIDE[1:], "method=mbpa", *few)
    learner, method, tasks = tiny_learner(config)
    weights = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    for task in tasks[:2]:
        learn(learner, method, task, config)
    with Ledger() as ledger:
        evaluate(learner, method, [tasks[1]], config.evaluation, after="x")
    network = sum(p.numel() * p.element_size() for p in method.methods["mbpa"]._network.parameters())
    lengths = text_lengths(learner.family, tasks)
    s = setting_of(config, counts_of(config, tasks), skeleton(config.backbone, 3), "cpu", lengths)
    planned = Planner(lambda: skeleton(config.backbone, 3), 0).memory(s)["evaluate"]
    assert planned == pytest.approx(weights + network + ledger.peak_bytes, rel=0.25)
