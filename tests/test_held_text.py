"""The loss on held texts against brute force."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from probing import likelihood, probed, retrieving, state
from tiny import tiny_config
from torch.nn import functional

from cl_runner.build import build_probes
from cl_runner.probes.held_text import halved


@pytest.mark.parametrize("path", [False, True])
def test_held_text_of_a_decoder_is_the_mean_over_tokens_of_single_texts(path: bool, tmp_path: Path) -> None:
    given = tmp_path / "held.jsonl"
    texts = ["A short text.", "Äh", "Another text, which is longer than the twelve tokens that count."]
    given.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    learner, probe, folder = probed(
        tmp_path,
        "probe=held_text",
        "probe.held_text.texts=3",
        "probe.held_text.tokens=12",
        "probe.held_text.batch_size=2",
        *([f"probe.held_text.path={given}"] if path else []),
    )
    learner.model.train()
    before = state(learner)
    probe.check()
    probe.prepare(learner, folder)
    found = probe.measure(learner, folder, "start")
    assert state(learner) == before

    kept = [json.loads(line)["text"] for line in (folder / "text.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (kept == texts) == path
    losses: list[float] = []
    tokenizer = learner.family.tokenizer
    for text in kept:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"][:12]]])
        with torch.no_grad():
            logits = learner.model.eval()(ids).logits
        losses += functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none").tolist()
    assert len(losses) == 27 or not path  # 12 tokens, 3 bytes, 12 tokens
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert list(found) == list(probe.names())
    with torch.no_grad():
        learner.model.get_output_embeddings().weight.mul_(3)
    assert probe.measure(learner, folder, "base") != found


def test_held_text_of_an_encoder_decoder_is_the_second_half_given_the_first(tmp_path: Path) -> None:
    given = tmp_path / "held.jsonl"
    texts = ["one two three four", "unbroken", "a b"]
    given.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    learner, probe, folder = probed(
        tmp_path, "backbone=tiny_t5", "probe=held_text", "probe.held_text.texts=3", f"probe.held_text.path={given}"
    )
    probe.prepare(learner, folder)
    found = probe.measure(learner, folder, "start")
    losses: list[float] = []
    tokenizer = learner.family.tokenizer
    for first, second in [("one two", " three four"), ("unbr", "oken"), ("a", " b")]:
        labels = tokenizer(second, return_tensors="pt")["input_ids"]  # </s> included
        with torch.no_grad():
            logits = learner.model.eval()(**tokenizer(first, return_tensors="pt"), labels=labels).logits
        losses += functional.cross_entropy(logits[0], labels[0], reduction="none").tolist()
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("backbone", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_the_untouched_model_writes_the_same_text_again(backbone: str, tmp_path: Path) -> None:
    written: list[bytes] = []
    weights: dict[str, torch.Tensor] = {}
    for seed, size in ((0, 16), (0, 2), (1, 16)):
        learner, probe, folder = probed(
            tmp_path,
            f"backbone={backbone}",
            f"seed={seed}",
            "probe=held_text",
            "probe.held_text.texts=3",
            "probe.held_text.tokens=8",
            f"probe.held_text.batch_size={size}",
        )
        if written:  # the same weights, another seed of the text
            learner.model.load_state_dict(weights)
        weights = learner.model.state_dict()
        probe.prepare(learner, folder)
        written.append((folder / "text.jsonl").read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_text_file_is_cut_into_pieces(tmp_path: Path) -> None:
    given = tmp_path / "held.txt"
    given.write_text("abcdefgh" * 2 + "xyz", encoding="utf-8")
    options = ["probe=held_text", f"probe.held_text.path={given}", "probe.held_text.tokens=8"]
    learner, probe, folder = probed(tmp_path, *options, "probe.held_text.texts=2")
    probe.prepare(learner, folder)
    assert (folder / "text.jsonl").read_text() == '{"text": "abcdefgh"}\n' * 2
    learner, probe, folder = probed(tmp_path, *options, "probe.held_text.texts=3")
    with pytest.raises(ValueError, match="holds 2 texts of 8 tokens. Type: probe.held_text.texts=2"):
        probe.prepare(learner, folder)


def test_a_table_gives_the_texts_of_a_column(tmp_path: Path) -> None:
    given = tmp_path / "held.csv"
    given.write_text("id,prompt\n1,first text\n2,\n3,third text\n", encoding="utf-8")
    options = ["probe=held_text", f"probe.held_text.path={given}", "probe.held_text.texts=2"]
    learner, probe, folder = probed(tmp_path, *options, "probe.held_text.column=prompt")
    probe.prepare(learner, folder)
    assert (folder / "text.jsonl").read_text() == '{"text": "first text"}\n{"text": "third text"}\n'
    learner, probe, folder = probed(tmp_path, *options, "probe.held_text.column=promt")
    with pytest.raises(
        ValueError, match="without 'promt', but with 'id', 'prompt'. Nearest: 'prompt'. Type: .*column="
    ):
        probe.prepare(learner, folder)


def test_a_held_text_that_is_missing_or_too_long(tmp_path: Path) -> None:
    _, probe, _ = probed(tmp_path, "probe=held_text", "probe.held_text.path=nowhere.txt")
    with pytest.raises(ValueError, match="nowhere.txt is no file.*probe.held_text.path=null"):
        probe.check()
    learner, probe, folder = probed(tmp_path, "probe=held_text", "probe.held_text.tokens=1024")
    with pytest.raises(ValueError, match="reads 1024 tokens.* Type: probe.held_text.tokens=1023"):
        probe.prepare(learner, folder)


def test_texts_are_halved_at_a_space() -> None:
    assert [halved(t) for t in ("ab cd ef", "abcdef", " abcde")] == [("ab", " cd ef"), ("abc", "def"), (" ab", "cde")]


@pytest.mark.parametrize("value", ["jare", "prompt", "adapter"])
def test_held_text_retrieves_by_itself(value: str, tmp_path: Path) -> None:
    given, texts = tmp_path / "held.jsonl", ["One text.", "Another text."]
    given.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    learner = retrieving(tmp_path, "backbone=tiny_llama", f"method.slm.value={value}")
    chosen = ["probe=held_text", "probe.held_text.texts=2", f"probe.held_text.path={given}"]
    (probe,) = build_probes(tiny_config(tmp_path, "backbone=tiny_llama", "method=seq_ft", *chosen).probe).values()
    probe.prepare(learner, tmp_path)
    found = probe.measure(learner, tmp_path, "base")
    learner.model.eval()
    total = sum(likelihood(learner, "", text, about=text) for text in texts)
    assert found["loss"] == pytest.approx(-total / sum(map(len, texts)), rel=1e-5)
    assert total != pytest.approx(sum(likelihood(learner, "", text, about="x") for text in texts), rel=1e-5)
