"""IDBR against its release's definition, written out: halves, losses, replays, memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_replay import two_tasks
from test_resume import command, dies_and_goes_on
from tiny import learn, tiny_config, tiny_learner, tiny_words
from torch.nn import functional

from cl_runner.batch import Part
from cl_runner.layers.spaces import content, in_halves
from cl_runner.methods.idbr import nearest_to_centres
from cl_runner.methods.memory import own_examples, place_of

IDBR = ("method=idbr", "backbone.dropout=0.0")
FEW = (*IDBR, "method.idbr.every=3", "method.idbr.batch_size=5", "method.idbr.share=0.25")


def test_halves_by_hand() -> None:
    ids = torch.tensor([[2, 11, 12, 13, 14, 3], [2, 21, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0]])
    mask = (ids != 0).long()
    assert content(mask) == [4, 1, 0]
    read, seen, types = in_halves(ids, mask, [3, 1, 0], False, 0)
    assert read.tolist() == [[2, 11, 12, 13, 3, 14, 3], [2, 21, 3, 3, 0, 0, 0], [2, 3, 3, 0, 0, 0, 0]]
    assert types.tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]
    assert torch.equal(seen, (read != 0).long())
    read, seen, types = in_halves(ids, mask, [1, 1, 0], True, 0)
    assert read.tolist() == [[2, 12, 13, 14, 3, 11, 3], [2, 3, 21, 3, 0, 0, 0], [2, 3, 3, 0, 0, 0, 0]]
    assert types.tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]
    assert torch.equal(seen, (read != 0).long())


def spaces_of(model: Any, ids: Any, mask: Any) -> dict[str, Any]:
    """The release's model: the encoder's first state, two layers with tanh, three linear ones."""
    separator = ids[0][mask[0].sum() - 1]
    types = ((ids == separator).cumsum(1) - (ids == separator).long() > 0).long()
    state = model.bert(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state[:, 0]
    head = model.classifier
    general = torch.tanh(state @ head.general.weight.T + head.general.bias)
    specific = torch.tanh(state @ head.specific.weight.T + head.specific.bias)
    both = torch.cat([general, specific], 1)
    return {
        "general": general,
        "specific": specific,
        "labels": both @ head.labels.weight.T + head.labels.bias,
        "tasks": specific @ head.tasks.weight.T + head.tasks.bias,
        "order": general @ head.order.weight.T + head.order.bias,
    }


@pytest.mark.parametrize(("first", "replays"), [(True, False), (False, False), (False, True)])
def test_losses_are_the_releases(first: bool, replays: bool, tmp_path: Path) -> None:
    """Value and gradient of a step against train_step of the release, on the same halves."""
    strengths = {"order": 0.8, "task": 0.7, "current": 0.6, "replay": 4.0, "general": 0.3, "specific": 0.9}
    options = [f"method.idbr.{name}_strength={value}" for name, value in strengths.items()]
    config = tiny_config(tmp_path, *FEW, *options)
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    old = learner.weights()
    task = tasks[0] if first else tasks[1]
    learner.choose(task, method.trains(learner, task))
    learner.begin()
    idbr = method.methods["idbr"]
    with torch.no_grad():
        for p in learner.parameters().values():
            p.add_(0.02 * torch.randn_like(p))
    idbr._step, idbr._replays = 7, replays
    examples = [*tasks[0].train[:3], *task.train[4:7]]
    batch = method.prepare(learner, Part(examples), learner.collate(examples))
    learner.model.train()
    output = learner.forward(batch)
    loss = output.loss + method.loss(learner, Part(examples), batch, output)
    names = [n for n, p in learner.parameters().items() if p.requires_grad]
    found = torch.autograd.grad(loss, [learner.parameters()[n] for n in names], allow_unused=True)

    # The release cuts x at random, its copy anew; features of the old model are of x cut in its middle.
    model: Any = learner.model
    ids, mask = batch["input_ids"], batch["attention_mask"]
    answers = [learner.family.labels.index(e.answer) for e in examples]
    labels = torch.tensor(answers * 2)
    now = spaces_of(model, ids, mask)
    expected = functional.cross_entropy(now["labels"], labels)
    expected = expected + 0.8 * functional.cross_entropy(now["order"], torch.tensor([0] * 6 + [1] * 6))
    if not first:
        with torch.no_grad(), learner.at(old):
            plain = learner.collate(examples)
            middle = [n // 2 for n in content(plain["attention_mask"])]
            pad = learner.family.tokenizer.pad_token_id
            read, seen, _ = in_halves(plain["input_ids"], plain["attention_mask"], middle, False, pad)
            before = spaces_of(model, read, seen)
        kept = 0.9 * functional.mse_loss(now["specific"][:6], before["specific"])
        kept = kept + 0.3 * functional.mse_loss(now["general"][:6], before["general"])
        expected = expected + (4.0 if replays else 0.6) * kept
        if replays:
            which = torch.tensor([e.task for e in examples] * 2)
            expected = expected + 0.7 * functional.cross_entropy(now["tasks"][:, :2], which)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(expected, [learner.parameters()[n] for n in names], allow_unused=True)
    for name, one, other in zip(names, found, wanted, strict=True):
        if other is None:
            assert one is None or not one.any(), name
        else:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)
    told = {name: learner.terms[f"idbr/{name}"] for name in ("order", "old", "task") if f"idbr/{name}" in learner.terms}
    assert set(told) == {"order"} | (set() if first else {"old"}) | ({"task"} if replays else set())


def test_texts_are_read_twice_cut_at_random(tmp_path: Path) -> None:
    learner, method, tasks = tiny_learner(tiny_config(tmp_path, *FEW))
    learner.choose(tasks[0], method.trains(learner, tasks[0]))
    learner.begin()
    examples = tasks[0].train[:20]
    plain = learner.collate(examples)
    cuts = set()
    for step in (0, 1):
        method.methods["idbr"]._step = step
        batch = method.prepare(learner, Part(examples), plain)
        assert batch.examples == tuple(examples) * 2 and batch["idbr_order"].tolist() == [0] * 20 + [1] * 20
        assert torch.equal(batch["labels"], torch.cat([plain["labels"]] * 2))
        for row in range(20):
            text = plain["input_ids"][row][plain["attention_mask"][row].bool()].tolist()
            halves = [
                batch["input_ids"][place][batch["attention_mask"][place].bool()].tolist() for place in (row, row + 20)
            ]
            cut = int((batch["idbr_types"][row] == 0).sum()) - 2
            other = int((batch["idbr_types"][row + 20] == 0).sum()) - 2
            whole = text[1:-1]
            assert halves[0] == [text[0], *whole[:cut], text[-1], *whole[cut:], text[-1]]
            start = len(whole) - other
            assert halves[1] == [text[0], *whole[start:], text[-1], *whole[:start], text[-1]]
            assert 1 <= cut < len(whole) and 1 <= start < len(whole)
            cuts.add((step, row, cut, start))
    again = method.prepare(learner, Part(examples[3:5]), learner.collate(examples[3:5]))
    assert torch.equal(again["idbr_types"][0, :20], batch["idbr_types"][3, :20]), "whatever the pass"
    assert {(row, *c) for s, row, *c in cuts if s == 0} != {(row, *c) for s, row, *c in cuts if s == 1}


def test_every_few_batches_each_old_task_has_its_share_of_as_many_steps(tmp_path: Path) -> None:
    _, method, _, base, later = two_tasks(tmp_path, *FEW)
    assert all(len(steps) == 1 for steps in base.steps), "nothing is old"
    memory = method.methods["idbr"].memory
    assert [len(kept) for kept in memory] == [12, 6]
    assert [len(steps) for steps in later.steps] == [1, 1, 2] * 2
    for steps in later.steps[2::3]:
        kinds = [(part.kind, example) for parts in steps for part in parts for example in part.examples]
        new = [example for kind, example in kinds if kind == "new"]
        old = [example for kind, example in kinds if kind == "idbr"]
        assert len(set(new)) == 8 and len(set(old)) == 5
        assert {example.task for example in new} == {1} and all(place_of(example) in memory[0] for example in old)
        assert [sum(len(part.examples) for part in parts) for parts in steps] == [7, 6]
        for parts in steps:
            of = sum(len(part.examples) for part in parts)
            assert [part.weight for part in parts] == pytest.approx([len(part.examples) / of for part in parts])


def test_the_memory_is_of_each_cluster_the_nearest_to_its_centre(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    centres = 10 * chance.standard_normal((4, 6))
    vectors = np.concatenate([centre + chance.standard_normal((9, 6)) for centre in centres])
    wanted = []
    for start in range(0, 36, 9):
        members = vectors[start : start + 9]
        wanted.append(start + int(np.linalg.norm(members - members.mean(0), axis=1).argmin()))
    assert nearest_to_centres(vectors, 4, 0) == wanted
    assert nearest_to_centres(np.repeat(vectors[:2], 4, 0), 4, 0) == [0, 4], "no more than there are different ones"
    config = tiny_config(tmp_path, *FEW, "training.max_steps=2")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    own = own_examples(tasks[0])
    learner.model.eval()
    with torch.no_grad():
        states = np.concatenate([learner.features(learner.collate([e], answers=False)).numpy() for e in own])
    kept = [own[row] for row in nearest_to_centres(states, 12, learner.seed_of("idbr", 0))]
    assert method.methods["idbr"].memory == [[place_of(example) for example in kept]]


def test_random_examples_are_kept_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, *FEW, "method.idbr.kept=random", "training.max_steps=1")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    assert len(method.methods["idbr"].memory[0]) == 12
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    method.check(learner.model, 10)
    method.methods["idbr"].kept = "kmeans"
    with pytest.raises(ValueError, match="Type: pip install scikit-learn"):
        method.check(learner.model, 10)


def test_the_layer_of_tasks_has_its_rate_and_the_separator_its_room(tmp_path: Path) -> None:
    learner, method, tasks = tiny_learner(tiny_config(tmp_path, *FEW))
    what = method.trains(learner, tasks[0])
    assert set(learner.parameters()) - set(what.names or ()) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert what.rates == {"classifier.tasks.*": 5e-4}
    assert {n for n in learner.parameters() if n.startswith("classifier.tasks.")} == {
        "classifier.tasks.weight",
        "classifier.tasks.bias",
    }
    positions = learner.model.config.max_position_embeddings
    method.check(learner.model, positions - 1)
    with pytest.raises(ValueError, match=f"Type: backbone.max_length={positions - 1}"):
        method.check(learner.model, positions)


def test_nothing_is_old_where_each_task_starts_anew(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, *FEW, "training.max_steps=3")
    learner, method, tasks = tiny_learner(config)
    learner.restart = True
    for task in tasks[:2]:
        learn(learner, method, task, config)
    assert method.methods["idbr"].memory == [] and "idbr/old" not in learner.terms


@pytest.mark.usefixtures("no_pictures")
def test_death_in_the_middle_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*FEW, "backbone.dropout=0.1", "evaluation.tasks=seen", "task_order.base.train=24"]
    options += ["training.incremental.micro_batch=3"]

    def typed(root: Path) -> list[str]:
        return tiny_words(*command(root), *options, "task_order.base.test=4", "task_order.incremental.test=4")

    dies_and_goes_on(typed, (9,), "accuracy.csv", tmp_path, monkeypatch)
