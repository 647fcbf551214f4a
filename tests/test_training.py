"""Options of the training loop that must not change what is learned, and weights in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import TINY, learn, run_command, tiny_config, tiny_learner, weights_of
from torch import nn

from cl_runner.masters import Masters


@pytest.mark.parametrize("method", ["seq_ft", "ewc_lwf", "pe", "piece_s"])
def test_micro_batches_give_the_step_of_the_whole_batch(method: str, tmp_path: Path) -> None:
    """Three of eight examples a pass, the last two alone: weighted by their number."""

    def trained(*more: str) -> tuple[list[float], dict[str, torch.Tensor]]:
        config = tiny_config(tmp_path, f"method={method}", "backbone.dropout=0.0", *more)
        learner, chain, tasks = tiny_learner(config)
        losses = [loss for task in tasks[:2] for loss in learn(learner, chain, task, config)]
        return losses, weights_of(learner)

    whole, parts = trained(), trained("training.base.micro_batch=3", "training.incremental.micro_batch=3")
    assert whole[0] == pytest.approx(parts[0], rel=1e-4)
    for name, weight in whole[1].items():
        torch.testing.assert_close(parts[1][name], weight, rtol=1e-3, atol=2e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    def weights_hash(folder: str, *more: str) -> str:
        import json

        assert run_command([*TINY, "method=pe_select", f"root={tmp_path / folder}", *more]) == 0
        (path,) = (tmp_path / folder).rglob("summary.json")
        return str(json.loads(path.read_text())["weights_sha256"])

    assert weights_hash("plain") == weights_hash("checkpointed", "hardware.gradient_checkpointing=true")


@pytest.mark.parametrize("method", ["piece_s", "seq_ft", "pe"])
def test_half_precision_weights_learn_and_are_restored_bit_for_bit(method: str, tmp_path: Path) -> None:
    assert run_command([*TINY, f"method={method}", "backbone.dtype=bfloat16", f"root={tmp_path}"]) == 0
    (folder,) = (path.parent for path in tmp_path.rglob("COMPLETED"))
    assert run_command(["snapshot", "verify", str(folder)]) == 0
    output = tmp_path / "last.safetensors"
    assert run_command(["snapshot", "restore", str(folder), "--after", "software", "--output", str(output)]) == 0
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(output).values()} == {torch.bfloat16}


def test_small_steps_add_up_in_the_masters() -> None:
    """Ten steps of 1e-3 from 1.0 in bf16, whose numbers below 1 lie 2^-8 apart: alone every one is rounded away."""
    layer = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    masters = Masters(dict(layer.named_parameters()))
    optimizer = torch.optim.SGD(masters.parameters.values(), lr=1e-3)
    for _ in range(10):
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad is None
        optimizer.step()
        optimizer.zero_grad()
        masters.write_through()
    assert float(masters.parameters["weight"].detach()) == pytest.approx(0.99)
    assert float(layer.weight.detach()) == 0.98828125
    masters.release()
    layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


def test_full_precision_weights_are_their_own_masters() -> None:
    layer = nn.Linear(2, 2)
    masters = Masters(dict(layer.named_parameters()))
    assert masters.parameters["weight"] is layer.weight


def test_warmup_as_a_share_and_as_a_number_of_steps(tmp_path: Path) -> None:
    from cl_runner.train import learning_rate_factor

    share = [learning_rate_factor(step, 10, "linear", 0.4) for step in range(10)]
    assert share == [learning_rate_factor(step, 10, "linear", 4) for step in range(10)]
    assert share[:4] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5]) and share[4] == 1.0
    assert learning_rate_factor(9, 10, "linear", 100) == pytest.approx(10 / 11)  # a task shorter than its warm-up
    assert tiny_config(tmp_path, "training.warmup=100").training.warmup == 100


def test_what_a_method_adds_decays_by_its_kind() -> None:
    from cl_runner.optimizer import decays

    assert decays("slm.values.01") and decays("classifier.weight.01") and not decays("classifier.bias.01")
