"""What methods may ask of a learner: gradients, features, local changes that are undone, what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import learn, tiny_config, tiny_learner

from cl_runner.batch import Batch
from cl_runner.data.example import Example
from cl_runner.trained import Trained

FAMILIES = ("bert", "llama", "gpt2", "t5")


def learner_of(tmp_path: Path, *overrides: str) -> tuple[Any, Any, Any, Any]:
    config = tiny_config(tmp_path, "backbone.dropout=0.0", *overrides)
    return *tiny_learner(config), config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["seq_ft", "piece_s"])
def test_gradient_of_a_mean_over_targets(method: str, family: str, tmp_path: Path) -> None:
    """Whatever the passes; of compact values their entries; gradients that are there stay what they are."""
    learner, chain, tasks, config = learner_of(tmp_path, f"backbone=tiny_{family}", f"method={method}")
    learn(learner, chain, tasks[0], config)
    chain.select(learner, tasks[1])
    learner.choose(tasks[1], chain.trains(learner, tasks[1]))
    examples = tasks[1].train[:7]
    plain = learner.params()
    loss = learner.forward(learner.collate(examples)).loss
    full = dict(zip(plain, torch.autograd.grad(loss, list(plain.values()), allow_unused=True), strict=True))
    with learner.holding():
        marks = {name: torch.full_like(value, 3.0) for name, value in learner.trained.items()}
        for name, value in learner.trained.items():
            value.grad = marks[name]
        for size in (7, 3, 1):
            found = learner.gradient(examples, size)
            for name, gradient in found.items():
                whole = torch.zeros_like(plain[name]) if full[name] is None else full[name]
                torch.testing.assert_close(gradient, learner.part(name, whole), rtol=1e-3, atol=1e-6)
        assert all(value.grad is marks[name] for name, value in learner.trained.items())
        assert all(bool((mark == 3.0).all()) for mark in marks.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_features_do_not_depend_on_the_company(family: str, tmp_path: Path) -> None:
    """[B, width], the same for a text alone and beside longer ones, and told apart by texts."""
    learner, _, tasks, _ = learner_of(tmp_path, f"backbone=tiny_{family}")
    learner.model.eval()
    examples = sorted(tasks[0].train[:6], key=lambda e: len(e.prompt))
    with torch.no_grad():
        together = learner.features(learner.collate(examples, answers=False))
        alone = torch.cat([learner.features(learner.collate([e], answers=False)) for e in examples])
    assert together.shape == (6, learner.model.config.hidden_size if family != "t5" else learner.model.config.d_model)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.dtype == torch.float32 and float(torch.cdist(together, together).max()) > 1e-3


def test_features_of_a_classifier_are_what_its_head_could_read(tmp_path: Path) -> None:
    learner, _, tasks, _ = learner_of(tmp_path)
    learner.model.eval()
    batch = learner.collate(tasks[0].train[:3], answers=False)
    seen: list[torch.Tensor] = []
    handle = learner.model.bert.register_forward_hook(lambda module, given, out: seen.append(out[0]))
    with torch.no_grad():
        found = learner.features(batch)
    handle.remove()
    assert torch.equal(found, seen[0][:, 0])


def test_whatever_happens_inside_is_undone(tmp_path: Path) -> None:
    learner, _, tasks, _ = learner_of(tmp_path)
    learner.choose(tasks[0], Trained(names=("classifier.weight",)))
    weight = learner.parameters()["classifier.weight"]
    weight.grad = torch.ones_like(weight)
    before, gradient = learner.weights(), weight.grad
    with pytest.raises(RuntimeError), learner.restored():
        learner.choose(tasks[0], None)
        optimizer = torch.optim.SGD(learner.params().values(), lr=1.0)
        learner.forward(learner.collate(tasks[0].train[:4])).loss.backward()
        optimizer.step()
        assert any(not torch.equal(p, before[name]) for name, p in learner.parameters().items())
        raise RuntimeError
    assert all(torch.equal(p, before[name]) for name, p in learner.parameters().items())
    assert set(learner.params()) == {"classifier.weight"}
    assert weight.grad is gradient and bool((gradient == 1).all())


def test_what_trains_is_what_the_method_said(tmp_path: Path) -> None:
    learner, _, tasks, _ = learner_of(tmp_path, "backbone.frozen=['*embeddings*']")
    learner.choose(tasks[0], None)
    everything = {name for name in learner.parameters() if "embeddings" not in name}
    assert set(learner.params()) == everything, "all but what the backbone freezes"
    learner.choose(tasks[0], Trained(names=()))
    assert not learner.params()
    learner.choose(tasks[0], Trained(selected={"classifier.bias": torch.tensor([0, 2])}))
    learner.begin()
    assert {name: values.shape for name, values in learner.before.items()} == {"classifier.bias": (2,)}
    with learner.holding() as held:
        assert {name: values.shape for name, values in held.parameters.items()} == {"classifier.bias": (2,)}
    learner.finish()
    assert not learner.trained and not learner.selected and not learner.params() and learner.task is None
    with pytest.raises(AssertionError, match="no parameter klassifier"):
        learner.choose(tasks[0], Trained(names=("klassifier",)))


def test_what_the_method_writes_itself_is_written_once_and_remembered(tmp_path: Path) -> None:
    learner, _, tasks, _ = learner_of(tmp_path)
    old = learner.parameters()["classifier.bias"].detach().clone()
    learner.choose(tasks[0], Trained(names=(), written={"classifier.bias": torch.full_like(old, 7.0)}))
    assert torch.equal(learner.parameters()["classifier.bias"], old)
    learner.begin()
    assert bool((learner.parameters()["classifier.bias"] == 7.0).all())
    assert torch.equal(learner.before["classifier.bias"], old)


def test_parts_of_a_batch_keep_their_examples() -> None:
    examples = [Example(str(i), "x", task=0, row=i) for i in range(4)]
    batch = Batch({"a": torch.arange(4)}, examples)
    assert batch.rows(1, 3).examples == tuple(examples[1:3]) and batch.rows(1, 3)["a"].tolist() == [1, 2]
    assert (batch | {"b": torch.zeros(4)}).examples == tuple(examples)
    assert batch.twice()["a"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3] and len(batch.twice().examples) == 8
    assert batch.to(torch.device("cpu")).examples == tuple(examples)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_target_knows_its_example(family: str, tmp_path: Path) -> None:
    learner, _, tasks, _ = learner_of(tmp_path, f"backbone=tiny_{family}")
    examples = tasks[0].train[:5]
    output = learner.forward(learner.collate(examples))
    counts = learner.family.targets(examples)
    assert output.rows.tolist() == [row for row, count in enumerate(counts) for _ in range(count)]
