"""The tokenizer that a file of llama.cpp describes, by its own name of the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

#: How Llama 3 cuts a text before its merges.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2() -> list[Any]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False)]


def _smollm() -> list[Any]:
    """Every digit alone: transformers' reading of such files leaves that out, and reads "a  12" otherwise."""
    return [pre_tokenizers.Digits(individual_digits=True), *_gpt2()]


def _llama3() -> list[Any]:
    cut = pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated")
    return [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


#: How texts are cut, by llama.cpp's names (tokenizer.ggml.pre).
_CUTS: dict[str, Callable[[], list[Any]]] = {"gpt-2": _gpt2, "smollm": _smollm} | dict.fromkeys(
    ("llama-bpe", "llama3", "llama-v3"), _llama3
)
#: Types of tokens.
_UNKNOWN, _CONTROL, _OWN = 2, 3, 4


def make_tokenizer(
    known: Mapping[str, Any], ids: Mapping[str, int], positions: int, said: str
) -> PreTrainedTokenizerFast:
    """The tokenizer of a header, with its chat template.

    Args:
        known: the header's values.
        ids: of special tokens, by transformers' names of them.
        positions: tokens that the model reads.
        said: the file, for messages.

    Raises:
        ValueError: its rules are not known here, or make no tokenizer.
    """
    kind, cut = known.get("tokenizer.ggml.model"), known.get("tokenizer.ggml.pre")
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and cut not in _CUTS):
        raise ValueError(
            f"{said}: its tokenizer is {kind} {cut or ''}, and read are llama, and gpt2 with {', '.join(_CUTS)}. Give "
            "the model as a folder with its tokenizer: backbone=causal_folder backbone.checkpoint=FOLDER"
        )
    pieces = known.get("tokenizer.ggml.tokens", ())
    try:
        made = _byte_level(known, pieces, str(cut)) if kind == "gpt2" else _sentence_piece(known, pieces, ids)
        types = known.get("tokenizer.ggml.token_type", ())
        added = [
            AddedToken(piece, special=kind != _OWN, normalized=False)
            for piece, kind in zip(pieces, types, strict=False)
            if kind in (_UNKNOWN, _CONTROL, _OWN)
        ]
        made.add_tokens([token for token in added if not token.special])
        made.add_special_tokens([token for token in added if token.special])
        _surround(made, known, pieces, ids, begins=kind == "llama" or cut in ("llama-bpe", "llama3", "llama-v3"))
    except Exception as error:  # whatever the library makes of the words of strangers
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{said}: its header makes no tokenizer ({reason}). Fetch it again") from None
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=positions,
        chat_template=known.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": pieces[i] for role, i in ids.items()},
    )


def _byte_level(known: Mapping[str, Any], pieces: Sequence[str], cut: str) -> Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in known["tokenizer.ggml.merges"]]
    # Llama 3 takes a word that it knows whole, whatever the merges.
    whole = _CUTS[cut] is _llama3
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, ignore_merges=whole))
    made.pre_tokenizer = pre_tokenizers.Sequence(_CUTS[cut]())
    made.decoder = decoders.ByteLevel()
    return made


def _sentence_piece(known: Mapping[str, Any], pieces: Sequence[str], ids: Mapping[str, int]) -> Tokenizer:
    """LLaMA's first tokenizer: pieces that are joined by their scores, and bytes for what none of them spells."""
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = generate_merges(vocabulary, dict(zip(pieces, known["tokenizer.ggml.scores"], strict=True)))
    unknown = pieces[ids["unk"]] if "unk" in ids else None
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    first = [normalizers.Prepend("▁")] if known.get("tokenizer.ggml.add_space_prefix", True) else []
    made.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    last = [decoders.Strip(" ", 1, 0)] if first else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])
    return made


def _surround(
    made: Tokenizer, known: Mapping[str, Any], pieces: Sequence[str], ids: Mapping[str, int], begins: bool
) -> None:
    """The tokens that a text begins and ends with.

    Args:
        begins: whether it begins with one where the header does not say.
    """
    before = ["bos"] if known.get("tokenizer.ggml.add_bos_token", begins) and "bos" in ids else []
    after = ["eos"] if known.get("tokenizer.ggml.add_eos_token", False) and "eos" in ids else []
    if before or after:
        tokens = [(pieces[ids[role]], ids[role]) for role in dict.fromkeys((*before, *after))]
        text = [*(pieces[ids[role]] for role in before), "$A", *(pieces[ids[role]] for role in after)]
        made.post_processor = processors.TemplateProcessing(single=text, special_tokens=tokens)
