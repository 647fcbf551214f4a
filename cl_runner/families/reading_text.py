"""Users' texts as token ids: a special token that stands in one (`</s>`, `<pad>`, `[SEP]`) is letters, or is read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from cl_runner.config import SpecialTokens


class TextReader:
    """Token ids of texts, without the special tokens that a model wants around them.

    Args:
        rule: text: special tokens in a text are encoded as the letters they are spelt with; read: as the tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rule: SpecialTokens):
        self._tokenizer, self._rule = tokenizer, rule
        special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        longest_first = sorted(special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if special else None
        named = {getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos", "cls", "sep")}
        # Letters that a tokenizer does not know are unknown, special or not.
        self._ids = {i for i in special.values() if i != tokenizer.unk_token_id or i in named}

    def found(self, text: str) -> str | None:
        """The first special token that stands in a text."""
        match = self._pattern.search(text) if self._pattern is not None else None
        return None if match is None else match[0]

    def apart(self, text: str) -> bool:
        """Whether a text is encoded otherwise than the tokenizer does by itself."""
        return self._rule == "text" and self.found(text) is not None

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text.

        Raises:
            ValueError: the tokenizer cannot read a special token as letters.
        """
        rows: list[list[int]] = self._plain(list(texts))
        return [self._letters(text) if self.apart(text) else row for text, row in zip(texts, rows, strict=True)]

    def _plain(self, texts: list[str]) -> list[list[int]]:
        rows: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return rows

    def _letters(self, text: str) -> list[int]:
        ids = self._split(text)
        if self._ids.isdisjoint(ids):
            return ids
        # Some vocabularies have the spelling of a special token as one of their words (T5): cut within it, it is none.
        assert self._pattern is not None
        cuts = [0, *(match.start() + 1 for match in self._pattern.finditer(text)), len(text)]
        ids = [i for start, end in itertools.pairwise(cuts) for i in self._split(text[start:end])]
        if not self._ids.isdisjoint(ids):
            raise ValueError(
                f"the tokenizer cannot read {self.found(text)!r} in a text as letters, only as its special token. "
                "Type: backbone.special_tokens=read (or leave such texts out)"
            )
        return ids

    def _split(self, text: str) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        ids: list[int] = self._tokenizer(text, **options)["input_ids"]
        return ids
