"""Metrics that measure how much of two texts overlaps: ROUGE-L, BLEU, SARI, edit similarity."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from cl_runner.data.example import Example
from cl_runner.metrics.base import harmonic, per_example

NGrams = Counter[tuple[str, ...]]

_CHINESE = "\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHINESE}]|[^\W_{_CHINESE}]+")
_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


def words(text: str) -> list[str]:
    """Runs of letters and digits of any alphabet in lower case; of Chinese every character."""
    return _WORD.findall(text.lower())


@per_example
def rouge_l(prediction: str, example: Example) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, sentence level, no stemming)."""
    found, wanted = words(prediction), words(example.answer)
    if not found or not wanted:
        return 0.0
    common = LCSseq.similarity(found, wanted)
    return harmonic(common / len(found), common / len(wanted))


@functools.cache
def _bleu(tokenizer: str) -> BLEU:
    return BLEU(tokenize=tokenizer, effective_order=True)


@per_example
def bleu(prediction: str, example: Example) -> float:
    """sacreBLEU's sentence score: exponential smoothing, effective order; Chinese answers by its characters."""
    tokenizer = "zh" if re.search(f"[{_CHINESE}]", example.answer) else "13a"
    return float(_bleu(tokenizer).sentence_score(prediction, [example.answer]).score) / 100


def bleu_rouge(predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """The mean of both."""
    return [(b + r) / 2 for b, r in zip(bleu(predictions, examples), rouge_l(predictions, examples), strict=True)]


@functools.cache
def _tokenizer() -> Tokenizer13a:
    return Tokenizer13a()


def sari_of(source: str, prediction: str, answer: str) -> float:
    """SARI with one reference as a share (Xu et al. 2016, equations 1 to 9), as in the hub's metric of that name.

    Texts are put in lower case and cut into sacreBLEU's 13a words. For n-grams of one to four words: the F1 of what is
    kept, the precision of what is deleted, the F1 of what is added; an empty quotient counts as 1.
    """
    # An empty text has one empty word: str.split(" ") keeps it, and so does that metric.
    texts = [_tokenizer()(text.lower()).split(" ") for text in (source, prediction, answer)]
    return sum(_sari_of_n_grams(*(_n_grams(text, n) for text in texts)) for n in range(1, 5)) / 4


def _n_grams(text: Sequence[str], n: int) -> NGrams:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


def _sari_of_n_grams(source: NGrams, prediction: NGrams, answer: NGrams) -> float:
    kept, to_keep = source & prediction, source & answer
    rightly_kept = kept & answer
    keep = harmonic(
        _quotient(sum(count / kept[gram] for gram, count in rightly_kept.items()), len(kept)),
        _quotient(rightly_kept.total(), to_keep.total()),
    )
    deleted = source - prediction
    rightly_deleted = deleted - answer
    delete = _quotient(sum(count / deleted[gram] for gram, count in rightly_deleted.items()), len(deleted))
    added, to_add = set(prediction) - set(source), set(answer) - set(source)
    rightly_added = len(added & to_add)
    add = harmonic(_quotient(rightly_added, len(added)), _quotient(rightly_added, len(to_add)))
    return (keep + delete + add) / 3


def _quotient(part: float, whole: int) -> float:
    return part / whole if whole else 1.0


@per_example
def sari(prediction: str, example: Example) -> float:
    """SARI from the prompt, its instruction included."""
    return sari_of(example.prompt, prediction, example.answer)


def without_literals(code: str) -> str:
    """Code of Py150 with its placeholders filled in: <NUM_LIT> is 0, <STR_LIT> is empty, <STR_LIT:text> is text."""
    for placeholder, value in (("<NUM_LIT>", "0"), ("<STR_LIT>", ""), ("<CHAR_LIT>", "")):
        code = code.replace(placeholder, value)
    for literal in list(_LITERAL.finditer(code)):  # one after another: what one leaves may be another
        code = code.replace(literal[0], literal[1])
    return code


def first_line(code: str) -> str:
    """Code up to the first line break or <EOL>."""
    return re.split(r"<EOL>|\n", code.strip(), maxsplit=1)[0].strip()


@per_example
def edit_similarity(prediction: str, example: Example) -> float:
    """2 L / (m + n) of the first line: L the longest common subsequence of characters, m and n the lengths."""
    return fuzz.ratio(without_literals(first_line(prediction)), without_literals(example.answer.strip())) / 100
