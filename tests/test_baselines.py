"""Baselines against their definitions: problems solved by hand, by autograd, or by their own conditions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import learn, tiny_config, tiny_learner, weights_of
from torch import Tensor, nn

from cl_runner.batch import Part
from cl_runner.learner import Learner
from cl_runner.methods.gem import multipliers
from cl_runner.methods.parts import head_of
from cl_runner.methods.projection import product
from cl_runner.sparse.importance import cap


def begun(tmp_path: Path, *overrides: str) -> tuple[Learner, Any, list[Any], Any]:
    """After the first task, with the second one begun."""
    config = tiny_config(tmp_path, *overrides)
    learner, method, tasks = tiny_learner(config)
    learner.pass_size = 8
    learn(learner, method, tasks[0], config)
    method.select(learner, tasks[1])
    learner.choose(tasks[1], method.trains(learner, tasks[1]))
    method.before_task(learner, tasks[1])
    method.data(learner, tasks[1], [tasks[1].train])
    learner.begin()
    learner.model.eval()
    return learner, method, tasks, config


def gradient_of(learner: Learner) -> dict[str, Tensor]:
    return {name: values.grad.clone() for name, values in learner.trained.items() if values.grad is not None}


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gem_solves_its_quadratic_problem(margin: float) -> None:
    """By the conditions of an optimum (Karush, Kuhn, Tucker), on problems with and without violations."""
    chance = np.random.default_rng(0)
    for _ in range(20):
        memories, step = chance.normal(size=(4, 30)), chance.normal(size=30)
        v = multipliers(memories @ memories.T, memories @ step, margin, 1e-3)
        products = memories @ memories.T
        slope = (products + 1e-3 * products.diagonal().mean() * np.eye(4)) @ v + memories @ step
        assert (v >= margin - 1e-12).all() and (slope >= -1e-8).all()
        assert np.allclose(slope * (v - margin), 0, atol=1e-7)


def test_gem_of_one_memory_by_hand() -> None:
    """m = (1, 0.5), g = (-1, 0.2): v = 0.72, and what is left of <g, m> is 0; with a wrong sign it would be -1.8."""
    m, g = np.array([[1.0, 0.5]]), np.array([-1.0, 0.2])
    (v,) = multipliers(m @ m.T, m @ g, 0.0, 1e-12)
    assert v == pytest.approx(0.72) and (g + v * m[0]) @ m[0] == pytest.approx(0)


@pytest.mark.parametrize("choice", ["gem", "[gem,piece_s]"])
def test_gem_makes_no_old_loss_rise(choice: str, tmp_path: Path) -> None:
    sizes = ("method.gem.size=12", "method.gem.batch_size=null", "method.gem.margin=0")
    learner, method, tasks, _ = begun(tmp_path, f"method={choice}", *sizes)
    gem = method.methods["gem"]
    with learner.holding():
        method.steps(learner, tasks[1], 0, [[Part(tasks[1].train[:8])]])
        (memory,) = gem._drawn
        assert len(memory) == 12 and all(example.task == 0 for example in memory)
        old = learner.gradient(memory, 5)
        for name, values in learner.trained.items():
            values.grad = -old[name] + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
        before = gradient_of(learner)
        gem.grads(learner)
        after = gradient_of(learner)
        assert learner.terms["gem/violated"] == 1 and product(before, old) < 0
        assert product(after, old) == pytest.approx(0, abs=2e-3 * abs(product(before, old)))
        for name, values in learner.trained.items():
            values.grad = old[name].clone()
        gem.grads(learner)
        assert all(torch.equal(values.grad, old[name]) for name, values in learner.trained.items())


def test_agem_projects(tmp_path: Path) -> None:
    """Against the projection in fp64 (eq. 11)."""
    learner, method, tasks, _ = begun(tmp_path, "method=agem", "method.agem.size=12", "method.agem.batch_size=6")
    agem = method.methods["agem"]
    with learner.holding():
        method.steps(learner, tasks[1], 0, [[Part(tasks[1].train[:8])]])
        assert len(agem._drawn) == 6
        reference = learner.gradient(agem._drawn, 6)
        flat = torch.cat([g.flatten() for g in reference.values()]).double()
        noise = torch.randn(len(flat), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = 1e-3 * noise - flat
        for values, piece in zip(
            learner.trained.values(), step.split([v.numel() for v in reference.values()]), strict=True
        ):
            values.grad = piece.view_as(values).float()
        agem.grads(learner)
        found = torch.cat([g.flatten() for g in gradient_of(learner).values()]).double()
        expected = step - (step @ flat) / (flat @ flat) * flat
        assert step @ flat < 0 and torch.allclose(found, expected, atol=1e-5)


def test_ogd_keeps_an_orthonormal_basis_and_steps_outside_it(tmp_path: Path) -> None:
    learner, method, tasks, _ = begun(tmp_path, "method=[ogd,bitfit]", "method.ogd.examples=5")
    ogd = method.methods["ogd"]
    assert 1 <= len(ogd.basis) <= 5
    basis = torch.stack([torch.cat([t.flatten() for t in v.values()]) for v in ogd.basis]).double()
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), atol=1e-5)
    (example, *_) = cap(tasks[0].train, 5, learner.seed_of("ogd", 0))
    output = learner.forward(learner.collate([example]))
    weights = learner.parameters()
    right = output.logits[0, output.targets[0]]
    first = torch.cat([g.flatten() for g in torch.autograd.grad(right, [weights[n] for n in ogd.basis[0]])])
    assert torch.allclose((first / first.norm()).double(), basis[0], atol=1e-5), "the gradient of the right logit"
    with learner.holding():
        names = list(learner.trained)
        assert set(names) == set(ogd.basis[0])
        step = learner.gradient(tasks[1].train[:8], 8)
        for name, values in learner.trained.items():
            values.grad = step[name].clone()
        ogd.grads(learner)
        after = gradient_of(learner)
        for direction in ogd.basis:
            assert product(after, direction) == pytest.approx(0, abs=1e-5)
        removed = {name: step[name] - after[name] for name in names}
        assert product(removed, after) == pytest.approx(0, abs=1e-6) and product(removed, removed) > 0


def test_ogd_keeps_old_outputs_with_other_entries_in_every_task(tmp_path: Path) -> None:
    """The directions on the selected entries are not orthonormal any more, and the step is orthogonal to each."""
    chosen = ("method=[ogd,piece_rand]", "method.ogd.examples=4")
    learner, method, tasks, _ = begun(tmp_path, *chosen, "method.piece.fraction=0.05")
    ogd = method.methods["ogd"]
    with learner.holding():
        step = learner.gradient(tasks[1].train[:8], 8)
        for name, values in learner.trained.items():
            values.grad = step[name].clone()
        method.grads(learner)
        after = gradient_of(learner)
    length = product(after, after) ** 0.5
    assert length > 0
    for direction in ogd.basis:
        here = {name: learner.part(name, values) for name, values in direction.items() if name in learner.selected}
        assert 0 < product(here, here) < 0.9
        assert product(after, here) == pytest.approx(0, abs=1e-5 * length)


def test_what_directs_a_step_comes_last_and_counts_its_own_passes(tmp_path: Path) -> None:
    learner, method, tasks, _ = begun(tmp_path, "method=[migu,masked_kl,l2]", "method.l2.strength=1000")
    migu, part = method.methods["migu"], Part(tasks[1].train[:8])
    with learner.holding() as held:
        batch = method.prepare(learner, part, learner.collate(part.examples))
        assert not migu._sums, "a pass for the starting model's outputs was counted"
        loss = learner.forward(batch).loss
        loss.backward()
        assert migu._sums
        for values in held.parameters.values():
            values.data.add_(0.01)  # so that l2 pulls everywhere
        name = next(name for name in learner.trained if name.endswith("query.weight"))
        method.grads(learner)
        still = (learner.trained[name].grad == 0).all(1)
        assert 0.6 < still.float().mean() < 0.8, "l2 pulls rows that may not learn"


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_mas_measures_what_outputs_depend_on(family: str, tmp_path: Path) -> None:
    """Against autograd of the squared length of each example's outputs in one graph."""
    config = tiny_config(tmp_path, "method=mas", f"backbone=tiny_{family}", "importance.max_examples=null")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    mas = method.methods["mas"]
    learner.model.eval()
    parameters = {name: learner.parameters()[name] for name in learner.measurable()}
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for example in tasks[0].train:
        output = learner.forward(learner.collate([example]))
        length = (output.logits**2).sum() / len(output.logits)
        for name, g in zip(
            parameters, torch.autograd.grad(length, list(parameters.values()), allow_unused=True), strict=True
        ):
            if g is not None:
                expected[name] += g.abs() / len(tasks[0].train)
    assert sum(float(v.sum()) for v in expected.values()) > 0
    for name, value in expected.items():
        assert torch.allclose(mas.importance[name], value, rtol=1e-4, atol=1e-9), name


@pytest.mark.parametrize("choice", ["si", "[si,piece_s]"])
def test_si_adds_up_the_path(choice: str, tmp_path: Path) -> None:
    """Against a log of every step's gradient and movement."""
    config = tiny_config(tmp_path, f"method={choice}", "method.si.strength=0")
    learner, method, tasks = tiny_learner(config)
    si = method.methods["si"]
    steps: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []
    after_step = si.after_step

    def noted(given: Learner) -> None:
        before = {name: pair[1].clone() for name, pair in si._step.items()}
        gradients = {name: pair[0].clone() for name, pair in si._step.items()}
        after_step(given)
        steps.append((gradients, before, {name: given.trained[name].detach().clone() for name in before}))

    si.after_step = noted
    learn(learner, method, tasks[0], config)
    for name in steps[0][0]:
        path = sum(-g[name].double() * (after[name] - before[name]).double() for g, before, after in steps)
        moved = steps[-1][2][name].double() - steps[0][1][name].double()
        expected = (path / (moved**2 + 0.1)).clamp_min(0).float()
        found = si.importance[name]
        if name in si.positions:
            found = found.view(-1)[si.positions[name]]
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-9), name
    assert sum(float(value.sum()) for value in si.importance.values()) > 0


def test_si_reads_the_gradient_of_the_loss_whatever_stands_before_it(tmp_path: Path) -> None:
    """The pull of another penalty, is no fall of the loss."""
    read = []
    for choice in ("[l2,si]", "[si,l2]"):
        learner, method, _, _ = begun(tmp_path, f"method={choice}", "method.l2.strength=100", "method.si.strength=0")
        with torch.no_grad():
            for values in learner.params().values():
                values.add_(0.1)  # away from where the task begins, so that there is a pull
        with learner.holding():
            for values in learner.trained.values():
                values.grad = torch.ones_like(values)
            method.grads(learner)
            assert any(float(values.grad.max()) > 1 for values in learner.trained.values() if values.grad is not None)
        read.append({name: gradient for name, (gradient, _) in method.methods["si"]._step.items()})
    assert read[0] and all(
        torch.equal(gradient, torch.ones_like(gradient)) for one in read for gradient in one.values()
    )


@pytest.mark.parametrize(("choice", "node"), [("l2", "l2"), ("mas", "mas"), ("si", "si"), ("[mas,piece_s]", "mas")])
def test_penalties_are_the_gradient_of_their_formula(choice: str, node: str, tmp_path: Path) -> None:
    learner, method, _tasks, _ = begun(tmp_path, f"method={choice}", f"method.{node}.strength=1.5")
    one = method.methods[node]
    with learner.holding():
        for values in learner.trained.values():
            values.data.add_(torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))
            values.grad = None
        one.grads(learner)
        for name, values in learner.trained.items():
            moved = (values.detach() - learner.before[name]).double()
            weight = learner.part(name, one.importance[name]).double() if node != "l2" else 1.0
            assert torch.allclose(values.grad.double(), 2 * 1.5 * weight * moved, rtol=1e-4, atol=1e-12), name


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_migu_keeps_the_rows_of_strong_outputs(family: str, tmp_path: Path) -> None:
    """Against outputs recorded by hand, whatever the micro-batches."""
    learner, method, tasks, _ = begun(tmp_path, "method=migu", f"backbone=tiny_{family}", "backbone.dropout=0.0")
    examples = tasks[1].train[:6]
    name, module = next(
        (n, m)
        for n, m in learner.model.named_modules()
        if n.endswith((".query", ".c_fc", "encoder.block.0.layer.0.SelfAttention.q"))
    )
    recorded: list[Tensor] = []
    module.register_forward_hook(lambda m, given, answer: recorded.append(answer.detach()))
    found = []
    with learner.holding():
        for size in (6, 2):
            method.steps(learner, tasks[1], 0, [[Part(examples)]])
            for start in range(0, 6, size):
                batch = method.prepare(learner, Part(examples), learner.collate(examples[start : start + size]))
                method.loss(learner, Part(examples), batch, learner.forward(batch))
            for values in learner.trained.values():
                values.grad = torch.ones_like(values)
            method.grads(learner)
            found.append(gradient_of(learner))
    mask = learner.collate(examples)["attention_mask"].bool()
    strength = recorded[0][mask].abs().mean(0)
    kept = strength >= strength.quantile(0.7)
    assert 0.25 < kept.float().mean() < 0.35
    weight = found[0][f"{name}.weight"]
    inputs = 0 if family == "gpt2" else 1
    assert torch.equal(weight.sum(inputs), kept * weight.shape[inputs])
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert all(bool(g.all()) for n, g in found[0].items() if n.endswith("bias"))
    wholes = [n for n in found[0] if "embed" in n or "wte" in n or n == "shared.weight"]
    assert wholes and all(bool(found[0][n].all()) for n in wholes)


def test_migu_as_piece_ran_it_keeps_channels_of_the_input(tmp_path: Path) -> None:
    learner, method, tasks, _ = begun(
        tmp_path, "method=migu_piece", "backbone=tiny_llama", "method.migu.threshold=0.9", "backbone.dropout=null"
    )
    migu = method.methods["migu"]
    reading: list[Tensor] = []
    learner.model.model.layers[0].register_forward_pre_hook(lambda m, given: reading.append(given[0].detach()))
    total, count = torch.zeros(1), 0
    for example in tasks[1].train:
        reading.clear()
        learner.forward(learner.collate([example]))
        total, count = total + reading[0].abs().flatten(0, 1).sum(0), count + reading[0].shape[1]
    width = len(total)
    best = set((total / count).topk(int(0.1 * width + 1e-9)).indices.tolist())
    assert set(migu.channels["model.layers.0"].nonzero().flatten().tolist()) == best
    with learner.holding():
        for values in learner.trained.values():
            values.grad = torch.ones_like(values)
        method.grads(learner)
        found = gradient_of(learner)
    for part in ("self_attn.q_proj.weight", "input_layernorm.weight"):
        gradient = found[f"model.layers.0.{part}"]
        assert set(gradient.reshape(-1, width).sum(0).nonzero().flatten().tolist()) == best
    assert bool(found["model.layers.0.mlp.down_proj.weight"].all()) and bool(found["model.norm.weight"].all())


def test_parts_by_name(tmp_path: Path) -> None:
    found = {}
    for choice in ("bitfit", "head_only", "first_layers", "last_layers"):
        config = tiny_config(tmp_path, f"method={choice}")
        learner, method, _ = tiny_learner(config)
        found[choice] = set(next(iter(method.methods.values())).candidates(learner.model))
    names = set(learner.parameters())
    head = {"classifier.weight", "classifier.bias"}
    assert head_of(learner.model) == head == found["head_only"]
    assert found["bitfit"] == {name for name in names if name.endswith("bias")} | head
    assert found["first_layers"] == {name for name in names if ".layer.0." in name}
    assert found["last_layers"] == {name for name in names if ".layer.1." in name} | head


def test_parts_that_fit_nothing_are_said(tmp_path: Path) -> None:
    """A LLaMA has no biases: `bitfit` is its head alone."""
    config = tiny_config(tmp_path, "method=bitfit", "backbone=tiny_llama")
    learner, method, tasks = tiny_learner(config)
    said: list[str] = []
    learner.warn = said.append
    for task in tasks[:2]:
        method.select(learner, task)
    (line,) = said
    assert "nothing of this backbone fits *bias" in line and "1 other tensors alone, as method=head_only does" in line


def test_parts_that_are_not_there_are_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=head_only", "backbone=tiny_t5")
    learner, method, _ = tiny_learner(config)
    with pytest.raises(ValueError, match="tied to the word embeddings.*method=layer_norm"):
        method.check(learner.model, 10)
    config = tiny_config(tmp_path, "method=last_layers", "method.parts.last_layers=3")
    learner, method, _ = tiny_learner(config)
    with pytest.raises(ValueError, match="last_layers=3, and this backbone has 2.*last_layers=2"):
        method.check(learner.model, 10)


def test_opr_replays_its_own_best_answers(tmp_path: Path) -> None:
    sizes = ("method.opr.budget=6", "method.opr.candidates=8", "backbone=tiny_bert")
    config = tiny_config(tmp_path, "method=opr", *sizes)
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    opr = method.methods["opr"]
    learner.model.eval()
    prompts = {example.row: example for example in tasks[0].train}
    right = [str(answer) == prompts[int(row)].answer for _, row, answer in opr.kept]
    assert len(opr.kept) == 6 and right == sorted(right, reverse=True)
    for _, row, answer in opr.kept:
        batch = learner.collate([prompts[int(row)]], answers=False)
        assert learner.answer(batch, learner.answering(tasks[0]))[0].text == answer
    (epoch,) = method.data(learner, tasks[1], [tasks[1].train])
    assert [(e.task, e.answer) for e in epoch[len(tasks[1].train) :]] == [(0, answer) for *_, answer in opr.kept]
    learn(learner, method, tasks[1], config)
    assert [place[0] for place in opr.kept] == [0, 0, 0, 1, 1, 1]


def test_opr_by_confidence_takes_the_surest(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=opr_sc", "backbone=tiny_llama", "method.opr.budget=3")
    learner, method, tasks = tiny_learner(config)
    opr = method.methods["opr"]
    learner.model.eval()
    answered = [
        dataclasses.replace(one, answer=text) for one, text in zip(tasks[0].train, ["a", "bcd", ""], strict=False)
    ]
    with torch.no_grad():
        found = opr._confidence(learner, answered)
    for example, value in zip(answered, found, strict=True):
        output = learner.forward(learner.collate([example]))
        assert value == pytest.approx(-float(output.loss.detach()), rel=1e-4)


def test_icl_puts_whole_examples_of_the_task_before_the_question(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=icl", "backbone=tiny_llama", "backbone.max_length=300", "method.icl.shots=3")
    learner, method, tasks = tiny_learner(config)
    question = tasks[1].test[0]
    prompt = method.methods["icl"]._prompt(learner, question)
    *shots, own = prompt.split("\n\n")
    assert own == question.prompt and shots
    assert set(shots) <= {f"{example.prompt} {example.answer}" for example in tasks[1].train}
    assert learner.family.lengths([dataclasses.replace(question, prompt=prompt)], answers=False)[0] <= 300


def test_multi_task_steps_hold_a_batch_of_each_task(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=multi_task")
    learner, method, tasks = tiny_learner(config)
    epochs = method.data(learner, tasks[2], [tasks[2].train] * 2)
    assert [len(epoch) for epoch in epochs] == [48, 48]
    ((first, *others),) = method.steps(learner, tasks[2], 0, [[Part(epochs[0][:8])]])
    assert [{example.task for example in part.examples} for part in (first, *others)] == [{0}, {1}, {2}]
    assert all(len(part.examples) == 8 and part.weight == 1 for part in others)


def test_a_gradient_between_tasks_is_of_all_weights_and_leaves_no_trace(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=piece_s")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    learner.model.eval()
    before = weights_of(learner)
    found = learner.gradient(tasks[0].train[:4], 2)
    assert set(found) == set(learner.measurable())
    bias = learner.gradient(tasks[0].train[:4], 2, names=["classifier.bias"])
    assert list(bias) == ["classifier.bias"] and torch.equal(bias["classifier.bias"], found["classifier.bias"])
    assert not any(p.requires_grad or p.grad is not None for p in learner.parameters().values())
    assert all(torch.equal(before[name], p) for name, p in learner.parameters().items())
    assert isinstance(learner.model, nn.Module)
