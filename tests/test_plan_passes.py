"""What the plan says of passes, against real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from plans import TASKS, meta, model_of, setting
from torch.nn import functional
from transformers import PreTrainedModel

from cl_runner.needs import Needs
from cl_runner.planning.imitation import Imitation, Ledger, checkpointing
from cl_runner.planning.passes import outputs
from cl_runner.planning.planner import Planner
from cl_runner.sparse.layers import CompactValues


def test_ledger_counts_what_lives_at_once() -> None:
    with Ledger() as ledger:
        a = torch.zeros(100)  # 400 bytes
        b = a + 1  # 800
        del a  # 400
        c = b.view(10, 10)[2:]  # a view takes nothing
        d = c @ torch.ones(10, 5)  # 200 for the ones, 160 for the product
        b.add_(1)
        del b, c  # the storage lives until its last view goes
    assert ledger.peak_bytes == 800
    assert ledger.live_bytes == d.numel() * 4 == 160
    assert ledger.flops == 2 * 8 * 10 * 5


def backward(model: PreTrainedModel) -> None:
    """A training pass over a batch with padding."""
    model.requires_grad_(True).train()
    outputs(model, setting(), 8).loss.backward()


def forward(model: PreTrainedModel) -> None:
    """An evaluation pass."""
    model.eval()
    with torch.no_grad():
        outputs(model, setting(), 8)


def checkpointed(model: PreTrainedModel) -> None:
    """As `backward`, with activations computed twice."""
    with checkpointing(model, True):
        backward(model)


def autocast(model: PreTrainedModel) -> None:
    """As `backward`, in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        backward(model)


@pytest.mark.parametrize("work", [backward, forward, checkpointed, autocast])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_imitation_lives_like_the_real_model(kind: str, work: Callable[[PreTrainedModel], None]) -> None:
    real = model_of(kind)
    with Ledger() as ledger:
        work(real)
    imitated = Imitation(meta(kind), torch.float32, "cpu").cost(work)
    assert imitated.peak_bytes == ledger.peak_bytes
    assert imitated.flops == ledger.flops
    assert imitated.peak_bytes > 100_000


def test_checkpointing_saves_memory_and_costs_operations() -> None:
    imitation = Imitation(meta("llama"), torch.float32, "cpu")
    plain, saving = imitation.cost(backward), imitation.cost(checkpointed)
    assert saving.peak_bytes < 0.8 * plain.peak_bytes
    assert saving.flops > 1.2 * plain.flops


def test_a_gpu_has_no_table_of_attention_even_with_dropout() -> None:
    def long(model: PreTrainedModel) -> None:
        model.requires_grad_(True).train()
        outputs(model, setting(max_length=512), 2).loss.backward()

    peaks = {device: Imitation(meta("bert"), torch.float32, device).cost(long).peak_bytes for device in ("cpu", "cuda")}
    table = 4 * 2 * 4 * 512 * 512  # bytes of [examples, heads, positions, positions] in fp32
    assert peaks["cpu"] - peaks["cuda"] > 2 * table
    assert functional.scaled_dot_product_attention.__module__ != "cl_runner.planning.imitation"


def test_flops_of_a_layer_and_of_attention() -> None:
    with Ledger() as ledger:
        functional.scaled_dot_product_attention(*(torch.randn(2, 3, 5, 8) for _ in range(3)))
    assert ledger.flops == 2 * (2 * 2 * 3 * 5 * 5 * 8)


@pytest.mark.parametrize("clustered", [True, False])
def test_selected_training_lives_like_the_real_layers(clustered: bool) -> None:
    """A third of a percent of every matrix: real sparse layers against the planner's estimate of what they keep."""
    real = model_of("bert").train()
    generator = torch.Generator().manual_seed(0)
    indices = {}
    for name, weight in real.named_parameters():
        if weight.dim() == 2 and "embeddings" not in name:
            count = max(1, weight.numel() // 300)
            places = torch.randperm(weight.numel(), generator=generator)
            if clustered:  # in a tenth of the columns
                places = places[places % weight.shape[1] < max(1, weight.shape[1] // 10)]
            indices[name] = places[:count].sort().values
    CompactValues(real, indices)
    with Ledger() as ledger:
        outputs(real, setting(), 8).loss.backward()
    sizes = {name: p.numel() for name, p in real.named_parameters()}
    candidates = {name: sizes[name] for name in indices}
    needs = Needs("all", "selected", fraction=1 / 300, candidates=candidates, clustered=clustered)
    planner = Planner(lambda: meta("bert"), 0)
    planned = planner.prices.train(setting(needs=needs), TASKS[1]).peak_bytes
    assert planned == pytest.approx(ledger.peak_bytes, rel=0.1)
