"""Sums of gradients and of their squares against autograd, unit by unit in double precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from gradients import (
    SIZES,
    Batch,
    LossOf,
    assert_same,
    bert,
    cut,
    encoder,
    language_loss,
    mean_loss,
    names_of,
    reference,
    shaken,
    text_batch,
    text_loss,
    watch_loops,
)
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
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
from cl_runner.sparse.sums import Total


@pytest.fixture
def looped(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    return watch_loops(monkeypatch)


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
    original = Total.add

    def spy(self: Total, gradient: Tensor) -> None:
        alive.append(sum(parameter.grad is not None for parameter in model.parameters()))
        original(self, gradient)

    monkeypatch.setattr(Total, "add", spy)
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


def test_sums_are_brought_to_a_device_one_by_one() -> None:
    sums = {name: torch.rand(3) for name in ("first", "second")}
    found = Importance(sums, sums, 2, 2).on(torch.device("meta"))
    assert found.gradient is not None and list(found.fisher) == list(found.gradient) == ["first", "second"]
    assert found.fisher["first"].is_meta and not sums["first"].is_meta and len(found.fisher) == 2


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
        return batch | {"labels": labels}

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
