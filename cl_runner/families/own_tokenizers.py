"""Tokenizers of models with random weights: the words of the generated reviews, and bytes. Nothing is downloaded."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cl_runner.data.reviews import vocabulary

WORD_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
BYTE_TOKENS = ("<pad>", "<s>", "</s>")


def words_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """The word list of the generated reviews, for encoders with random weights."""
    # Characters make every text expressible; whole words keep the generated reviews short.
    characters = sorted({c for word in vocabulary() for c in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    pieces = dict.fromkeys([*WORD_TOKENS, *characters, *("##" + c for c in characters), *vocabulary()])
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
    )


def bytes_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Every byte of UTF-8 a token, for language models with random weights: all texts, no vocabulary to learn.

    As LLaMA's and T5's, it starts a text with <s> for a decoder, and ends it with </s> for an encoder.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: i for i, piece in enumerate([*BYTE_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(pieces, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    single = "<s> $A" if family in ("causal", "image_text") else "$A </s>"
    ids = [(token, pieces[token]) for token in BYTE_TOKENS]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
