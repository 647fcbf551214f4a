"""Small models, their losses, and sums of their gradients by nothing but autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, BertConfig, RobertaConfig

from cl_runner.sparse import importance
from cl_runner.sparse.importance import Importance

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


def watch_loops(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The parameters of every pass over single units, in order; the first is the comparison with the rules."""
    calls: list[set[str]] = []
    original = importance._each_unit

    def spy(model: nn.Module, batch: Batch, loss: LossOf, names: set[str], *others: object) -> None:
        calls.append(set(names))
        original(model, batch, loss, names, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(importance, "_each_unit", spy)
    return calls
