"""Metrics that look for the answer itself: a label, a letter, a number, a few words."""

from __future__ import annotations

import re
import string
from collections import Counter
from decimal import Decimal

from cl_runner.data.example import Example
from cl_runner.metrics.base import harmonic, per_example, reading

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# Neighbours from the Latin alphabet make it part of a word; Chinese ones do not, and quotation marks do not either.
_LETTER = re.compile(r"(?<![A-Za-zÀ-ɏ\d_])[A-D](?!['’]?[A-Za-zÀ-ɏ\d_])")
# Digits that end a name or formula, such as H2, are no number; "1,000" is one.
_NUMBER = re.compile(r"(?<![A-Za-z_\d])[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?")


@per_example
def accuracy(prediction: str, example: Example) -> float:
    """100 where the answer is predicted exactly."""
    return prediction.strip() == example.answer.strip()


def without_punctuation(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def normalised(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no English articles, single spaces (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@per_example
def exact_match(prediction: str, example: Example) -> float:
    """100 where both have the same normal form."""
    return normalised(prediction) == normalised(example.answer)


@per_example
def f1(prediction: str, example: Example) -> float:
    """Harmonic mean of the shares of shared words; of two texts without words, 100 if they agree."""
    found, wanted = normalised(prediction).split(), normalised(example.answer).split()
    if not found or not wanted:
        return found == wanted
    shared = (Counter(found) & Counter(wanted)).total()
    return harmonic(shared / len(found), shared / len(wanted))


def _first_word(text: str) -> str:
    return next(iter(re.sub(r"[^\w\s]", " ", text).split()), "")


@reading(lambda text, example: re.match(r"\W*\w+\W", text) is not None)
@per_example
def first_word(prediction: str, example: Example) -> float:
    """100 where the first words agree, punctuation read as spaces, as SLM scores labels and options."""
    return _first_word(prediction) == _first_word(example.answer) != ""


def option_in(text: str) -> str:
    """The first option letter of a text, or nothing."""
    found = _LETTER.search(text)
    return found[0] if found else ""


def _letter_read(text: str, example: Example) -> bool:
    """What follows a letter by two characters cannot make it a part of a word any more."""
    found = _LETTER.search(text)
    return found is not None and len(text) >= found.end() + 2


@reading(_letter_read)
@per_example
def first_letter(prediction: str, example: Example) -> float:
    """100 where the first option letters agree: (A), "B. hawkish", "it is C" or 选D, but no letter of a word."""
    return option_in(prediction) == option_in(example.answer) != ""


def number_in(text: str) -> Decimal | None:
    """The first number of a text."""
    found = _NUMBER.search(text)
    return Decimal(found[0].replace(",", "").replace("−", "-")) if found else None


def _number_read(text: str, example: Example) -> bool:
    """Nor can what follows a number by five characters make it longer; a word in its place is compared as a whole."""
    found = _NUMBER.search(text)
    return found is not None and number_in(example.answer) is not None and len(text) >= found.end() + 5


@reading(_number_read)
@per_example
def number(prediction: str, example: Example) -> float:
    """100 where the first numbers are equal: "11." and "11", "1,000" and "1000"; a word is compared by exact_match."""
    wanted = number_in(example.answer)
    if wanted is None:
        return normalised(prediction) == normalised(example.answer)
    return number_in(prediction) == wanted
