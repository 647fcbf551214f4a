"""The exact Fisher against autograd, one example at a time in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, BertConfig, RobertaConfig

from cl_runner.sparse import importance
from cl_runner.sparse.importance import exact_fisher

Batch = dict[str, Tensor]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "num_labels": 3,
}


def encoder(configuration: BertConfig | RobertaConfig) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(configuration)
    with torch.no_grad():
        for parameter in model.parameters():  # the usual start leaves biases at 0 and gradients tiny
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def text_batch(pad: int, lengths: tuple[int, ...] = (7, 4, 9, 2, 9)) -> Batch:
    """Unequal lengths, repeated tokens, padding."""
    generator = torch.Generator().manual_seed(1)
    longest = max(lengths)
    ids = torch.randint(2, 12, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": torch.where(mask.bool(), ids, pad),
        "attention_mask": mask,
        "labels": torch.randint(0, 3, (len(lengths),), generator=generator),
    }


def text_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(logits, batch["labels"], reduction="sum")


def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")


def reference(model: nn.Module, batch: Batch, loss_sum: Callable[[nn.Module, Batch], Tensor]) -> dict[str, Tensor]:
    """F_i = 1/N sum_j g_ij^2 in double precision, by nothing but autograd."""
    model = copy.deepcopy(model).double().eval().requires_grad_(True)
    parameters = dict(model.named_parameters())
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = len(next(iter(batch.values())))
    for i in range(count):
        single = {key: tensor[i : i + 1] for key, tensor in batch.items()}
        single = {key: t.double() if t.is_floating_point() else t for key, t in single.items()}
        model.zero_grad()
        loss_sum(model, single).backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                totals[name] += parameter.grad**2 / count
    return totals


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    top = max(float(score.max()) for score in expected.values())
    for name, score in expected.items():
        assert found[name].dtype == torch.float32
        # The key's bias cancels in the softmax: its gradient is 0 but for rounding.
        torch.testing.assert_close(
            found[name].double(), score, rtol=1e-4, atol=1e-5 * float(score.max()) + 1e-12 * top, msg=name
        )


@pytest.fixture
def looped(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The parameters of every pass over single examples, in order."""
    calls: list[set[str]] = []
    original = importance._add_one_by_one

    def spy(model: nn.Module, batch: Batch, loss_sum: importance.LossSum, totals: dict[str, Tensor]) -> None:
        calls.append(set(totals))
        original(model, batch, loss_sum, totals)

    monkeypatch.setattr(importance, "_add_one_by_one", spy)
    return calls


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_encoders_equal_autograd(kind: str, attention: str, looped: list[set[str]]) -> None:
    pad = 0 if kind == "bert" else 1
    configuration = (BertConfig if kind == "bert" else RobertaConfig)(
        **SIZES, pad_token_id=pad, attn_implementation=attention
    )
    model, batch = encoder(configuration), text_batch(pad)
    names = [name for name, _ in model.named_parameters()]
    expected = reference(model, batch, text_loss)
    parts = [{key: tensor[a:b] for key, tensor in batch.items()} for a, b in ((0, 2), (2, 4), (4, 5))]
    found = exact_fisher(model, parts, text_loss, names)
    assert_same(found, expected)
    # The probe, and the last batch of one example; nothing else needed a loop.
    assert looped == [set(names), set(names)]
    assert not found[f"{kind}.embeddings.word_embeddings.weight"][pad].any()
    assert not found[f"{kind}.embeddings.word_embeddings.weight"][20:].any()  # tokens never seen


def test_only_the_asked_parameters(looped: list[set[str]]) -> None:
    model, batch = encoder(BertConfig(**SIZES)), text_batch(0)
    expected = reference(model, batch, text_loss)
    names = ["bert.encoder.layer.1.attention.self.query.weight", "classifier.bias"]
    assert_same(exact_fisher(model, [batch], text_loss, names), {name: expected[name] for name in names})


def test_hand_worked() -> None:
    """Two examples with opposite gradients: the batch's gradient is 0, the Fisher is not."""
    model = nn.Linear(2, 1, bias=True)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.bias.zero_()
    batch = {"x": torch.tensor([[1.0, 3.0], [-1.0, -3.0]])}
    found = exact_fisher(model, [batch], lambda m, b: m(b["x"]).sum(), ["weight", "bias"])
    assert found["weight"].tolist() == [[1.0, 9.0]]
    assert found["bias"].tolist() == [1.0]


class Odd(nn.Module):
    """What no rule covers: a layer called twice, tied weights, weights used directly, other layers."""

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
    found = exact_fisher(model, [batch], plain_loss, [name for name, _ in model.named_parameters()])
    assert_same(found, reference(model, batch, plain_loss))
    assert looped[1] == {
        "embed.weight", "twice.weight", "twice.bias", "direct.weight", "rank_one", "convolution.weight",
        "convolution.bias",
    }  # fmt: skip
    assert not found["unused.weight"].any()


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
    found = exact_fisher(model, [batch], plain_loss, [name for name, _ in model.named_parameters()])
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
    found = exact_fisher(model, batches, plain_loss, [name for name, _ in model.named_parameters()])
    parts = [reference(model, batch, plain_loss) for batch in batches]
    assert_same(found, {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]})


def test_everything_is_as_before() -> None:
    model, batch = encoder(BertConfig(**SIZES)), text_batch(0)
    model.train()
    model.bert.pooler.eval()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    model.classifier.bias.grad = torch.ones(3)
    names = [name for name, _ in model.named_parameters()]
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    def fail(model: nn.Module, batch: Batch) -> Tensor:
        text_loss(model, batch)
        raise RuntimeError("the loss failed")

    with torch.no_grad():
        exact_fisher(model, [batch], text_loss, names)
    with pytest.raises(KeyboardInterrupt):
        exact_fisher(model, [batch, batch], text_loss, names, stop)
    with pytest.raises(RuntimeError, match="the loss failed"):
        exact_fisher(model, [batch], fail, names)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(grads) == {"classifier.bias"} and grads["classifier.bias"].tolist() == [1.0, 1.0, 1.0]


def test_progress_counts_examples() -> None:
    model, batch = encoder(BertConfig(**SIZES)), text_batch(0)
    done: list[int] = []
    exact_fisher(model, [batch, text_batch(0, (3,))], text_loss, ["classifier.bias"], done.append)
    assert done == [5, 6]


def test_mistakes() -> None:
    model, batch = encoder(BertConfig(**SIZES)), text_batch(0)
    with pytest.raises(ValueError, match="at least one example"):
        exact_fisher(model, [], text_loss, ["classifier.bias"])
    with pytest.raises(ValueError, match="no parameter 'classifier.bais'"):
        exact_fisher(model, [batch], text_loss, ["classifier.bais"])
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="Fisher of classifier.bias is not finite"):
        exact_fisher(model, [batch], text_loss, ["classifier.bias"])
