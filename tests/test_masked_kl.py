"""Target-masked KL against brute force, and the starting model that is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import learn, run_command, seeded, tiny, tiny_config, tiny_learner, weights_of
from torch import Tensor

from cl_runner.batch import Output, Part
from cl_runner.learner import Learner
from cl_runner.methods.masked_kl import MaskedKL, of_the_others


def brute(start: Tensor, now: Tensor, targets: Tensor, direction: str) -> Tensor:
    """The mean over rows, by loops over the outputs but the right one."""
    found = []
    for row, target in enumerate(targets.tolist()):
        others = [k for k in range(now.shape[1]) if k != target]
        p0, p = (logits[row].exp() / sum(logits[row, k].exp() for k in others) for logits in (start, now))
        first, second = (p0, p) if direction == "from_start" else (p, p0)
        found.append(sum(first[k] * (first[k].log() - second[k].log()) for k in others))
    return torch.stack(found).mean()


@pytest.mark.parametrize("direction", ["from_start", "to_start"])
def test_term_and_gradient_by_hand(direction: str, tmp_path: Path) -> None:
    """The right answer's logit has no gradient, and neither has a shift of all the others."""
    config = tiny_config(
        tmp_path, "method=masked_kl", "method.masked_kl.strength=0.7", f"method.masked_kl.direction={direction}"
    )
    learner, method, tasks = tiny_learner(config)
    start, now = torch.randn(2, 6, 5, generator=seeded())
    targets = torch.tensor([0, 4, 2, 2, 1, 3])
    now = now.requires_grad_()
    batch = learner.collate(tasks[0].train[:6]) | {"masked_kl": of_the_others(start, targets)}
    output = Output(now.sum() * 0, now, targets, torch.arange(6))
    term = method.loss(learner, Part(tasks[0].train[:6]), batch, output)
    (found,) = torch.autograd.grad(term, now)
    exact = now.detach().double().requires_grad_()
    expected = 0.7 * brute(start.double(), exact, targets, direction)
    (wanted,) = torch.autograd.grad(expected, exact)
    assert float(term.detach()) == pytest.approx(float(expected.detach()), rel=1e-5) == learner.terms["masked_kl"]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-7)
    assert not found[torch.arange(6), targets].any() and found.sum(1).abs().max() < 1e-7


@pytest.mark.parametrize(
    "chosen",
    [
        ("method=masked_kl",),
        ("method=[masked_kl,piece_s]", "method.piece.fraction=0.05"),
        ("method=[masked_kl,pe_select]", "method.pe.fraction=0.05"),  # all of the first task, and some later
    ],
    ids=lambda chosen: chosen[0],
)
def test_the_starting_model_is_found_again(chosen: tuple[str, ...], tmp_path: Path) -> None:
    """After three tasks, bit for bit, from what trained alone; and the present one stands again behind it."""
    config = tiny_config(tmp_path, *chosen, "training.base.learning_rate=1e-3", "method.masked_kl.strength=3")
    learner, method, tasks = tiny_learner(config)
    start = weights_of(learner)
    part = Part(tasks[0].train[:4])
    first = of_the_others(*_outputs(learner, part))
    for task in tasks:
        learn(learner, method, task, config)
    now, kept = weights_of(learner), method.methods["masked_kl"]
    assert isinstance(kept, MaskedKL) and any(not torch.equal(start[name], now[name]) for name in now)
    with learner.at(kept.values, kept.positions):
        assert all(torch.equal(values, start[name]) for name, values in weights_of(learner).items())
    assert all(torch.equal(values, now[name]) for name, values in weights_of(learner).items())
    if "piece_s" in chosen[0]:
        held = sum(values.numel() for values in kept.values.values())
        assert held <= 3 * 0.06 * sum(values.numel() for values in now.values())
        assert all(len(index.unique()) == len(index) for index in kept.positions.values())
    unlabelled = Part(part.examples, labels=False)
    assert "masked_kl" not in method.prepare(learner, unlabelled, learner.collate(part.examples))
    batch = method.prepare(learner, part, learner.collate(part.examples))
    torch.testing.assert_close(batch["masked_kl"], first, rtol=0, atol=0)


def test_adapters_that_joined_the_weights_are_left_behind(tmp_path: Path) -> None:
    chosen = ("method=[masked_kl,o_lora]", "method.o_lora.merge=true", "backbone=tiny_llama", "backbone.max_length=32")
    config = tiny_config(tmp_path, *chosen)
    learner, method, tasks = tiny_learner(config)
    part = Part(tasks[0].train[:4])
    start, _ = _outputs(learner, part)
    for task in tasks[:2]:
        learn(learner, method, task, config)
    kept: Any = method.methods["masked_kl"]
    now, _ = _outputs(learner, part)
    with learner.at(kept.values, kept.positions):
        back, _ = _outputs(learner, part)
    assert torch.equal(back, start) and not torch.allclose(now, start, atol=1e-3)


def _outputs(learner: Learner, part: Part) -> tuple[Tensor, Tensor]:
    learner.model.eval()
    with torch.no_grad():
        output = learner.forward(learner.collate(part.examples))
    return output.logits, output.targets


def test_two_labels_leave_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = "task.reviews.labels={1 star: bad, 2 stars: bad, 3 stars: good}"
    for asked in (("method=masked_kl",), ("method=[masked_kl,piece_s]",)):
        assert run_command(tiny(tmp_path, *asked, labels)) == 2
        said = capsys.readouterr().err
        assert "method.masked_kl compares the labels" in said and "Type: method=lwf" in said
