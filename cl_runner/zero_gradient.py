"""Weights that a task cannot train: their gradient is 0 by construction, whatever rounding or weight decay make of it.

- Biases of keys: attention's softmax over keys does not see what is added to all of a query's products alike. Not with
  rotary positions or DeBERTa's, where the addition differs from key to key.
- Rows of embeddings that no text reads: of words that do not occur, positions behind the longest text, token types that
  are not used. The last token that a decoder is given counts as not read, as nothing follows that it could change. Not
  where the table is the output's as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cl_runner.data.example import Example
from cl_runner.learner import Learner

Reason = Literal["key_biases", "unread_rows"]
#: config.model_type -> names of the biases of keys, where a constant in all keys is one in all of a query's products.
KEY_BIASES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), r"\.attention\.self\.key\.bias$"),
    "albert": r"\.attention\.key\.bias$",
    "distilbert": r"\.attention\.k_lin\.bias$",
    "mpnet": r"\.attn\.k\.bias$",
    "opt": r"\.self_attn\.k_proj\.bias$",
    "gpt2": r"\.attn\.c_attn\.bias$",  # of query, key and value in one
}
#: Examples of a batch whose ids are looked at.
AT_ONCE = 64


class Zero(NamedTuple):
    """Which rows of a tensor have no gradient; of a vector every entry is a row."""

    reason: Reason
    rows: Tensor  # [rows] bool, on the CPU


def zero_gradient(learner: Learner, examples: Sequence[Example], names: Mapping[str, int]) -> dict[str, Zero]:
    """What cannot learn from these examples, by parameter name.

    Args:
        names: of the parameters to look at, with their entries.
    """
    model = learner.model
    assert isinstance(model, PreTrainedModel)
    found = {name: zero for name, zero in _key_biases(model) if name in names}
    tables = {name: module for name, module in _tables(model) if name in names}
    if tables and examples and learner.family.kind != "image_text":
        for name, read in _read(learner, examples, tables).items():
            found[name] = Zero("unread_rows", ~read)
    return {name: zero for name, zero in found.items() if bool(zero.rows.any())}


def _key_biases(model: PreTrainedModel) -> Iterator[tuple[str, Zero]]:
    pattern = KEY_BIASES.get(model.config.model_type)
    for name, parameter in model.named_parameters() if pattern else ():
        if re.search(pattern or "", name):
            rows = torch.ones(len(parameter), dtype=torch.bool)
            if model.config.model_type == "gpt2":
                rows.view(3, -1)[[0, 2]] = False
            yield name, Zero("key_biases", rows)


def _tables(model: PreTrainedModel) -> Iterator[tuple[str, nn.Embedding]]:
    """Embeddings by their parameter's name, but for those that the output shares, and those of a kind of its own."""
    output = model.get_output_embeddings()
    shared = None if output is None else getattr(output, "weight", None)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        if not isinstance(module, nn.Embedding) or type(module).forward is not nn.Embedding.forward:
            continue
        if module.weight is not shared and id(module.weight) in names:
            yield names[id(module.weight)], module


@torch.no_grad()
def _read(learner: Learner, examples: Sequence[Example], tables: Mapping[str, nn.Embedding]) -> dict[str, Tensor]:
    """Which rows of every table the examples read, [rows] bool: of tokens all, of others the longest tell."""
    read = {name: torch.zeros(len(table.weight), dtype=torch.bool) for name, table in tables.items()}
    end = -1 if learner.family.kind == "causal" else None  # texts are padded on the left
    words = learner.model.get_input_embeddings()  # type: ignore[operator]  # typed as a module's attribute
    for name, table in tables.items():
        if table is words:
            for start in range(0, len(examples), AT_ONCE):
                batch = learner.family.collate(examples[start : start + AT_ONCE])
                given = {key: batch[key][:, :end] for key in ("input_ids", "attention_mask")}
                read[name][given["input_ids"][given["attention_mask"].bool()]] = True
    modules, called = {module: name for name, module in tables.items()}, set()

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        called.add(modules[module])  # type: ignore[index]  # as below
        read[modules[module]][given[0][..., :end].flatten().cpu()] = True  # type: ignore[index]  # only tables have the hook

    lengths, answers = learner.family.lengths(examples), learner.family.targets(examples)
    longest = {max(range(len(examples)), key=numbers.__getitem__) for numbers in (lengths, answers)}
    handles = [module.register_forward_hook(note) for module in tables.values()]
    learner.model.eval()
    try:
        for place in sorted(longest):  # alone: without padding
            learner.forward(learner.collate([examples[place]]))
    finally:
        for handle in handles:
            handle.remove()
    for name, table in tables.items():
        if table.padding_idx is not None:
            read[name][table.padding_idx] = False  # whose gradient torch leaves out
    return {name: rows for name, rows in read.items() if name in called}  # others may be read past their module


class Kept(Mapping[str, Tensor]):
    """Scores of the entries that have a gradient, [entries]; of other tensors all of them, as they are.

    Args:
        scores: by name, of whole tensors.
    """

    def __init__(self, scores: Mapping[str, Tensor], zeros: Mapping[str, Zero]):
        self._scores, self._zeros = scores, zeros

    def __getitem__(self, name: str) -> Tensor:
        score = self._scores[name]
        if name not in self._zeros:
            return score
        rows = self._zeros[name].rows
        return score.reshape(len(rows), -1)[(~rows).to(score.device)].flatten()

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)


def kept_sizes(sizes: Mapping[str, int], zeros: Mapping[str, Zero]) -> dict[str, int]:
    """Entries that have a gradient, of every tensor that has some."""
    found = {
        name: size - (int(zeros[name].rows.sum()) * (size // len(zeros[name].rows)) if name in zeros else 0)
        for name, size in sizes.items()
    }
    return {name: size for name, size in found.items() if size}


def whole_positions(
    indices: Mapping[str, Tensor], sizes: Mapping[str, int], zeros: Mapping[str, Zero]
) -> dict[str, Tensor]:
    """Flat positions among the kept entries as flat positions in the whole tensors.

    Args:
        sizes: entries of the whole tensors.
    """
    found = {}
    for name, index in indices.items():
        if name in zeros:
            rows = zeros[name].rows
            width = sizes[name] // len(rows)
            index = (~rows).nonzero()[:, 0][index // width] * width + index % width
        found[name] = index
    return found


def counts(indices: Mapping[str, Tensor], sizes: Mapping[str, int], zeros: Mapping[str, Zero]) -> dict[str, int]:
    """How many of the selected entries have no gradient, by reason."""
    found: dict[str, int] = {"key_biases": 0, "unread_rows": 0}
    for name, zero in zeros.items():
        if name in indices:
            width = sizes[name] // len(zero.rows)
            found[zero.reason] += int(zero.rows[indices[name].cpu() // width].sum())
    return found
