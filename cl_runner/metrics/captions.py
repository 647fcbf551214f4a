"""Scores of captions against several references of each picture.

PIECE's (arXiv:2511.15375, evaluations/eval_blue.py of its release) are of single captions: the best of the references,
in the mean over pictures. COCO's evaluation (arXiv:1504.00325) puts all captions in lower case, and has BLEU of the
whole set and CIDEr-D. Its tokenizer, METEOR and SPICE are programs in Java; of them METEOR is at hand where the package
pycocoevalcap is installed. All scores are times 100, as papers print them: CIDEr-D goes beyond 100.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence

from cl_runner.metrics.released import rouge_of_sets, unsmoothed_bleu

#: Captions, one for each picture, and the references of each -> the score of all.
CaptionMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
NGrams = dict[tuple[str, ...], float]

#: Words of the Penn Treebank, about: of hyphenated ones all, `n't` and `'s` by themselves; punctuation is left out.
_WORDS = re.compile(r"n't\b|'(?:s|m|d|ll|re|ve)\b|[^\W_]+?(?=n't\b)|[^\W_]+(?:-[^\W_]+)*")
#: Longest n-grams of CIDEr-D, and the standard deviation of its penalty of lengths.
_LONGEST, _SIGMA = 4, 6.0


def words(caption: str) -> list[str]:
    """A caption's words in lower case, as COCO's evaluation counts them.

    Of the tokenizer in Java this differs in rare words alone, such as abbreviations and fractions.
    """
    return _WORDS.findall(caption.lower().replace("\u2019", "'"))


def _best(compare: Callable[[str, str], float]) -> CaptionMetric:
    """The mean over pictures of the best of the references, times 100."""

    def metric(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        pairs = zip(captions, references, strict=True)
        best = [max(compare(caption, one) for one in own) if caption.strip() else 0.0 for caption, own in pairs]
        return 100 * math.fsum(best) / len(best)

    return metric


#: BLEU of one word, of four, and ROUGE-L as PIECE's release has them: unsmoothed, upper and lower case distinct.
bleu_1 = _best(lambda caption, one: unsmoothed_bleu(caption, one, 1))
bleu_4 = _best(unsmoothed_bleu)
rouge_l = _best(rouge_of_sets)


def corpus_bleu_4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of all captions together (Papineni et al. 2002), unsmoothed: 0 where an order of n-grams has no match.

    Matches are clipped by all references of a picture, and of their lengths the closest counts.
    """
    matches, totals = [0] * _LONGEST, [0] * _LONGEST
    length = wanted = 0
    for caption, own in zip(captions, references, strict=True):
        found, known = words(caption), [words(one) for one in own]
        length += len(found)
        wanted += min((len(one) for one in known), key=lambda size: (abs(size - len(found)), size))
        for n in range(1, _LONGEST + 1):
            ours, most = _n_grams(found, n), Counter[tuple[str, ...]]()
            for one in known:
                most |= _n_grams(one, n)
            matches[n - 1] += (ours & most).total()
            totals[n - 1] += ours.total()
    if not all(matches):
        return 0.0
    precision = math.fsum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / _LONGEST
    return 100 * math.exp(precision + min(0.0, 1 - wanted / length))


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726, section 6) with the constants of its authors' code.

    For n = 1 to 4 the cosine of tf-idf vectors of n-grams, clipped by the reference's, times exp(-d^2 / 2 sigma^2) of
    the difference d in length, the mean over n and references, times 10. A length is a number of bigrams, and document
    frequencies are those of these pictures' references, both as in that code. Of one picture alone it is 0.
    """
    found, known = [words(one) for one in captions], [[words(one) for one in own] for own in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for own in known:
        frequency.update({gram for one in own for n in range(1, _LONGEST + 1) for gram in _n_grams(one, n)})
    pictures = math.log(len(known))

    def vector(text: list[str], n: int) -> tuple[NGrams, float]:
        weights = {
            gram: count * (pictures - math.log(max(1, frequency[gram]))) for gram, count in _n_grams(text, n).items()
        }
        return weights, math.sqrt(math.fsum(weight * weight for weight in weights.values()))

    total = 0.0
    for caption, own in zip(found, known, strict=True):
        for one in own:
            apart = max(0, len(caption) - 1) - max(0, len(one) - 1)
            for n in range(1, _LONGEST + 1):
                (ours, our_norm), (theirs, their_norm) = vector(caption, n), vector(one, n)
                if our_norm and their_norm:
                    product = math.fsum(
                        min(ours[gram], weight) * weight for gram, weight in theirs.items() if gram in ours
                    )
                    cosine = product / (our_norm * their_norm)
                    total += cosine * math.exp(-(apart**2) / (2 * _SIGMA**2)) / (_LONGEST * len(own))
    return 1000 * total / len(known)


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR 1.5 of all captions, by pycocoevalcap, which starts Java."""
    from pycocoevalcap.meteor.meteor import Meteor

    texts = [[" ".join(words(one))] for one in captions]
    known = [[" ".join(words(one)) for one in own] for own in references]
    score, _ = Meteor().compute_score(dict(enumerate(known)), dict(enumerate(texts)))
    return 100 * float(score)


def lacking() -> str:
    """What METEOR needs and is not here; empty if nothing is."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "the package pycocoevalcap. Type: pip install 'cl-runner[captions]'"
    return "" if shutil.which("java") else "Java, whose program `java` is not on the PATH"


def _n_grams(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


#: By name, in the order of their numbers.
METRICS: dict[str, CaptionMetric] = {
    "bleu_1": bleu_1,
    "bleu_4": bleu_4,
    "rouge_l": rouge_l,
    "corpus_bleu_4": corpus_bleu_4,
    "cider_d": cider_d,
    "meteor": meteor,
}
