"""The sparse layers: gradients by brute force, equality with dense masks, what they leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from cl_runner.sparse import layers
from cl_runner.sparse.layers import CompactValues, plan_products, selected_gradient

Loss = Callable[[nn.Module], Tensor]


def scattered(model: nn.Module, share: float, seed: int = 0) -> dict[str, Tensor]:
    """Random positions of every tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(p.numel(), generator=generator)[: max(1, round(share * p.numel()))].sort().values
        for name, p in model.named_parameters()
    }


def clustered(model: nn.Module) -> dict[str, Tensor]:
    """Two whole columns and one scattered entry of every matrix."""
    return {
        name: torch.cat([torch.arange(0, p.numel(), p.shape[1]), torch.arange(2, p.numel(), p.shape[1])])
        .unique()
        .sort()
        .values
        if p.dim() == 2
        else torch.tensor([0])
        for name, p in model.named_parameters()
    }


def gradients(model: nn.Module, loss: Loss, indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the sparse layers compute."""
    values = CompactValues(model, indices)
    try:
        loss(model).backward()
        return {name: p.grad for name, p in values.parameters.items() if p.grad is not None}
    finally:
        values.release()


def expected(model: nn.Module, loss: Loss, indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by ordinary full gradients."""
    model = copy.deepcopy(model).requires_grad_(True)
    loss(model).backward()
    parameters = dict(model.named_parameters())
    return {
        name: parameters[name].grad.view(-1)[index]
        for name, index in indices.items()
        if parameters[name].grad is not None
    }


class Toy(nn.Module):
    """Every kind of layer that has a rule, one that has none, and a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6, padding_idx=0)
        self.first = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.second = Conv1D(6, 8)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(functional.gelu(self.second(self.norm(functional.relu_(self.first(self.table(ids)))))))


IDS = torch.tensor([[1, 2, 3, 0], [2, 2, 8, 5]])


def toy_loss(model: nn.Module) -> Tensor:
    return model(IDS).square().sum()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.6, 1.0])
def test_gradients_of_every_layer_by_brute_force(share: float) -> None:
    torch.manual_seed(0)
    model = Toy().double()
    indices = scattered(model, share)
    found, wanted = gradients(model, toy_loss, indices), expected(model, toy_loss, indices)
    assert set(found) == set(wanted) == set(indices)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("unit", "kind"), [(1e-9, "dense"), (1e9, "gathered"), (0.3, "thin + gathered"), (1 / 35, "thin")]
)
@pytest.mark.parametrize("conv", [False, True])
def test_gradcheck_of_every_strategy(unit: float, kind: str, conv: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp64 finite differences through the custom function, for input and values."""
    monkeypatch.setattr(layers, "MULTIPLY_ADD", {"cpu": unit})
    monkeypatch.setattr(layers, "CHUNK", {"cpu": 7})  # several chunks
    monkeypatch.setattr(layers, "SECOND_PRODUCT", 0)
    torch.manual_seed(0)
    model: Any = (Conv1D(5, 6) if conv else nn.Linear(6, 5)).double()
    columns = torch.tensor([0, 0, 0, 0, 0, 3, 4])  # of the input: one column whole, two entries alone
    rows = torch.tensor([0, 1, 2, 3, 4, 1, 2])
    if kind == "dense":  # of more than half of the columns
        rows, columns = torch.arange(5).repeat_interleave(6), torch.arange(6).repeat(5)
    if kind == "thin":
        rows, columns = rows[:5], columns[:5]
    flat = (columns * 5 + rows if conv else rows * 6 + columns).sort().values
    if conv:
        rows, columns = flat % 5, flat // 5
    else:
        rows, columns = flat // 6, flat % 6
    plan = plan_products(rows, columns, 5, 6, "cpu")
    assert plan.kind == kind
    bias_index = torch.tensor([1, 4])

    def function(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        whole, shift = model.weight.detach().clone(), model.bias.detach().clone()
        whole.view(-1)[flat], shift[bias_index] = weight.detach(), bias.detach()
        output: Tensor = layers._Linear.apply(inputs, whole, shift, weight, bias, plan, bias_index, not conv)
        return output

    inputs = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(flat), dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (inputs, weight, bias))


def test_rows_are_multiplied_together_where_that_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two whole output rows of a wide weight."""
    monkeypatch.setattr(layers, "MULTIPLY_ADD", {"cpu": 0.1})
    rows, columns = torch.tensor([3, 7]).repeat_interleave(16), torch.arange(16).repeat(2)
    plan = plan_products(rows, columns, 64, 16, "cpu")
    assert plan.by_rows and plan.kind == "thin" and plan.thin is not None and plan.thin.tolist() == [3, 7]
    saved, gradient = torch.randn(5, 16, dtype=torch.float64), torch.randn(5, 64, dtype=torch.float64)
    torch.testing.assert_close(
        selected_gradient(plan, saved, gradient, torch.float64), (gradient.t() @ saved)[rows, columns]
    )


def test_an_embedding_trains_the_rows_of_the_batch_only() -> None:
    """Row 0 is padding, row 8 is selected but absent, row 2 occurs three times."""
    table = nn.Embedding(9, 3, padding_idx=0).double()
    indices = {"weight": torch.tensor([0, 6, 7, 8, 24])}
    values = CompactValues(table, indices)
    weights = torch.arange(12, dtype=torch.float64).view(1, 4, 3)
    (table(torch.tensor([[2, 0, 2, 2]])) * weights).sum().backward()
    gradient = values.parameters["weight"].grad
    assert gradient is not None
    # Entries 6, 7, 8 are row 2: its three positions weigh 0+6+9, 1+7+10, 2+8+11.
    assert gradient.tolist() == [0, 15, 18, 21, 0]
    values.release()


def tiny_models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    return {
        "bert": BertForSequenceClassification(
            BertConfig(
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        ),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(
                vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
            )
        ),
        "llama": LlamaForCausalLM(
            LlamaConfig(
                vocab_size=40,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        ),
        "t5": T5ForConditionalGeneration(
            T5Config(
                vocab_size=40,
                d_model=16,
                d_kv=8,
                d_ff=24,
                num_layers=2,
                num_heads=2,
                dropout_rate=0.0,
                decoder_start_token_id=0,
            )
        ),
    }


def model_loss(model: nn.Module) -> Tensor:
    ids = torch.tensor([[3, 5, 7, 5, 9], [4, 4, 1, 2, 3]])
    labels = torch.tensor([0, 1]) if isinstance(model, BertForSequenceClassification) else ids
    loss: Tensor = model(input_ids=ids, labels=labels).loss
    return loss


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("select", [lambda m: scattered(m, 0.05), clustered])
def test_gradients_of_real_architectures(name: str, select: Callable[[nn.Module], dict[str, Tensor]]) -> None:
    """Norms, biases, tied embeddings, Conv1D, relative positions."""
    model = tiny_models()[name].double().train()
    indices = select(model)
    found, wanted = gradients(model, model_loss, indices), expected(model, model_loss, indices)
    for key, gradient in wanted.items():
        torch.testing.assert_close(found.get(key, torch.zeros_like(gradient)), gradient, rtol=1e-9, atol=1e-12)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_bare_use_of_a_weight_counts_as_well() -> None:
    """A weight used inside its layer and outside of it gets the sum of both gradients."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return functional.linear(self.layer(inputs), self.layer.weight)

    torch.manual_seed(0)
    model = Both().double()
    inputs = torch.randn(3, 4, dtype=torch.float64)
    indices = {"layer.weight": torch.tensor([1, 6, 11]), "layer.bias": torch.tensor([2])}
    found = gradients(model, lambda m: m(inputs).square().sum(), indices)
    for name, gradient in expected(model, lambda m: m(inputs).square().sum(), indices).items():
        torch.testing.assert_close(found[name], gradient)


def train_sparse(model: nn.Module, indices: dict[str, Tensor], batches: list[list[Loss]], clip: float) -> None:
    """Steps of clipped AdamW with decay; a step is a list of micro-batches."""
    values = CompactValues(model, indices)
    parameters = list(values.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, eps=1e-5)
    for step in batches:
        for loss in step:
            (loss(model) / len(step)).backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()
        values.write_through()
    values.release()


def train_masked(model: nn.Module, indices: dict[str, Tensor], batches: list[list[Loss]], clip: float) -> None:
    """The same with full gradients, dense masks, a dense optimizer, and decay held off the unselected weights."""
    parameters = dict(model.requires_grad_(True).named_parameters())
    masks = {name: torch.zeros(p.numel()).index_fill_(0, indices[name], 1).view_as(p) for name, p in parameters.items()}
    start = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.1, eps=1e-5)
    for step in batches:
        for loss in step:
            (loss(model) / len(step)).backward()
        for name, p in parameters.items():
            if p.grad is not None:
                p.grad.mul_(masks[name])
        nn.utils.clip_grad_norm_(parameters.values(), clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(torch.where(masks[name].bool(), p, start[name]))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_equal_to_dense_masked_adamw_step_by_step(name: str) -> None:
    """fp32, clipping active, two micro-batches a step, weight decay: to the last bits of fp32 after ten steps.

    Not bitwise: a sum over positions in another order rounds otherwise. An epsilon of 1e-5 keeps AdamW from blowing
    up gradients that are zero but for rounding (the key's bias cancels in the softmax).
    """
    model = tiny_models()[name].train()
    twin = copy.deepcopy(model)
    indices = scattered(model, 0.05)

    def loss_on(seed: int) -> Loss:
        ids = torch.randint(1, 40, (2, 5), generator=torch.Generator().manual_seed(seed))
        labels = ids[:, 0] % 2 if isinstance(model, BertForSequenceClassification) else ids
        return lambda m: m(input_ids=ids, labels=labels).loss

    batches = [[loss_on(2 * i), loss_on(2 * i + 1)] for i in range(10)]
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    train_sparse(model, indices, batches, 0.5)
    train_masked(twin, indices, batches, 0.5)
    masked = dict(twin.named_parameters())
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight, masked[key], rtol=1e-5, atol=2e-6)
        outside = torch.ones(weight.numel(), dtype=torch.bool).index_fill_(0, indices[key], False)
        assert torch.equal(weight.detach().view(-1)[outside], start[key].view(-1)[outside])
        assert not torch.equal(weight, start[key]) or key.endswith(("position_embeddings.weight", "key.bias"))


def test_bitwise_equal_to_dense_masked_adamw_given_the_same_gradients() -> None:
    """Norms gather a full gradient, so that only the optimizer is left to differ, and it does not."""
    torch.manual_seed(0)
    model: Any = nn.LayerNorm(64)
    twin = copy.deepcopy(model)
    inputs = torch.randn(20, 3, 64)
    indices = scattered(model, 0.3)
    batches = [[lambda m, i=i: (m(inputs[i]) ** 4).sum(), lambda m, i=i: m(inputs[i + 1]).sum()] for i in range(15)]
    train_sparse(model, indices, batches, 1e9)  # the norm itself is a sum in another order
    train_masked(twin, indices, batches, 1e9)
    for mine, dense in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, dense)


def test_bf16_weights_hold_fp32_values() -> None:
    """Steps too small for bf16 add up in the fp32 values; the weights are their rounding."""
    torch.manual_seed(0)
    layer: Any = nn.Linear(4, 4, bias=False).bfloat16()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    values = CompactValues(layer, {"weight": torch.tensor([5])})
    (vector,) = values.parameters.values()
    assert vector.dtype == torch.float32
    before = layer.weight.detach().clone()
    for _ in range(10):
        with torch.no_grad():
            vector.sub_(1e-3)
        values.write_through()
    assert (
        float(vector.detach()) == pytest.approx(0.99) and float(layer.weight.detach().view(-1)[5]) == 0.98828125
    )  # 2^-8 apart below 1
    layer(torch.randn(2, 4, dtype=torch.bfloat16)).sum().backward()
    assert vector.grad is not None and vector.grad.dtype == torch.float32
    untouched = torch.arange(16) != 5
    assert torch.equal(layer.weight.view(-1)[untouched], before.view(-1)[untouched])


def test_autocast_gives_the_gradient_of_the_half_precision_product() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    indices = scattered(model, 0.3)
    inputs = torch.randn(8, 16)

    def loss(m: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m(inputs).float().square().sum()

    found, wanted = gradients(model, loss, indices), expected(model, loss, indices)
    for name, gradient in wanted.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], gradient, rtol=0.02, atol=0.02 * float(gradient.abs().max()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)).double()
    inputs = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    indices = scattered(model, 0.2)
    plain = gradients(model, lambda m: m(inputs).square().sum(), indices)
    saved = gradients(model, lambda m: checkpoint(m, inputs, use_reentrant=reentrant).square().sum(), indices)
    for name, gradient in plain.items():
        assert torch.equal(saved[name], gradient)


def test_a_layer_without_selected_entries_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    values = CompactValues(model, {"1.weight": torch.tensor([4])})
    assert [module for module in model.modules() if "forward" in vars(module)] == [model[1]]
    model(torch.randn(2, 3)).sum().backward()
    assert model[0].weight.grad is None and model[2].weight.grad is None and not model[2].weight.requires_grad
    assert values.parameters["1.weight"].grad is not None
    values.release()
