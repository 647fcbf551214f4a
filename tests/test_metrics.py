"""Metrics against hand-worked numbers, independent restatements and the packages whose definitions they follow."""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cl_runner.built_in import DEFINITIONS
from cl_runner.config import Bertscore
from cl_runner.data.example import Example
from cl_runner.metrics.base import reads_of, score
from cl_runner.metrics.classes import class_scores, tallies

NO_ENCODER = Bertscore(checkpoint="/no/such/folder", layer=1)
#: Every character that some definition treats in its own way.
VOCABULARY = [*"abcd.,\n", "the", "The", "A.", "B.", "..", "x-y", "3.5", "11.", "<EOL>", "<STR_LIT>", "Zürich", "支持"]


def percent(name: str, prediction: str, answer: str, prompt: str = "") -> float:
    """The score of one prediction."""
    return score(name, [prediction], [Example(prompt, answer)], NO_ENCODER)[0]


def random_texts(seed: int, count: int, longest: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(VOCABULARY, k=draw.randint(0, longest))) for _ in range(count)]


# --- the table of names


def test_every_definition_leads_to_a_function_and_says_what_it_is() -> None:
    for name, (place, meaning) in DEFINITIONS.items():
        module, _, function = place.partition(":")
        found = getattr(importlib.import_module(f"cl_runner.metrics.{module}"), function)
        arguments = 3 if name.startswith("bertscore") else 2
        assert len(inspect.signature(found, follow_wrapped=False).parameters) == arguments, name
        assert found.__doc__ and len(meaning) > 10 and function == name


def test_names_are_known_without_torch_or_any_library() -> None:
    heavy = "torch", "transformers", "sacrebleu", "rapidfuzz", "numpy"
    code = f"import sys, cl_runner.metrics; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in DEFINITIONS if name != "trace_sari"])
def test_nothing_predicted_is_worth_nothing_and_counts(name: str) -> None:
    predictions, examples = ["", " \n"], [Example("p", "A"), Example("p", "11")]
    assert score(name, predictions, examples, NO_ENCODER) == [0, 0]


@pytest.mark.parametrize("name", [name for name in DEFINITIONS if not name.startswith("bertscore")])
def test_no_text_is_an_error_and_every_score_is_a_percentage(name: str) -> None:
    odd = ["...", "!", "\n", "<EOL>", "<STR_LIT>", "，。", "’", "1e999", "é", "", "A", "<NUM_LIT:", ". ."]
    pairs = [(p, a) for p in odd for a in odd]
    values = score(name, [p for p, _ in pairs], [Example("a b", a) for _, a in pairs], NO_ENCODER)
    assert len(values) == len(pairs) and all(0 <= value <= 100 + 1e-9 for value in values)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_as_many_predictions_as_examples(name: str) -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        score(name, ["a", "b"], [Example("p", "a")], NO_ENCODER)


# --- the answer itself


@pytest.mark.parametrize(
    ("name", "prediction", "answer", "expected"),
    [
        ("accuracy", " good\n", "good", 100),
        ("accuracy", "Good", "good", 0),
        ("exact_match", "The  Cat!", "cat", 100),
        ("exact_match", "another cat", "other cat", 0),  # "an" is an article only as a word
        ("exact_match", "Zürich.", "zürich", 100),
        ("f1", "the cat sat", "a cat sat down", 100 * 2 * 1 * (2 / 3) / (1 + 2 / 3)),  # of 2 and 3 words 2 are shared
        ("f1", "cat cat", "cat", 100 * 2 * 0.5 * 1 / 1.5),  # every word counts once
        ("f1", "dog", "cat", 0),
        ("f1", "the", "an", 100),  # SQuAD: no words on either side
        ("f1", "the", "cat", 0),
        ("first_word", "positive, I think", "positive", 100),
        ("first_word", "Positive", "positive", 0),
        ("first_word", "Sci/Tech", "Sci / Tech news", 100),
        ("first_word", "...", "!", 0),
        ("first_word", "中立。支持", "中立", 100),
        ("first_letter", "(B) hawkish", "B", 100),
        ("first_letter", "The answer is C.", "C", 100),
        ("first_letter", "Because A", "A\nOrganisms have traits", 100),  # no letter of a word
        ("first_letter", "'D'", "D", 100),
        ("first_letter", "D'accord, C", "C", 100),
        ("first_letter", "选A。", "A", 100),
        ("first_letter", "Äpfel AB A1 B", "B", 100),
        ("first_letter", "dovish", "A", 0),
        ("first_letter", "b", "B", 0),
        ("number", "The answer is 11.", "11", 100),
        ("number", "11.0", "11", 100),
        ("number", "1,000 apples", "1000", 100),
        ("number", "1,0000", "10000", 0),  # no thousands: the number is 1
        ("number", "-5", "5", 0),
        ("number", "−5", "-5", 100),
        ("number", "10-5", "10", 100),
        ("number", "H2O weighs 18", "18", 100),
        ("number", "答案是36.36%", "36.36", 100),
        ("number", "1.5e3", "1500", 100),
        ("number", ".5", "0.5", 100),
        ("number", "none", "5", 0),
        ("number", "friday.", "Friday", 100),  # an answer without a number
        ("number", "4", "Friday", 0),
    ],
)
def test_answers_by_hand(name: str, prediction: str, answer: str, expected: float) -> None:
    assert percent(name, prediction, answer) == pytest.approx(expected, abs=1e-9)


def test_labels_told_apart_by_hand_and_by_scikit_learn() -> None:
    by_hand = class_scores(tallies(list("aaab"), ["a ", "a", "b", "junk"], ["a", "b", "never"]).sum(0))
    assert {name: float(value) for name, value in by_hand.items()} == pytest.approx(
        {
            "macro_f1": 100 * (2 * 2 / (3 + 2) + 0) / 2,  # a: 2 of 3, nothing else so called; b: 0 of 1
            "balanced_accuracy": 100 * (2 / 3 + 0) / 2,
            # 4 examples, 2 right; (3, 1) of a class, (2, 1, 1) so called: (2 * 4 - 7) / sqrt((16 - 10) (16 - 6))
            "matthews_correlation": 100 * 1 / math.sqrt(60),
        }
    )
    known = pytest.importorskip("sklearn.metrics", reason="extra `test`")
    draw = random.Random(0)
    for _ in range(60):
        truth = draw.choices("abc", k=draw.randint(4, 30))
        predicted = draw.choices(["a", "b", "c", "d"], k=len(truth))
        classes = sorted(set(truth))
        told = [prediction if prediction in classes else "no class" for prediction in predicted]
        with warnings.catch_warnings(action="ignore"):  # of classes that are predicted only
            wanted = [
                known.f1_score(truth, told, labels=classes, average="macro", zero_division=0),
                known.balanced_accuracy_score(truth, told),
                known.matthews_corrcoef(truth, told),
            ]
        found = class_scores(tallies(truth, predicted, "abcd").sum(0))
        assert [float(value) for value in found.values()] == pytest.approx([100 * value for value in wanted])


# --- overlap


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """By its definition: of all subsequences of a, the longest that is one of b."""

    def within(part: Sequence[str]) -> bool:
        rest = iter(b)
        return all(word in rest for word in part)

    chosen = ([a[i] for i in range(len(a)) if mask >> i & 1] for mask in range(2 ** len(a)))
    return max(len(part) for part in chosen if within(part))


def test_rouge_l_by_brute_force() -> None:
    draw = random.Random(0)
    for _ in range(60):
        found, wanted = (draw.choices("abcd", k=draw.randint(1, 8)) for _ in range(2))
        common = longest_common_subsequence(found, wanted)
        expected = 100 * 2 * common / (len(found) + len(wanted))
        assert percent("rouge_l", " ".join(found), " ".join(wanted)) == pytest.approx(expected, abs=1e-9)


def test_rouge_l_of_english_is_that_of_rouge_score() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="extra `test`").RougeScorer(["rougeL"])
    texts = [text for text in random_texts(1, 400, 20) if text.isascii() and "_" not in text]
    for prediction, answer in zip(texts[::2], texts[1::2], strict=False):
        expected = 100 * scorer.score(answer, prediction)["rougeL"].fmeasure
        assert percent("rouge_l", prediction, answer) == pytest.approx(expected, abs=1e-6)


def test_rouge_l_reads_german_words_and_chinese_characters() -> None:
    assert percent("rouge_l", "die Größe zählt", "Größe zählt nicht") == pytest.approx(200 / 3)
    assert percent("rouge_l", "我支持他", "我反对他") == pytest.approx(50)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        # n-grams of 1 to 4 words: 5 of 6, 3 of 5, 2 of 4, 1 of 3; as long as the answer
        ("the cat sat on the mat", "the cat sat on a mat", 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25),
        # shorter than the answer by two of seven words: exp(1 - 7/5)
        ("a b c d e", "a b c d e f g", 100 * math.exp(1 - 7 / 5)),
        # no match of three or four words: half, then a quarter of one (exponential smoothing)
        ("a b x c d", "a b y c d", 100 * (4 / 5 * 2 / 4 * (1 / 2) / 3 * (1 / 4) / 2) ** 0.25),
        ("a b", "a b", 100),  # no more orders than words (effective order)
        ("我支持他们的决定", "我支持他们的决定", 100),
        ("我支持他们的决定", "我支持他们的选择", 100 * (6 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** 0.25),
        ("x", "y", 0),
    ],
)
def test_bleu_by_hand(prediction: str, answer: str, expected: float) -> None:
    assert percent("bleu", prediction, answer) == pytest.approx(expected, abs=1e-6)


def test_bleu_rouge_is_the_mean_of_both() -> None:
    texts = random_texts(2, 40, 12)
    predictions, examples = texts[::2], [Example("", answer) for answer in texts[1::2]]
    parts = zip(*(score(name, predictions, examples, NO_ENCODER) for name in ("bleu", "rouge_l")), strict=True)
    expected = [(b + r) / 2 for b, r in parts]
    assert score("bleu_rouge", predictions, examples, NO_ENCODER) == pytest.approx(expected, abs=1e-9)


def sari_of_lists(source: str, prediction: str, answer: str) -> float:
    """SARI with one reference in percent, of words between single spaces in lower case, by counting lists."""
    total = 0.0
    for n in range(1, 5):
        s, p, a = ([tuple(text.split(" ")[i : i + n]) for i in range(len(text.split(" ")) - n + 1)]
                   for text in (source, prediction, answer))  # fmt: skip
        grams = {*s, *p, *a}
        keep_precision, keep_hits, keep_wanted, kept = 0.0, 0, 0, 0
        delete_precision, deleted, added, to_add, rightly_added = 0.0, 0, 0, 0, 0
        for gram in grams:
            in_s, in_p, in_a = s.count(gram), p.count(gram), a.count(gram)
            if min(in_s, in_p):
                kept += 1
                keep_precision += min(in_s, in_p, in_a) / min(in_s, in_p)
            keep_hits += min(in_s, in_p, in_a)
            keep_wanted += min(in_s, in_a)
            if in_s > in_p:
                deleted += 1
                delete_precision += max(in_s - in_p - in_a, 0) / (in_s - in_p)
            added += in_p > 0 == in_s
            to_add += in_a > 0 == in_s
            rightly_added += in_p > 0 == in_s and in_a > 0
        keep = [keep_precision / kept if kept else 1, keep_hits / keep_wanted if keep_wanted else 1]
        add = [rightly_added / added if added else 1, rightly_added / to_add if to_add else 1]
        delete = delete_precision / deleted if deleted else 1
        total += sum(2 * x * y / (x + y) if x + y else 0 for x, y in (keep, add)) + delete
    return 100 * total / 12


def test_sari_by_brute_force() -> None:
    draw = random.Random(3)
    for _ in range(200):
        source, prediction, answer = (" ".join(draw.choices("abcdef", k=draw.randint(1, 9))) for _ in range(3))
        expected = sari_of_lists(source, prediction, answer)
        assert percent("sari", prediction, answer, source) == pytest.approx(expected, abs=1e-6)
        assert percent("trace_sari", prediction, answer, source) == pytest.approx(expected, abs=1e-6)


def test_sari_by_hand() -> None:
    # Words of "a b" -> "a c", answer "a c": all right. Pairs: "a b" deleted and "a c" added rightly, nothing to keep.
    assert percent("sari", "a c", "a c", "a b") == pytest.approx(100)
    # "a b" kept though "a c" is wanted. One word: keep 1/2 and 1/1, add 0, delete 1 of none.
    # Two words: keep 0 of 1 and 1 of none, add 1 of none and 0 of 1, delete 1. Three and four: nothing anywhere, so 1.
    assert percent("sari", "a b", "a c", "a b") == pytest.approx(100 * ((2 / 3 + 0 + 1) + (0 + 0 + 1) + 3 + 3) / 12)
    # Case is ignored, punctuation is a word of its own.
    assert percent("sari", "Das Haus.", "das haus .", "Ein Haus.") == pytest.approx(100)


def test_trace_scores_sari_of_nothing() -> None:
    assert percent("sari", "", "a b", "a b c") == 0
    assert percent("trace_sari", "", "a b", "a b c") == pytest.approx(sari_of_lists("a b c", "", "a b"))
    assert percent("trace_sari", "", "a b", "a b c") > 50


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("kitten", "sitting", 100 * 2 * 4 / 13),  # ittn
        ("x = 1 <EOL> y = 2", "x = 1", 100),
        ("x = 1\ny = 2", "x = 1", 100),
        ("message = ''", "message = '<STR_LIT>'", 100),
        ("( 0 , 12 , 'a' )", "( <NUM_LIT> , <NUM_LIT:12> , '<STR_LIT:a>' )", 100),
        ("<EOL> x", "x", 0),  # its first line is empty
        ("naïve", "naive", 80),
    ],
)
def test_edit_similarity_by_hand(prediction: str, answer: str, expected: float) -> None:
    assert percent("edit_similarity", prediction, answer) == pytest.approx(expected, abs=1e-6)


# --- released code


@pytest.mark.parametrize(
    ("name", "prediction", "answer", "expected"),
    [
        ("piece_stance", "选项：A", "A", 100),  # the fourth character
        ("piece_stance", "选项是：A", "A", 0),  # the fifth
        ("piece_stance", "支持，因为", "A", 100),
        ("piece_stance", "反对", "B", 100),
        ("piece_stance", "中立", "C", 100),
        ("piece_stance", "我支持", "A", 0),
        ("piece_stance", "中立B", "B", 100),  # the letter goes first
        ("piece_stance", "中", "C", 0),
        ("piece_letter", "Because A", "B", 100),
        ("piece_letter", "The answer: D", "D", 100),
        ("piece_letter", "dovish", "A", 0),
        ("piece_letter", "C neutral", "C\nCats are mammals", 100),
        ("piece_number", "11.", "11", 0),
        ("piece_number", "11 apples", "11", 100),
        ("piece_number", "it is -3.5e2!", "-3.5e2", 100),
        ("piece_number", "1,000", "1000", 0),
        ("piece_number", "1,000", "1", 100),
        ("piece_number", "Friday", "Friday", 0),
        ("piece_edit_similarity", "x = 1 <EOL>", "x = 1", 0),
        ("piece_edit_similarity", "a <EOL>x = 1", "x = 1", 100),
        ("piece_edit_similarity", "a <EOL> x = 1", "x = 1", 91),  # 2 * 5 / 11 in whole percent
        ("trace_edit_similarity", "x = 1 <EOL> y", "x = 1", 56),  # 2 * 5 / 18
        ("trace_edit_similarity", "abcd", "bcda", 75),
        ("trace_edit_similarity", "ab" * 150, "ba" * 150, 100 * 0),  # difflib ignores what fills a long text
        ("trace_edit_similarity", "a" * 300, "a" * 300, 100),  # but not where both are the same
        ("trace_edit_similarity", "x = 1\n", "x = 1", 91),  # 2 * 5 / 11: white space is a part of it
        ("trace_edit_similarity", "<STR_<STR_LIT:L>IT:b><STR_LIT:b>", "bb", 100),  # one literal after another
        ("trace_edit_similarity", " ", "x y", 50),  # 2 * 1 / 4
        ("trace_accuracy", "A", "A", 100),
        ("trace_accuracy", "A\n", "A", 0),
        ("trace_accuracy", "<think></think>A", "A", 0),
        ("trace_letter", " A", "A\nThe reason", 0),
        ("trace_rouge_l", "<think> no </think> a b", "a b", 100 * 2 * (2 / 5) / (1 + 2 / 5 + 1e-8)),
        ("piece_stance", "\n\n B", "B", 100),  # what stands between thoughts and answer counts among the four
        ("piece_stance", "\n\n\n\nB", "B", 0),
        ("trace_letter", "A person", "A\nThe reason", 100),
        ("trace_letter", "Answer: B", "B\nThe reason", 0),
        ("olora_exact_match", "Very Positive.", "very positive", 100),
        ("olora_exact_match", "the cat", "cat", 0),
    ],
)
def test_releases_by_hand(name: str, prediction: str, answer: str, expected: float) -> None:
    assert percent(name, prediction, answer) == pytest.approx(expected, abs=1e-6)


def test_releases_overlap_by_hand() -> None:
    # Of n-grams 5 of 6, 3 of 5, 2 of 4, 1 of 3 are right. As sets, of 5 and 6 words, 5 are common.
    bleu = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    found, wanted = "the cat sat on the mat.", "the cat sat on a mat"
    rouge = 2 * (5 / 5 * 5 / 6) / (5 / 5 + 5 / 6 + 1e-8)
    assert percent("trace_rouge_l", found, wanted) == pytest.approx(100 * rouge, abs=1e-6)
    assert percent("piece_bleu_rouge", found, wanted) == pytest.approx(100 * (bleu + rouge) / 2, abs=1e-6)
    # Without four words in a row BLEU is 0.
    assert percent("piece_bleu_rouge", "a b c", "a b c") == pytest.approx(50, abs=1e-6)
    # White space behind the last full stop is a sentence of one empty word.
    assert percent("trace_rouge_l", "a b", "a b.\n") == pytest.approx(100 * 2 * (2 / 3) / (1 + 2 / 3 + 1e-8), abs=1e-6)
    assert percent("piece_bleu_rouge", "...", "a b") == 0


def compare_with(package: Callable[[str, str], float], ours: Callable[[str, str], float], seed: int) -> None:
    texts = random_texts(seed, 600, 25)
    for prediction, answer in zip(texts[::2], texts[1::2], strict=True):
        assert ours(prediction, answer) == pytest.approx(package(prediction, answer), abs=1e-8), (prediction, answer)


def test_rouge_of_sets_is_that_of_the_package() -> None:
    from cl_runner.metrics.released import rouge_of_sets

    rouge = pytest.importorskip("rouge", reason="extra `test`").Rouge(metrics=["rouge-l"])

    def package(prediction: str, answer: str) -> float:
        try:  # TRACE hands the answer over as the hypothesis
            return float(rouge.get_scores(answer, prediction, avg=True)["rouge-l"]["f"])
        except ValueError:  # it knows no text without words
            return 0.0

    compare_with(package, rouge_of_sets, 4)


def test_unsmoothed_bleu_is_that_of_nltk() -> None:
    from cl_runner.metrics.released import unsmoothed_bleu

    nltk_bleu = pytest.importorskip("nltk.translate.bleu_score", reason="extra `test`")

    def package(prediction: str, answer: str) -> float:
        found, wanted = ([word for word in re.split(r"\s|\.", text) if word] for text in (prediction, answer))
        with warnings.catch_warnings(action="ignore"):  # of n-gram orders without a match
            return float(nltk_bleu.sentence_bleu([wanted], found)) if found and wanted else 0.0

    compare_with(package, unsmoothed_bleu, 5)


# --- real answers


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("C-STANCE", ["first_letter", "piece_stance", "trace_letter", "accuracy"]),
        ("FOMC", ["first_letter", "piece_letter", "trace_letter", "accuracy"]),
        ("ScienceQA", ["first_letter", "piece_letter", "trace_letter"]),
        ("NumGLUE-cm", ["number"]),
        ("NumGLUE-ds", ["number", "piece_number"]),
        ("20Minuten", ["bleu_rouge", "piece_bleu_rouge"]),
        ("MeetingBank", ["rouge_l", "bleu", "trace_rouge_l"]),
        ("Py150", ["edit_similarity", "piece_edit_similarity", "trace_edit_similarity"]),
    ],
)
def test_the_right_answers_of_trace_are_right(task: str, names: list[str]) -> None:
    root = os.environ.get("CL_RUNNER_DATA")
    if root is None or not (Path(root) / "trace" / task).is_dir():
        pytest.skip("CL_RUNNER_DATA names no folder with TRACE's tasks in trace/")
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(Path(root) / "trace" / task / "eval_small.parquet").to_pylist()
    examples = [Example(row["prompt"], row["answer"]) for row in rows]
    for name in names:
        values = score(name, [example.answer.strip() for example in examples], examples, NO_ENCODER)
        # A release minds white space and empty sentences at an answer's end.
        assert min(values) > (85 if name.startswith(("piece", "trace")) else 99.99), name


READ = {
    "first_letter": [
        ("B. haw", True),
        ("B", False),
        ("B'", False),
        ("The answer is C", False),
        ("Because (A) it", True),
    ],
    "first_word": [("good", False), (" good movie", True), ("good.", True), ("'", False), ("so-", True)],
    "number": [("it is 12", False), ("it is 12 apples", True), ("1,00", False), ("12.5 kg a day", True), ("no", False)],
}


@pytest.mark.parametrize(("name", "text", "done"), [(n, *case) for n, cases in READ.items() for case in cases])
def test_a_metric_says_when_it_has_read_what_it_reads(name: str, text: str, done: bool) -> None:
    """More text changes no score then."""
    (read,) = reads_of([name])
    example = Example("", {"first_letter": "B", "first_word": "good", "number": "12"}[name])
    assert read(text, example) is done
    if done:
        scores = {score(name, [text + more], [example], None)[0] for more in ("", "s", "'s", "0", ",000", ".5", "e9")}
        assert len(scores) == 1
    assert reads_of([name, "rouge_l"]) == (), "one of them reads all of it"


def test_a_word_in_the_place_of_a_number_is_compared_as_a_whole() -> None:
    (read,) = reads_of(["number"])
    assert not read("12 apples a day", Example("", "entailment"))
