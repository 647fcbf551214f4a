"""Layers that the rules for single gradients do not know, or only seem to know."""

from __future__ import annotations

import pytest
import torch
from gradients import Batch, Expected, assert_same, names_of, plain_loss, reference, watch_loops
from torch import Tensor, nn
from torch.nn import functional
from transformers import BartConfig, BartForSequenceClassification

from cl_runner.sparse import importance
from cl_runner.sparse.importance import measure


@pytest.fixture
def looped(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    return watch_loops(monkeypatch)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Odd(nn.Module):
    """What layers may do: one called twice, tied weights; and what no rule covers: weights used directly, others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.once = nn.Linear(6, 6)
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 10, bias=False)
        self.tied.weight = self.embed.weight
        self.direct = nn.Linear(6, 6)
        self.rank_one = nn.Parameter(torch.randn(6))
        self.convolution = nn.Conv1d(6, 6, 1)
        self.unused = nn.Linear(6, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        hidden *= 1.5  # in place, on what may begin the graph
        hidden = torch.tanh(self.twice(torch.tanh(self.twice(self.once(hidden)))))
        hidden = self.direct(hidden) * self.direct.weight.sum() * self.rank_one
        hidden = self.convolution(hidden.transpose(1, 2)).transpose(1, 2)
        return self.tied(hidden.mean(1))


def test_the_rest_goes_one_by_one(looped: list[set[str]]) -> None:
    torch.manual_seed(0)
    model = Odd()
    batch = {"x": torch.randint(0, 10, (4, 5)), "y": torch.randint(0, 10, (4,))}
    found = measure(model, lambda: [batch], plain_loss, names_of(model), gradient=True)
    assert_same(found, reference(model, batch, plain_loss))
    assert looped[1] == {"direct.weight", "rank_one", "convolution.weight", "convolution.bias"}
    assert not found.fisher["unused.weight"].any()


class Sharing(nn.Module):
    """A matrix that is embedding and output layer, the latter twice; a norm called twice; a call that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.inner = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 10)
        self.tied.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.inner(self.norm(self.embed(tokens))))
        self.inner(hidden.exp())
        return self.tied(hidden.mean(1)) + self.tied(torch.tanh(hidden)).sum(1)


def test_sharing(looped: list[set[str]]) -> None:
    torch.manual_seed(0)
    model = Sharing()
    batch = {"x": torch.randint(0, 10, (4, 5)), "y": torch.randint(0, 10, (4,))}
    found = measure(model, lambda: [batch], plain_loss, names_of(model), gradient=True)
    assert_same(found, reference(model, batch, plain_loss))
    assert looped[1] == {"embed.weight"}


class Centred(nn.Module):
    """Looks like an RMS norm, but is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * functional.layer_norm(x, (4,), eps=self.eps)


def test_norms_that_only_look_like_it(looped: list[set[str]]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Centred(), nn.Linear(4, 8), nn.Tanh(), nn.GroupNorm(2, 8), nn.Linear(8, 3))
    batch = {"x": torch.randn(5, 4), "y": torch.randint(0, 3, (5,))}
    found = measure(model, lambda: [batch], plain_loss, names_of(model), gradient=True)
    assert_same(found, reference(model, batch, plain_loss))
    assert looped[1] == {"1.weight", "4.weight"}


class SequenceFirst(nn.Module):
    """Positions come first, which looks like a batch when there are as many positions as examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


@pytest.mark.parametrize("positions", [2, 4])
def test_other_layouts(positions: int, looped: list[set[str]]) -> None:
    torch.manual_seed(0)
    model = SequenceFirst()
    batch = {"x": torch.randn(4, positions, 3), "y": torch.tensor([0, 1, 1, 0])}
    found = measure(model, lambda: [batch], plain_loss, names_of(model), gradient=True)
    assert_same(found, reference(model, batch, plain_loss))
    assert looped[1] == {"inner.weight", "inner.bias"}


class Changing(nn.Module):
    """Calls a layer twice only for long inputs: what the first batch shows does not hold for the next."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        if x.shape[1] > 2:
            hidden = torch.tanh(self.inner(hidden))
        return self.head(hidden.mean(1))


def test_each_batch_is_looked_at() -> None:
    torch.manual_seed(0)
    model = Changing()
    labels = torch.tensor([0, 1, 1])
    batches = [{"x": torch.randn(3, length, 3), "y": labels} for length in (2, 4)]
    found = measure(model, lambda: batches, plain_loss, names_of(model))
    first, second = (reference(model, batch, plain_loss).fisher for batch in batches)
    assert_same(found, Expected({}, {name: first[name] + second[name] for name in first}))


class Overwriting(nn.Module):
    """Changes a layer's input after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        logits = self.inner(x)
        x.zero_()
        return logits


def test_inputs_overwritten_later(looped: list[set[str]]) -> None:
    torch.manual_seed(0)
    model = Overwriting()
    batch = {"x": torch.randn(4, 3), "y": torch.tensor([0, 1, 1, 0])}
    found = measure(model, lambda: [batch], plain_loss, ["inner.bias"])
    # The gradient of the logits is softmax - onehot, and so is the bias's.
    logits = batch["x"].double() @ model.inner.weight.double().T + model.inner.bias.double()
    gradients = (logits.softmax(1) - functional.one_hot(batch["y"], 3)).detach()
    assert_same(found, Expected({}, {"inner.bias": gradients.square().sum(0)}))
    assert looped == [set(), {"inner.bias"}]


def test_an_embedding_that_is_none() -> None:
    """BART's positions: a subclass of nn.Embedding that is called with hidden states and makes its own rows."""
    torch.manual_seed(0)
    model = BartForSequenceClassification(
        BartConfig(
            vocab_size=50,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
            max_position_embeddings=16,
            num_labels=3,
        )
    )
    model.eval()
    ids = torch.randint(4, 50, (3, 5))
    ids[:, -1] = 2  # the end of the text, where BART's head looks

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(input_ids=batch["input_ids"]).logits
        return functional.cross_entropy(logits, batch["labels"], reduction="sum")

    batch = {"input_ids": ids, "labels": torch.tensor([0, 1, 2])}
    name = "model.decoder.embed_positions.weight"
    found = importance.measure(model, lambda: [batch], loss, [name])
    wanted = torch.zeros_like(model.get_parameter(name))
    for i in range(3):
        one = {key: tensor[i : i + 1] for key, tensor in batch.items()}
        wanted += torch.autograd.grad(loss(model, one), model.get_parameter(name))[0].square()
    torch.testing.assert_close(found.fisher[name], wanted)
