"""Metrics as released code computes them, oddities included, where they differ from ours: PIECE, TRACE, O-LoRA.

PIECE: wanglingxiang0717/PIECE at cc65c01, folder eval/evaluations. TRACE: BeyonderXX/TRACE at 462e39f, metrics.py and
folder evaluations. What they read is the answer as `evaluation.answer_text` cuts it out for their protocol. Where a
release gives no number, the score is 0: both stop at a summary of full stops alone, TRACE at an empty answer to
ScienceQA. PIECE also counts an empty answer as right where no letter is; the data have no such question.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence

from cl_runner.data.example import Example
from cl_runner.metrics.base import as_they_are, per_example
from cl_runner.metrics.overlap import sari_of, without_literals
from cl_runner.metrics.simple import without_punctuation

_STANCES = {"支持": "A", "反对": "B", "中立": "C"}
_LETTER = re.compile("[A-D]")
# It takes the full stop behind a whole number along.
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@as_they_are
def piece_stance(prediction: str, example: Example) -> float:
    """100 where the letter agrees: the first of A to D among four characters, else what the first two stand for."""
    letter = _LETTER.search(prediction[:4])
    return (letter[0] if letter else _STANCES.get(prediction[:2])) == example.answer


@per_example
def piece_letter(prediction: str, example: Example) -> float:
    """100 where the first A, B, C or D agrees; the B of "Because" is one, and two texts without any agree."""
    found, wanted = _LETTER.search(prediction), _LETTER.search(example.answer)
    return (found and found[0]) == (wanted and wanted[0])


@as_they_are
def piece_number(prediction: str, example: Example) -> float:
    """100 where the first number is the answer, as text: neither "11." nor "11.0" is "11"."""
    found = _NUMBER.search(prediction)
    return found is not None and found[0] == example.answer


@as_they_are
def piece_bleu_rouge(prediction: str, example: Example) -> float:
    """The mean of BLEU-4 and ROUGE-L."""
    return (unsmoothed_bleu(prediction, example.answer) + rouge_of_sets(prediction, example.answer)) / 2


def unsmoothed_bleu(prediction: str, answer: str, order: int = 4) -> float:
    """BLEU of up to `order` words as a share; words lie between white space and full stops.

    It is 0 where an n-gram order has no match: NLTK puts the smallest float in place of such a precision, which leaves
    less than 1e-70.
    """
    found, wanted = ([word for word in re.split(r"[\s.]", text) if word] for text in (prediction, answer))
    log_precision = 0.0
    for n in range(1, order + 1):
        ours, theirs = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (found, wanted))
        matches = (ours & theirs).total()
        if not matches:
            return 0.0
        log_precision += math.log(matches / ours.total()) / order
    return math.exp(log_precision + min(0.0, 1 - len(wanted) / len(found)))


def rouge_of_sets(prediction: str, answer: str) -> float:
    """ROUGE-L as the package `rouge` 1.0.1 computes it, as a share.

    Sentences end at full stops. The words of the longest common subsequences of all sentences predicted with all of the
    answer form one set, which is compared with the set of words of either side. A sentence of nothing but white space
    has one empty word. Where the package stops with an error, for want of any sentence, it is 0.
    """
    found, wanted = ([s.split() or [""] for s in text.split(".") if s] for text in (prediction, answer))
    if not found or not wanted:
        return 0.0
    common = {word for ours in found for theirs in wanted for word in _common_subsequence(ours, theirs)}
    precision, recall = (len(common) / len({word for s in side for word in s}) for side in (found, wanted))
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """The longest common subsequence of words that the package finds, last word first."""
    length = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            length[i + 1][j + 1] = length[i][j] + 1 if x == y else max(length[i][j + 1], length[i + 1][j])
    i, j, found = len(a), len(b), []
    while i and j:  # several are longest; which one is taken decides which words enter the set
        if a[i - 1] == b[j - 1]:
            found.append(a[i - 1])
            i, j = i - 1, j - 1
        elif length[i - 1][j] > length[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


@as_they_are
def piece_edit_similarity(prediction: str, example: Example) -> float:
    """TRACE's of what follows the last <EOL>: of many lines the last one, nothing where <EOL> ends them."""
    return _ratio(prediction.split("<EOL>")[-1], example.answer)


@as_they_are
def trace_edit_similarity(prediction: str, example: Example) -> float:
    """fuzz.ratio of everything generated, literals cleaned."""
    return _ratio(prediction, example.answer)


def _ratio(prediction: str, answer: str) -> float:
    """fuzzywuzzy's ratio as a share, in whole percent; both releases run it without python-Levenshtein."""
    found, wanted = without_literals(prediction), without_literals(answer)
    if not found or not wanted:
        return 0.0
    if found == wanted:  # difflib leaves out what is frequent in a long text: of one letter alone, all of it
        return 1.0
    return round(100 * difflib.SequenceMatcher(None, found, wanted).ratio()) / 100


@as_they_are
def trace_accuracy(prediction: str, example: Example) -> float:
    """100 where both texts are the same, white space included."""
    return prediction == example.answer


@as_they_are
def trace_letter(prediction: str, example: Example) -> float:
    """100 where the first characters agree; a rationale behind them does not count."""
    return prediction[:1] == example.answer[:1]


@as_they_are
def trace_rouge_l(prediction: str, example: Example) -> float:
    """The package's ROUGE-L."""
    return rouge_of_sets(prediction, example.answer)


def trace_sari(predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """SARI from the prompt; an empty prediction earns what it deleted."""
    return [100 * sari_of(e.prompt, p, e.answer) for p, e in zip(predictions, examples, strict=True)]


@per_example
def olora_exact_match(prediction: str, example: Example) -> float:
    """100 where both agree in lower case without punctuation; articles stay."""
    return without_punctuation(prediction) == without_punctuation(example.answer)
