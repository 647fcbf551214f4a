"""Weights whose gradient is 0 by construction: against autograd in double precision, and in selections."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import learn, run_command, tiny, tiny_config, tiny_learner
from torch import nn

from cl_runner.zero_gradient import Kept, Zero, counts, kept_sizes, whole_positions, zero_gradient


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_autograd_finds_the_same(family: str, tmp_path: Path) -> None:
    learner, _, tasks = tiny_learner(tiny_config(tmp_path, "method=seq_ft", f"backbone=tiny_{family}"))
    model, examples = learner.model.double(), tasks[0].train[:6]
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    found = zero_gradient(learner, examples, sizes)
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    model.eval().requires_grad_(True)
    for start in (0, 3):
        learner.forward(learner.collate(examples[start : start + 3])).loss.backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    for name, parameter in model.named_parameters():
        rows = parameter.grad.reshape(len(parameter), -1).abs().amax(-1)
        zero = found[name].rows if name in found else torch.zeros(len(parameter), dtype=torch.bool)
        exact = found[name].reason == "unread_rows" if name in found else True
        assert float(rows[zero].max() if bool(zero.any()) else 0.0) <= (0.0 if exact else 1e-12 * largest), name
        if name in found or name in tables:
            assert bool((rows[~zero] > 1e-12 * largest).all()), f"{name} has more without a gradient"
    reasons = {zero.reason for zero in found.values()}
    assert reasons == {"bert": {"key_biases", "unread_rows"}, "gpt2": {"key_biases", "unread_rows"}}.get(
        family, reasons
    )


def test_positions_among_the_kept_are_those_of_the_whole_tensor() -> None:
    zeros = {
        "table": Zero("unread_rows", torch.tensor([True, False, True, False])),
        "b": Zero("key_biases", torch.ones(2)),
    }
    zeros["b"] = Zero("key_biases", torch.ones(2, dtype=torch.bool))
    sizes = {"table": 12, "b": 2, "other": 5}
    assert kept_sizes(sizes, zeros) == {"table": 6, "other": 5}
    scores = Kept({"table": torch.arange(12.0).view(4, 3), "other": torch.arange(5.0)}, zeros)
    assert scores["table"].tolist() == [3, 4, 5, 9, 10, 11]
    found = whole_positions({"table": torch.tensor([0, 2, 4]), "other": torch.tensor([1])}, sizes, zeros)
    assert {name: index.tolist() for name, index in found.items()} == {"table": [3, 5, 10], "other": [1]}
    selected = {"table": torch.tensor([0, 3, 8]), "b": torch.tensor([1])}
    assert counts(selected, sizes, zeros) == {"key_biases": 1, "unread_rows": 2}


@pytest.mark.parametrize("choice", ["pe_select", "piece_s"])
def test_selections_say_how_many_they_have_and_can_leave_them_out(choice: str, tmp_path: Path) -> None:
    node = "pe" if choice == "pe_select" else "piece"
    given = [f"method={choice}", f"method.{node}.fraction=0.02", f"method.{node}.first_task=whole"]
    given += ["training.max_steps=1", f"method.{node}.exclude_modules=[]"]
    said: dict[str, list[str]] = {}
    for leave_out in ("false", "true"):
        config = tiny_config(tmp_path, *given, f"method.{node}.exclude_zero_gradient={leave_out}")
        learner, chain, tasks = tiny_learner(config)
        notes = said.setdefault(leave_out, [])
        learner.warn = notes.append
        for task in tasks[:2]:
            learn(learner, chain, task, config)
        method = chain.methods[node]
        described = method.describe(learner, tasks[1], tmp_path)["zero_gradient"]
        zeros = zero_gradient(learner, tasks[1].train, {n: p.numel() for n, p in learner.parameters().items()})
        inside = counts(method.indices, {n: p.numel() for n, p in learner.parameters().items()}, zeros)
        assert described["selected"] == sum(inside.values()) and described["key_biases"] == inside["key_biases"]
        if leave_out == "true":
            entries = sum(p.numel() for p in learner.parameters().values())
            assert described["selected"] == 0 and not notes
            selectable = method.trains(learner, tasks[1]).selectable
            assert sum(selectable.values()) == entries - described["left_out"] > 0
    assert any("cannot learn" in note for note in said["false"]) == (choice == "pe_select")


def test_what_would_train_as_a_whole_cannot_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["method=piece_s", "method.piece.exclude_zero_gradient=true", "method.piece.compat=[missing_mask]"]
    assert run_command(tiny(tmp_path, *given)) == 2
    assert "Type: method.piece.exclude_zero_gradient=false" in capsys.readouterr().err
