"""Sums of gradients and of their squares against autograd, unit by unit in double precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from cl_runner.sparse import importance
from cl_runner.sparse.importance import Importance, cap, draw_labels, measure

Batch = dict[str, Tensor]
LossOf = Callable[[nn.Module, Batch], Tensor]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


def shaken(model: nn.Module) -> nn.Module:
    """The usual start leaves biases at 0, norms at 1 and gradients tiny."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def encoder(configuration: BertConfig | RobertaConfig) -> nn.Module:
    return shaken(AutoModelForSequenceClassification.from_config(configuration))


def bert() -> nn.Module:
    return encoder(BertConfig(**SIZES, num_labels=3))


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


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return text_loss(model, batch) / len(batch["labels"])


def language_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Per example the mean over the tokens that follow, as a language model's."""
    if model.config.is_encoder_decoder:
        # The encoder-decoder reads the text and writes the same.
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], decoder_input_ids=batch["input_ids"]
        ).logits
    else:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    counts = batch["attention_mask"][:, 1:]
    losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    return ((losses * counts).sum(1) / counts.sum(1)).sum()


def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")


def cut(batch: Batch, *sizes: int) -> list[Batch]:
    parts = zip(*(tensor.split(sizes) for tensor in batch.values()), strict=True)
    return [dict(zip(batch, part, strict=True)) for part in parts]


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


class Expected(NamedTuple):
    gradient: dict[str, Tensor]
    fisher: dict[str, Tensor]


def reference(model: nn.Module, batch: Batch, loss: LossOf, micro_batch: int = 1) -> Expected:
    """Sums of g and g^2 in double precision, by nothing but autograd."""
    model = copy.deepcopy(model).double().eval().requires_grad_(True)
    parameters = dict(model.named_parameters())
    sums = Expected(*({name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(2)))
    for start in range(0, len(next(iter(batch.values()))), micro_batch):
        unit = {key: tensor[start : start + micro_batch] for key, tensor in batch.items()}
        unit = {key: t.double() if t.is_floating_point() else t for key, t in unit.items()}
        model.zero_grad()
        loss(model, unit).backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                sums.gradient[name] += parameter.grad
                sums.fisher[name] += parameter.grad**2
    return sums


def assert_same(found: Importance, expected: Expected, relative: float = 1e-4) -> None:
    """To `relative`, except gradients that are 0 but for rounding, such as the key's bias."""
    for sums, correct, power in ((found.fisher, expected.fisher, 1.0), (found.gradient, expected.gradient, 0.5)):
        if sums is None:
            continue
        assert set(sums) <= set(correct)
        top = max(float(total.abs().max()) for total in correct.values())
        for name, total in sums.items():
            assert total.dtype == torch.float32
            absolute = relative / 10 * float(correct[name].abs().max()) + 1e-12**power * top
            torch.testing.assert_close(total.double(), correct[name], rtol=relative, atol=absolute, msg=name)


@pytest.fixture
def looped(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The parameters of every pass over single units, in order; the first is the comparison with the rules."""
    calls: list[set[str]] = []
    original = importance._each_unit

    def spy(model: nn.Module, batch: Batch, loss: LossOf, names: set[str], *others: object) -> None:
        calls.append(set(names))
        original(model, batch, loss, names, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(importance, "_each_unit", spy)
    return calls


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_encoders_equal_autograd(kind: str, attention: str, looped: list[set[str]]) -> None:
    pad = 0 if kind == "bert" else 1
    configuration = (BertConfig if kind == "bert" else RobertaConfig)(
        **SIZES, num_labels=3, pad_token_id=pad, attn_implementation=attention
    )
    model, batch = encoder(configuration), text_batch(pad)
    names = names_of(model)
    found = measure(model, lambda: cut(batch, 2, 2, 1), text_loss, names, gradient=True)
    assert_same(found, reference(model, batch, text_loss))
    assert (found.units, found.examples) == (5, 5)
    # The comparison, and the last batch of one example; nothing else needed a loop.
    assert looped == [set(names), set(names)]
    assert not found.fisher[f"{kind}.embeddings.word_embeddings.weight"][pad].any()
    assert not found.fisher[f"{kind}.embeddings.word_embeddings.weight"][20:].any()  # tokens never seen


DECODERS: dict[str, tuple[PretrainedConfig, set[str]]] = {  # and what no rule covers
    "llama": (LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=False), set()),
    "llama-tied": (LlamaConfig(**SIZES, tie_word_embeddings=True), set()),
    "qwen3": (Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8), set()),  # norms of queries and keys
    "gemma2": (Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8), set()),  # scale 1 + weight, tied
    "gpt2": (GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=20), set()),  # Conv1D, tied
    "t5": (
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0),
        # One table of relative positions for all examples.
        {f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for side in ("encoder", "decoder")},
    ),
}


@pytest.mark.parametrize("kind", DECODERS)
def test_language_models_equal_autograd(kind: str, looped: list[set[str]]) -> None:
    configuration, left = DECODERS[kind]
    family = AutoModelForSeq2SeqLM if configuration.is_encoder_decoder else AutoModelForCausalLM
    model = shaken(family.from_config(configuration))
    batch = text_batch(0)
    del batch["labels"]
    names = names_of(model)
    found = measure(model, lambda: cut(batch, 3, 2), language_loss, names, gradient=True)
    assert_same(found, reference(model, batch, language_loss))
    assert looped == [set(names) - left, *([left, left] if left else [])]


def test_bf16_models_need_no_loop(looped: list[set[str]]) -> None:
    """Activations in bf16 differ with the batch size; the rules still hold, and products add up in fp32."""
    model = shaken(AutoModelForCausalLM.from_config(DECODERS["llama"][0])).bfloat16()
    batch = text_batch(0)
    names = names_of(model)
    found = measure(model, lambda: [batch], language_loss, names, gradient=True)
    assert looped == [set(names)]
    expected = reference(model, batch, language_loss)
    for name in names:
        error = (found.fisher[name] - expected.fisher[name]).norm() / expected.fisher[name].norm()
        assert found.fisher[name].dtype == torch.float32
        assert float(error) < 0.2, name


def test_autocast_around_the_pass(looped: list[set[str]]) -> None:
    model, batch = bert(), text_batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = measure(model, lambda: [batch], text_loss, names_of(model))
    assert looped == [set(names_of(model))]
    expected = reference(model, batch, text_loss)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert float((found.fisher[name] - expected.fisher[name]).norm() / expected.fisher[name].norm()) < 0.1
    assert len(found.fisher[name].unique()) > 0.9 * found.fisher[name].numel()  # not on the coarse grid of bf16


def test_only_the_asked_parameters() -> None:
    model, batch = bert(), text_batch(0)
    expected = reference(model, batch, text_loss)
    names = ["bert.encoder.layer.1.attention.self.query.weight", "classifier.bias"]
    found = measure(model, lambda: [batch], text_loss, names)
    assert list(found.fisher) == names and found.gradient is None
    assert_same(found, expected)
    both = measure(model, lambda: [batch], text_loss, names, gradient=True)
    assert all(torch.equal(both.fisher[name], found.fisher[name]) for name in names)  # G does not disturb F


def test_hand_worked() -> None:
    """Two examples with opposite gradients: the batch's gradient is 0, the Fisher is not."""
    model = nn.Linear(2, 1, bias=True)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.bias.zero_()
    batch = {"x": torch.tensor([[1.0, 3.0], [-1.0, -3.0]])}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"]).sum()

    def mean(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"]).mean()

    found = measure(model, lambda: [batch], loss, ["weight", "bias"], gradient=True)
    assert found.gradient is not None
    assert (found.fisher["weight"].tolist(), found.fisher["bias"].tolist()) == ([[2.0, 18.0]], [2.0])
    assert (found.gradient["weight"].tolist(), found.gradient["bias"].tolist()) == ([[0.0, 0.0]], [2.0])
    assert found.mean_fisher()["weight"].tolist() == [[1.0, 9.0]]
    both = measure(model, lambda: [batch], mean, ["weight", "bias"], micro_batch=2)
    assert (both.fisher["weight"].tolist(), both.units, both.examples) == ([[0.0, 0.0]], 1, 2)


@pytest.mark.parametrize("micro_batch", [2, 3])
def test_micro_batches(micro_batch: int) -> None:
    """Units are micro-batches in the given order, the last one smaller; batches may hold several."""
    model, batch = bert(), text_batch(0)
    expected = reference(model, batch, mean_loss, micro_batch)
    sizes = (4, 1) if micro_batch == 2 else (3, 2)
    found = measure(
        model, lambda: cut(batch, *sizes), mean_loss, names_of(model), micro_batch=micro_batch, gradient=True
    )
    assert_same(found, expected)
    assert (found.units, found.examples) == (5 // micro_batch + 1, 5)
    with pytest.raises(ValueError, match=f"micro-batches of {micro_batch} needs batches of a multiple of that, got 1 "):
        measure(model, lambda: cut(batch, 1, 4), mean_loss, names_of(model), micro_batch=micro_batch)


def test_one_gradient_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = bert(), text_batch(0)
    alive: list[int] = []
    original = importance._Total.add

    def spy(self: importance._Total, gradient: Tensor) -> None:
        alive.append(sum(parameter.grad is not None for parameter in model.parameters()))
        original(self, gradient)

    monkeypatch.setattr(importance._Total, "add", spy)
    measure(model, lambda: [batch], mean_loss, names_of(model), micro_batch=5)
    assert alive == [0] * len(names_of(model))  # the one in hand is no longer the parameter's


def test_bf16_sums_as_released() -> None:
    """g, g^2 and both sums rounded to bf16 at every step, one unit after another."""
    model, batch = bert().bfloat16(), text_batch(0)
    names = names_of(model)
    gradients: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    again = copy.deepcopy(model).eval()
    for unit in cut(batch, 2, 2, 1):
        again.zero_grad()
        mean_loss(again, unit).backward()
        for name, parameter in again.named_parameters():
            g = parameter.grad
            gradients[name] = g.clone() if name not in gradients else gradients[name] + g
            squares[name] = g * g if name not in squares else squares[name] + g * g
    found = measure(model, lambda: [batch], mean_loss, names, micro_batch=2, gradient=True, dtype=torch.bfloat16)
    assert found.gradient is not None
    for name in names:
        assert found.fisher[name].dtype == torch.bfloat16
        assert torch.equal(found.fisher[name], squares[name])
        assert torch.equal(found.gradient[name], gradients[name])


def totals(found: Importance) -> dict[str, Tensor]:
    assert found.gradient is not None
    return {f"{kind}/{name}": t for kind in ("fisher", "gradient") for name, t in getattr(found, kind).items()}


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_any_number_of_passes_gives_the_same_bits(micro_batch: int) -> None:
    model = shaken(AutoModelForCausalLM.from_config(DECODERS["llama-tied"][0]))
    batch = text_batch(0)
    seen: list[int] = []

    def run(passes: int) -> dict[str, Tensor]:
        return totals(
            measure(
                model,
                lambda: cut(batch, 2, 2, 1),
                language_loss,
                names_of(model),
                micro_batch=micro_batch,
                gradient=True,
                passes=passes,
                on_batch=seen.append,
            )
        )

    once = run(1)
    assert seen == [2, 4, 5]
    for passes in (2, 3, 1000):
        again = run(passes)
        assert list(again) == list(once)
        assert all(torch.equal(again[name], once[name]) for name in once)
    seen.clear()
    run(2)
    assert seen == [2, 4, 5, 7, 9, 10]


def test_groups_are_even_and_keep_modules_together() -> None:
    model = bert()
    parameters = dict(model.named_parameters())
    groups = importance._groups(model, names_of(model), 3)
    assert [name for group in groups for name in group] == names_of(model)
    sizes = [sum(parameters[name].numel() for name in group) for group in groups]
    assert len(groups) == 3 and max(sizes) < 1.5 * sum(sizes) / 3
    modules = [{name.rpartition(".")[0] for name in group} for group in groups]
    assert not modules[0] & modules[1] and not modules[1] & modules[2]


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_sums_in_main_memory(micro_batch: int) -> None:
    model, batch = bert(), text_batch(0)
    found = measure(
        model,
        lambda: cut(batch, 2, 2, 1),
        text_loss,
        names_of(model),
        micro_batch=micro_batch,
        gradient=True,
        accumulate="cpu",
    )
    assert_same(found, reference(model, batch, text_loss, micro_batch))


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


def test_everything_is_as_before() -> None:
    model, batch = bert(), text_batch(0)
    model.train()
    model.bert.pooler.eval()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    model.classifier.bias.grad = torch.ones(3)
    names = names_of(model)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    def fail(model: nn.Module, batch: Batch) -> Tensor:
        text_loss(model, batch)
        raise RuntimeError("the loss failed")

    with torch.no_grad():
        measure(model, lambda: [batch], text_loss, names)
        measure(model, lambda: [batch], text_loss, names, micro_batch=5)
    with pytest.raises(KeyboardInterrupt):
        measure(model, lambda: [batch, batch], text_loss, names, on_batch=stop)
    with pytest.raises(RuntimeError, match="the loss failed"):
        measure(model, lambda: [batch], fail, names)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(grads) == {"classifier.bias"} and grads["classifier.bias"].tolist() == [1.0, 1.0, 1.0]


def test_drawn_labels() -> None:
    """The same in every pass and however the rows are cut, from the right distribution, and used for the Fisher."""
    model, batch = bert(), text_batch(0)
    seen: list[int] = []

    def draw(batch: Batch, generator: torch.Generator) -> Batch:
        labels = draw_labels(model(batch["input_ids"], batch["attention_mask"]).logits, generator)
        seen.extend(labels.tolist())
        return {**batch, "labels": labels}

    found = measure(model, lambda: cut(batch, 3, 2), text_loss, names_of(model), draw=draw, seed=5, passes=2)
    assert len(seen) == 10 and seen[:5] == seen[5:]
    assert_same(found, reference(model, {**batch, "labels": torch.tensor(seen[:5])}, text_loss))

    logits = torch.tensor([0.7, 0.3, 0.0]).log().expand(10_000, 3)
    whole = draw_labels(logits, torch.Generator().manual_seed(0))
    share = whole.bincount(minlength=3) / len(whole)
    assert float(share[0]) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 10_000)) and not share[2]
    generator = torch.Generator().manual_seed(0)
    parts = torch.cat([draw_labels(part, generator) for part in logits.split((1, 2, 9_997))])
    assert torch.equal(whole, parts)


def test_cap() -> None:
    texts = [f"text {i}" for i in range(100)]
    chosen = cap(texts, 10, 3)
    assert len(set(chosen)) == 10 and chosen == [text for text in texts if text in chosen]
    assert chosen == cap(texts, 10, 3) != cap(texts, 10, 4)
    assert cap(texts, None, 3) == cap(texts, 100, 3) == texts


def test_mistakes() -> None:
    model, batch = bert(), text_batch(0)
    with pytest.raises(ValueError, match="at least one example"):
        measure(model, lambda: [], text_loss, ["classifier.bias"])
    with pytest.raises(ValueError, match="no parameter 'classifier.bais'"):
        measure(model, lambda: [batch], text_loss, ["classifier.bais"])
    with pytest.raises(AssertionError, match="differ from pass to pass"):
        batches: Iterator[Batch] = iter([batch])
        measure(model, lambda: batches, text_loss, names_of(model), passes=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_what_is_not_finite_is_named(value: float, micro_batch: int) -> None:
    model, batch = bert(), text_batch(0)

    def run(loss: LossOf) -> None:
        measure(
            model, lambda: cut(batch, 2, 2, 1), loss, ["classifier.weight", "classifier.bias"], micro_batch=micro_batch
        )

    def broken_later(model: nn.Module, given: Batch) -> Tensor:
        return text_loss(model, given) * (value if torch.equal(given["labels"], batch["labels"][2:4]) else 1.0)

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * value

    def broken_gradient(model: nn.Module, given: Batch) -> Tensor:
        return Broken.apply(text_loss(model, given))

    with pytest.raises(ValueError, match=f"the loss is {value:g} among examples 3 to 4 "):
        run(broken_later)
    with pytest.raises(ValueError, match=r"sum of squared gradients of classifier\.weight is not finite"):
        run(broken_gradient)


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
