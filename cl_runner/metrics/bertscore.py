"""BERTScore: answers compared by an encoder's vectors of their tokens.

Of our own: the package bert-score fails on empty predictions with transformers 5.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedTokenizerBase

from cl_runner.config import Bertscore
from cl_runner.data.example import Example
from cl_runner.metrics.simple import without_punctuation
from cl_runner.pretrained.encoders import checked_encoder
from cl_runner.pretrained.places import locate
from cl_runner.pretrained.reading import readable, tokenizer_of

KEY = "evaluation.bertscore.checkpoint"
BATCH = 32  # pairs; no score depends on it
LONGEST = 512  # tokens of a text where the tokenizer sets no limit


def bertscore(predictions: Sequence[str], examples: Sequence[Example], options: Bertscore) -> list[float]:
    """F1 of BERTScore (Zhang et al. 2020, section 3) of each answer, with neither idf weights nor baseline rescaling.

    Raises:
        ValueError: the encoder cannot be loaded or has fewer layers.
    """
    pairs = {
        i: (prediction, example.answer)
        for i, (prediction, example) in enumerate(zip(predictions, examples, strict=True))
        if prediction.strip() and example.answer.strip()
    }
    values = [0.0] * len(predictions)
    if not pairs:
        return values
    tokenizer, model = load(options.checkpoint, options.layer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    by_length = sorted(pairs, key=lambda i: sum(map(len, pairs[i])))
    for start in range(0, len(by_length), BATCH):
        chosen = by_length[start : start + BATCH]
        found, wanted = (_tokens(tokenizer, model, [pairs[i][side] for i in chosen], device) for side in (0, 1))
        for i, value in zip(chosen, f1(found, wanted).tolist(), strict=True):
            values[i] = 100 * value
    model.to("cpu")  # training wants the accelerator's memory
    return values


def bertscore_strict(predictions: Sequence[str], examples: Sequence[Example], options: Bertscore) -> list[float]:
    """bertscore, with 0 for a wrong format: fewer than three words, as an option letter or a finance label has.

    SLM names the rule and its code leaves it out; the number of words is our reading.
    """
    formed = [p if len(without_punctuation(p).split()) >= 3 else "" for p in predictions]
    return bertscore(formed, examples, options)


def check(options: Bertscore) -> int:
    """The number of the encoder's layers; no weights are loaded, and nothing is fetched but its configuration.

    Raises:
        ValueError: it is not what it says, or has fewer layers than are asked for.
    """
    depth = int(checked_encoder(options, KEY).num_hidden_layers)
    if options.layer > depth:
        raise ValueError(
            f"evaluation.bertscore.layer={options.layer}: {options.checkpoint} has {depth} layers. "
            f"Type: evaluation.bertscore.layer={depth}"
        )
    return depth


@functools.lru_cache(maxsize=1)
def load(checkpoint: str, layer: int) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """The encoder up to its layer, and its tokenizer, once per process.

    Args:
        checkpoint: hub name or local folder.

    Raises:
        ValueError: it cannot be loaded or has fewer layers.
    """
    options = Bertscore(checkpoint=checkpoint, layer=layer)
    depth = check(options)
    place = locate(options, KEY)
    with readable(options, KEY), torch.random.fork_rng(devices=[]):
        # A pooler that the checkpoint lacks is drawn: no number of the run's.
        model = AutoModel.from_pretrained(place, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    tokenizer = tokenizer_of(options, KEY, place)
    stack = next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
    del stack[layer:]
    return tokenizer, model.eval()


class Tokens(NamedTuple):
    """The tokens of B texts, padded to T."""

    vectors: Tensor  # [B, T, hidden], each of length 1
    present: Tensor  # [B, T], true where a token is no padding
    counted: Tensor  # [B, T], true where it is neither padding nor special


@torch.no_grad()
def _tokens(tokenizer: PreTrainedTokenizerBase, model: nn.Module, texts: Sequence[str], device: torch.device) -> Tokens:
    limit = tokenizer.model_max_length
    batch = tokenizer(
        [f" {text.strip()}" for text in texts],  # byte-level tokenizers tell a first word from one after a space
        padding=True,
        truncation=True,
        max_length=limit if limit < 1e6 else LONGEST,
        return_special_tokens_mask=True,
        return_tensors="pt",
    ).to(device)
    special = batch.pop("special_tokens_mask").bool()
    vectors = nn.functional.normalize(model(**batch).last_hidden_state, dim=-1)
    return Tokens(vectors, batch["attention_mask"].bool(), ~special)


def f1(found: Tokens, wanted: Tokens) -> Tensor:
    """BERTScore F1 [B] by greedy matching: each token takes the most similar one of the other text.

    Special tokens may be taken but have no part in the means, as in the reference implementation.
    """
    similarity = found.vectors @ wanted.vectors.transpose(1, 2)
    similarity = similarity.masked_fill(~(found.present[:, :, None] & wanted.present[:, None, :]), -1.0)
    precision = (similarity.amax(2) * found.counted).sum(1) / found.counted.sum(1).clamp(min=1)
    recall = (similarity.amax(1) * wanted.counted).sum(1) / wanted.counted.sum(1).clamp(min=1)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-12)
