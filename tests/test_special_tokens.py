"""Special tokens in users' texts: letters unless a protocol reads them; labels that no answer can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import run_command, tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cl_runner.build import build_family
from cl_runner.compose import compose
from cl_runner.config import Backbone
from cl_runner.data.example import Example
from cl_runner.data.task import build_tasks
from cl_runner.families.base import Unanswerable
from cl_runner.families.encoding import Encoding
from cl_runner.families.loading import bytes_tokenizer, words_tokenizer
from cl_runner.families.reading_text import TextReader
from cl_runner.prepared import prepare

TEXTS = ("if x:</s> <s>y = '<pad>'", "plain words", "[SEP] and [PAD]", "</s></s>")
TEMPLATE = "<s>{% for m in messages %}USER {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}YOU {% endif %}"


def unigram() -> PreTrainedTokenizerFast:
    """A vocabulary in which special tokens are words as well, as T5's."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -3.0) for c in "▁</>xys:abdlnoprwi=if'")]
    inner = Tokenizer(models.Unigram(words, unk_id=2))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def backbone(name: str = "tiny_llama", **values: object) -> Backbone:
    return compose([f"backbone={name}"]).config.backbone.model_copy(update=values)


@pytest.mark.parametrize("tokenizer", [bytes_tokenizer("causal"), words_tokenizer(48), unigram()])
def test_special_tokens_in_texts_are_letters_or_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    letters, tokens = TextReader(tokenizer, "text"), TextReader(tokenizer, "read")
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert tokens.ids(TEXTS) == plain
    for text, row, read in zip(TEXTS, letters.ids(TEXTS), plain, strict=True):
        assert special.isdisjoint(row)
        assert letters.apart(text) == bool(special & set(read)), "told as the tokenizer reads it"
        assert letters.apart(text) or row == read, "as it always was"
    # The tokenizer itself is as before.
    assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS] == plain


def test_bytes_come_back_as_they_were() -> None:
    tokenizer = bytes_tokenizer("causal")
    assert [tokenizer.decode(row) for row in TextReader(tokenizer, "text").ids(TEXTS)] == list(TEXTS)


def encoded(texts: Sequence[str], **values: object) -> list[list[int]]:
    tokenizer = bytes_tokenizer("causal")
    tokenizer.chat_template = TEMPLATE
    return Encoding(backbone(**values), tokenizer, tokenizer.eos_token_id, open_end=True).prompts(texts)


def test_a_chat_templates_own_special_tokens_are_read() -> None:
    tokenizer = bytes_tokenizer("causal")
    letters = TextReader(tokenizer, "text").ids(["USER ", "a</s>b", "YOU "])
    row, plain = encoded(["a</s>b", "ab"], chat_template=True)
    assert row == [1, *letters[0], *letters[1], 2, *letters[2]]
    assert plain == tokenizer("<s>USER ab</s>YOU ", add_special_tokens=False)["input_ids"]
    [read] = encoded(["a</s>b"], chat_template=True, special_tokens="read")
    assert read == tokenizer("<s>USER a</s>b</s>YOU ", add_special_tokens=False)["input_ids"]


def test_pictures_templates_are_read_and_questions_are_letters() -> None:
    family = build_family(backbone("tiny_llava"), ())
    question, letters = "is </s> red?", TextReader(family.tokenizer, "text").ids(["is </s> red?"])[0]
    [row] = family._encoding.prompts([family._written(Example(question, "yes"))])
    image = family.processor.image_token_id
    assert row.count(image) == 1
    assert 2 not in row
    assert any(row[i : i + len(letters)] == letters for i in range(len(row)))


def test_what_is_cut_or_special_is_counted_from_the_cache_as_well(tmp_path: Path) -> None:
    chosen = backbone(max_length=10, max_answer_length=4)
    examples = [Example("a</s>", "b"), Example("a text too long", "an answer"), Example("short", "<pad>")]
    wanted = {
        "texts cut at 10 tokens": 1,
        "texts with special tokens in them, read as letters": 1,
        "answers cut at 4 tokens": 2,
        "answers with special tokens in them, read as letters": 1,
    }
    for _ in range(2):  # the second one reads what the first one kept
        family = build_family(chosen, ())
        family.tokenize(examples, tmp_path)
        assert family.noted(examples) == wanted
        assert family.noted(examples[:0]) == {}
    other = build_family(chosen.model_copy(update={"special_tokens": "read"}), ())
    other.tokenize(examples, tmp_path)
    assert other.lengths(examples[:1], answers=False) == [3]
    assert "texts with special tokens in them, read as tokens" in other.noted(examples)
    assert len(list(tmp_path.iterdir())) == 2


def test_traces_protocol_reads_them() -> None:
    assert (
        compose(["task_order=trace", "protocol=trace", "backbone=tiny_llama"]).config.backbone.special_tokens == "read"
    )
    assert compose(["task_order=trace", "backbone=tiny_llama"]).config.backbone.special_tokens == "text"


def test_labels_that_no_answer_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = build_family(backbone(max_answer_length=8), ())
    family.check_labels(["bad", "a label"], 7)
    for label, limit, said in (
        ("<s>bad</s>", 16, r"holds '<s>', a special token"),
        ("a label!", 16, r"has 9 tokens with the one that ends it, and an answer is cut at 8 in training"),
        ("a label", 6, r"has 7 tokens, and an answer is at most 6 tokens long"),
    ):
        with pytest.raises(Unanswerable, match=said):
            family.check_labels(["good", label], limit)
    family.check_labels(["a label"], None)
    build_family(backbone("tiny_bert"), ["<s>"]).check_labels(["<s>", "a label of many words"], 1)
    # The command says which task and what to type.
    for given, said in (
        (["task.reviews.max_new_tokens=5"], "task.reviews.max_new_tokens=8"),
        (["evaluation.max_new_tokens=5"], "evaluation.max_new_tokens=8"),
        (["backbone.max_answer_length=7"], "backbone.max_answer_length=8"),
    ):
        assert run_command(tiny(tmp_path, "backbone=tiny_llama", *given)) == 2
        error = capsys.readouterr().err
        assert "task base: the label '2 stars' has" in error and f"Type: {said} (or give it a shorter name" in error
        fits = compose(tiny(tmp_path, "backbone=tiny_llama", said)).config
        prepare(fits, build_tasks(fits.task_order, fits.task))
