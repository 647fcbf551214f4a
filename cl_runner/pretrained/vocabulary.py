"""Whether a tokenizer is the one that a model was trained with: its size, its special tokens, and a text to try."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

#: Words, digits and letters of several scripts: a tokenizer of any language knows some of it.
PROBE = "The cat sat on 12 mats. Die Katze. El gato. Кот. Η γάτα. القط. 猫。ネコ. 고양이. बिल्ली."
#: Embeddings are padded to a multiple, at most of this, and some models reserve a share of them beside.
_PADDED_TO, _RESERVED = 1024, 0.1


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, key: str, name: str, writes: bool) -> None:
    """A tokenizer reads words, pads, and ends answers; no model is needed to see that.

    Args:
        key: of the checkpoint in the configuration.
        name: of the checkpoint.
        writes: whether a model writes answers with it.

    Raises:
        ValueError: otherwise, with what to do.
    """
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    known = [i for i in ids if i != tokenizer.unk_token_id]
    if not known:
        raise ValueError(
            f"{key}={name}: the tokenizer there has {len(tokenizer)} tokens and knows no word of a text"
            + (" (all of them are unknown)" if ids else "")
            + f". {_SAVE}: {key}=FOLDER"
        )
    if writes and tokenizer.eos_token_id is None:
        raise ValueError(
            f"{key}={name}: the tokenizer there has no token that ends an answer (eos_token), so that answers would "
            "never end. Name it and save: tokenizer.eos_token = '</s>' (the token that the model was trained with), "
            "tokenizer.save_pretrained(FOLDER)"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"{key}={name}: the tokenizer there has no token that pads texts to one length (pad_token). Name one of "
            "its tokens and save: tokenizer.pad_token = '[PAD]', tokenizer.save_pretrained(FOLDER)"
        )


_SAVE = (
    "Put the model's own tokenizer files into the folder (tokenizer.json, tokenizer_config.json; "
    "AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained(FOLDER))"
)


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, configuration: PreTrainedConfig, key: str, name: str, writes: bool
) -> None:
    """A tokenizer and the embedding of a model are of one size, and agree on special tokens.

    Args:
        configuration: of the model; one that does not say the size of its vocabulary is not compared (CANINE).
        key: of the checkpoint in the configuration.
        name: of the checkpoint.
        writes: whether the model writes answers.

    Raises:
        ValueError: they belong to different models, with what to do.
    """
    text = configuration.get_text_config()
    rows = getattr(text, "vocab_size", None)
    if not isinstance(rows, int):
        return
    tokens = tokenizer.get_vocab()
    last = max(tokens.values())
    if last >= rows:
        beyond = sorted((i, token) for token, i in tokens.items() if i >= rows)
        shown = ", ".join(f"{token!r} is {i}" for i, token in beyond[:3])
        raise ValueError(
            f"{key}={name}: the tokenizer there has {len(tokens)} tokens, and the model has embeddings of {rows} "
            f"({shown}): they are not of one model, or tokens were added without "
            "model.resize_token_embeddings(len(tokenizer)). Do that and save both, or put the model's own tokenizer "
            "there"
        )
    unused = rows - len(tokens)
    if unused > max(_RESERVED * rows, min(_PADDED_TO, rows / 2)):
        raise ValueError(
            f"{key}={name}: the tokenizer there has {len(tokens)} tokens, and the model has embeddings of {rows}: they "
            f"are not of one model. {_SAVE}"
        )
    for role in ("pad_token_id", "decoder_start_token_id"):
        outside = [i for i in _numbers(getattr(text, role, None)) if i >= rows]
        if outside:
            raise ValueError(
                f"{key}={name}: config.json says {role} {outside[0]}, and the model has embeddings of {rows}. Write "
                f"there the token that it was trained with, such as the one that pads, {tokenizer.pad_token_id}"
            )
    _check_role(tokenizer, text, "eos_token_id" if writes else "pad_token_id", f"{key}={name}")


def _check_role(tokenizer: PreTrainedTokenizerBase, text: PreTrainedConfig, role: str, where: str) -> None:
    """The token that config.json names for a role is no ordinary word of the tokenizer."""
    named, own = _numbers(getattr(text, role, None)), getattr(tokenizer, role)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if named and own not in named and not special.intersection(named):
        words = [word for word in tokenizer.convert_ids_to_tokens(named) if word is not None]
        if words:  # a number beyond the vocabulary is a default that nobody changed
            raise ValueError(
                f"{where}: config.json says {role} {named[0]}, which is the word {words[0]!r} to the tokenizer there, "
                f"whose own is {own}: they are not of one model. {_SAVE}"
            )


def _numbers(value: Any) -> list[int]:
    """Ids as a configuration has them: one, several or none."""
    found = value if isinstance(value, list) else [value]
    return [i for i in found if isinstance(i, int) and i >= 0]
