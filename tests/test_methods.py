"""EWC, LwF, sparse training and chains against their definitions; options read from the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY, learn, tiny_config, tiny_learner, weights_of

from cl_runner.batch import Part
from cl_runner.built_in import METHODS
from cl_runner.compose import compose
from cl_runner.importance import fisher
from cl_runner.methods.base import Chain, Method
from cl_runner.methods.ewc import EWC
from cl_runner.methods.recorded import record_logits
from cl_runner.optimizer import build_optimizer, decays
from cl_runner.parts import method_spec
from cl_runner.prepared import prepare


@pytest.mark.parametrize("name", METHODS)
def test_schema_read_from_source_is_the_dataclass(name: str) -> None:
    import dataclasses
    import importlib

    module, _, class_name = METHODS[name].partition(":")
    cls = getattr(importlib.import_module(f"cl_runner.methods.{module}"), class_name)
    spec = method_spec(name)
    assert list(spec.schema.model_fields) == [field.name for field in dataclasses.fields(cls)]
    assert spec.families == cls.families and (spec.chooses, spec.isolates, spec.protects) == (
        cls.chooses,
        cls.isolates,
        cls.protects,
    )


def test_ewc_gradient_is_the_gradient_of_its_penalty_and_selected_entries_only(tmp_path: Path) -> None:
    """Against autograd of PE eq. 4 in fp64."""
    config = tiny_config(tmp_path, "method=pe", "method.ewc.strength=3.5", "method.pe.fraction=0.05")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    method.select(learner, tasks[1])
    learner.choose(tasks[1], method.trains(learner, tasks[1]))
    method.before_task(learner, tasks[1])
    learner.begin()
    with learner.holding():
        _check_penalty(learner, method.methods["ewc"])


def _check_penalty(learner: Any, ewc: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for values in learner.trained.values():
        values.data.add_(torch.randn(values.shape, generator=generator))
        values.grad = None
    ewc.grads(learner)
    assert all(ewc.fisher[n].shape == index.shape for n, index in learner.selected.items())  # no more is kept
    variables = {n: v.detach().double().requires_grad_() for n, v in learner.trained.items()}
    penalty = sum(
        3.5 * (ewc.fisher[n].double() * (v - learner.before[n].double()) ** 2).sum() for n, v in variables.items()
    )
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(learner.terms["ewc"], rel=1e-4)
    for name, variable in variables.items():
        assert torch.allclose(learner.trained[name].grad.double(), variable.grad, rtol=1e-4, atol=1e-12), name


def test_ewc_of_pieces_release_has_400_and_a_half(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=ewc_piece")
    learner, method, tasks = tiny_learner(config)
    ewc = method.methods["ewc"]
    learn(learner, method, tasks[0], config)
    assert isinstance(ewc, EWC) and (ewc.strength, ewc.with_half, ewc.fisher_data) == (400, True, "last_task")
    learner.choose(tasks[1], None)
    learner.begin()
    with learner.holding():
        name, values = next(iter(learner.trained.items()))
        values.data.add_(0.5)
        values.grad = None
        method.grads(learner)
        torch.testing.assert_close(values.grad, 400 * ewc.fisher[name] * (values.detach() - learner.before[name]))
        assert learner.terms["ewc"] == pytest.approx(float(200 * (0.25 * ewc.fisher[name]).sum()), rel=1e-3)


def test_online_ewc_adds_up_the_fisher_of_each_task(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=ewc", "method.ewc.fisher_data=last_task", "method.ewc.decay=0.5")
    learner, method, tasks = tiny_learner(config)
    ewc = method.methods["ewc"]
    learn(learner, method, tasks[0], config)
    first = {n: f.clone() for n, f in ewc.fisher.items()}
    learn(learner, method, tasks[1], config)
    second = fisher(learner, tasks[1].train)
    assert all(torch.allclose(ewc.fisher[n], second[n] + 0.5 * first[n]) for n in second)


def test_old_data_of_a_joint_order_count_once(tmp_path: Path) -> None:
    request = compose([*TINY, f"root={tmp_path}", "task_order=[reviews,joint]", "method=ewc"])
    from cl_runner.data.task import build_tasks

    tasks = prepare(request.config, build_tasks(request.config.task_order, request.config.task)).tasks
    assert [len(task.train) for task in tasks] == [48, 72, 96]
    learner, _, _ = tiny_learner(request.config)
    learner.tasks, learner.joint = tasks, True
    assert len(learner.old_examples(tasks[2])) == 72


def test_lwf_term_by_hand(tmp_path: Path) -> None:
    """PE eq. 5: squared distance of the outputs, summed over classes, mean over the batch."""
    config = tiny_config(tmp_path, "method=lwf", "method.lwf.strength=2.0")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    method.before_task(learner, tasks[1])
    method.data(learner, tasks[1], [tasks[1].train])
    recorded = record_logits(learner, tasks[1].train)
    part = Part(tasks[1].train)
    batch = method.prepare(learner, part, learner.collate([tasks[1].train[i] for i in [3, 1]]))
    assert torch.equal(batch["lwf"], recorded[[3, 1]])
    output = learner.forward(batch)
    shift = torch.zeros_like(recorded[:2])
    shift[0, 0], shift[1, 1] = 1.0, 2.0
    output.logits = recorded[[3, 1]] + shift
    assert float(method.loss(learner, part, batch, output)) == pytest.approx(2.0 * (1.0 + 4.0) / 2)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("choice", ["lwf", "lwf_piece"])
def test_gradient_of_lwf_by_hand(choice: str, family: str, tmp_path: Path) -> None:
    """In fp64: 2 s (y - y'), and s T (softmax(y / T) - softmax(y' / T)), beside w (softmax(y) - label)."""
    options = ("backbone.dropout=0.0", "training.base.epochs=1")
    config = tiny_config(tmp_path, f"method={choice}", f"backbone=tiny_{family}", *options)
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    learner.choose(tasks[1], None)
    method.before_task(learner, tasks[1])
    method.data(learner, tasks[1], [tasks[1].train])
    learner.begin()
    learner.model.eval()
    part = Part(tasks[1].train[3:8])
    with torch.no_grad():
        old = learner.forward(learner.collate(part.examples)).logits.double()
        for values in learner.parameters().values():
            values.add_(0.05 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))
    batch = method.prepare(learner, part, learner.collate(part.examples))
    output = learner.forward(batch)
    loss = output.loss + method.loss(learner, part, batch, output)
    (found,) = torch.autograd.grad(loss, output.logits)
    new, lwf = output.logits.detach().double(), method.methods["lwf"]
    labels = new.softmax(-1) - torch.nn.functional.one_hot(output.targets, new.shape[1])
    distances = 2 * (new - old) if choice == "lwf" else 2.0 * ((new / 2.0).softmax(-1) - (old / 2.0).softmax(-1))
    assert (lwf.label_weight, lwf.temperature) == ((1.0, None) if choice == "lwf" else (0.5, 2.0))
    expected = (lwf.label_weight * labels + lwf.strength * distances) / len(new)
    assert float(distances.abs().max()) > 1e-3
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


def test_lwf_pulls_towards_the_old_outputs(tmp_path: Path) -> None:
    def drift(choice: str) -> float:
        config = tiny_config(tmp_path, f"method={choice}", "training.incremental.learning_rate=3e-3")
        learner, method, tasks = tiny_learner(config)
        learn(learner, method, tasks[0], config)
        old = record_logits(learner, tasks[1].train)
        learn(learner, method, tasks[1], config)
        return float((record_logits(learner, tasks[1].train) - old).square().mean())

    assert drift("lwf") < 0.7 * drift("seq_ft")


def test_sparse_training_equals_dense_masked_adamw(tmp_path: Path) -> None:
    """Compact values against full tensors whose gradient is masked, step by step; decay on selected entries only."""
    config = tiny_config(tmp_path, "method=pe_select", "method.pe.fraction=0.02", "training.weight_decay=0.1")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    start = weights_of(learner)
    learn(learner, method, tasks[1], config)
    indices = method.methods["pe"].indices

    dense, _, _ = tiny_learner(config)
    dense.put(start)
    masked_adamw(dense, tasks[1], indices, config)
    left, right = weights_of(learner), weights_of(dense)
    for name in left:
        assert torch.allclose(left[name], right[name], rtol=0, atol=2e-7), name


def masked_adamw(learner: Any, task: Any, indices: dict[str, torch.Tensor], config: Any) -> None:
    """The reference: dense gradients times a mask, and fixed entries copied back after each step."""
    import math

    from cl_runner.train import derive_seed, epoch_order, learning_rate_factor

    parameters = learner.parameters()
    masks = {}
    for name, p in parameters.items():
        masks[name] = torch.zeros(p.numel(), dtype=torch.bool)
        if name in indices:
            masks[name][indices[name]] = True
        masks[name] = masks[name].view_as(p)
    optimizer = build_optimizer(parameters, config.training, 2e-3)
    stage = config.training.incremental
    per_epoch = math.ceil(len(task.train) / stage.batch_size)
    steps = per_epoch * stage.epochs
    learner.model.train()
    for step in range(steps):
        epoch, within = divmod(step, per_epoch)
        order = epoch_order(learner.seed, task.index, epoch, len(task.train))
        torch.manual_seed(derive_seed(learner.seed, "step", task.index, step))
        batch = learner.collate(
            [task.train[i] for i in order[within * stage.batch_size : (within + 1) * stage.batch_size]]
        )
        learner.forward(batch).loss.backward()
        for name, p in parameters.items():
            p.grad.mul_(masks[name])
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.training.clip)
        rate = 2e-3 * learning_rate_factor(step, steps, config.training.schedule, config.training.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(torch.where(masks[name], p, kept[name]))


def test_biases_and_norms_do_not_decay() -> None:
    assert decays("bert.encoder.layer.0.output.dense.weight")
    assert not decays("bert.encoder.layer.0.output.dense.bias")
    assert not decays("bert.encoder.layer.0.output.LayerNorm.weight")


def test_impossible_fraction_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=pe_select", "method.pe.fraction=1e-9")
    learner, method, _ = tiny_learner(config)
    with pytest.raises(ValueError, match=r"selects not one.*Type: method\.pe\.fraction="):
        method.check(learner.model, 64)


class Toy(Method):
    """Touches every hook that the shipped methods leave alone."""

    def __init__(self, mark: str):
        self.mark = mark

    def data(self, learner: Any, task: Any, epochs: Any) -> list[Any]:
        return [*epochs, self.mark]

    def loss(self, learner: Any, part: Any, batch: Any, output: Any) -> float:
        return float(len(self.mark))

    def predict(self, learner: Any, batch: Any, inner: Any) -> list[Any]:
        return [self.mark, *inner(batch), self.mark]


def test_a_chain_is_a_method() -> None:
    chain = Chain({"outer": Toy("a"), "inner": Toy("bb")})
    nested = Chain({"chain": chain, "more": Toy("c")})
    assert nested.data(None, None, ["x"]) == ["x", "a", "bb", "c"]  # type: ignore[arg-type]
    assert nested.loss(None, None, {}, None) == 4.0  # type: ignore[arg-type]
    assert nested.predict(None, {}, lambda batch: ["p"]) == ["a", "bb", "c", "p", "c", "bb", "a"]  # type: ignore
