"""Captioning: scores against libraries and brute force, published layouts of captions, the probe on drawn pictures."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nltk.translate.bleu_score import sentence_bleu
from probing import probed, state, write_problems
from rouge import Rouge
from sacrebleu.metrics.bleu import BLEU
from tiny import run_command

from cl_runner.data.captions import captioned, of_split
from cl_runner.data.drawings import drawings
from cl_runner.data.example import Example, Picture
from cl_runner.families.base import Answering
from cl_runner.metrics import captions as scores

REFERENCES = [drawing.captions() for drawing in drawings("test", 24, 0)]


def spoiled() -> list[str]:
    """Captions of which some are right, some of another picture, cut, doubled or empty."""
    draw, made = random.Random(0), [""]
    for number, own in enumerate(REFERENCES[1:]):
        words = draw.choice(own if number % 3 else REFERENCES[0]).split()
        made.append(" ".join((words * 2)[: draw.randint(1, len(words) + 4)]))
    return made


def test_words_of_captions() -> None:
    assert scores.words("A man's T-shirt isn't blue, it\u2019s \"red\" (we'll see).") == [
        *("a", "man", "'s", "t-shirt", "is", "n't", "blue", "it", "'s", "red", "we", "'ll", "see")
    ]


@pytest.mark.filterwarnings("ignore::UserWarning:nltk")  # of n-gram orders without a match
def test_pieces_scores_are_the_best_of_the_references_by_its_libraries() -> None:
    captions = spoiled()

    def cut(text: str) -> list[str]:
        return [word for word in text.replace(".", " ").split() if word]

    for name, weights in (("bleu_1", (1.0,)), ("bleu_4", (0.25,) * 4)):
        best = [
            max(sentence_bleu([cut(one)], cut(caption), weights) for one in own) if caption else 0.0
            for caption, own in zip(captions, REFERENCES, strict=True)
        ]
        assert scores.METRICS[name](captions, REFERENCES) == pytest.approx(100 * sum(best) / len(best))
        assert 10 < 100 * sum(best) / len(best) < 95, "something between nothing and all"
    rouge = Rouge(metrics=["rouge-l"])
    best = [
        max(rouge.get_scores(one, caption)[0]["rouge-l"]["f"] for one in own) if caption else 0.0
        for caption, own in zip(captions, REFERENCES, strict=True)
    ]
    assert scores.rouge_l(captions, REFERENCES) == pytest.approx(100 * sum(best) / len(best))


def test_bleu_of_the_whole_set_is_sacrebleus() -> None:
    captions = spoiled()
    texts = [" ".join(scores.words(one)) for one in captions]
    streams = [[" ".join(scores.words(own[i])) for own in REFERENCES] for i in range(5)]
    wanted = BLEU(tokenize="none", smooth_method="none").corpus_score(texts, streams).score
    assert scores.corpus_bleu_4(captions, REFERENCES) == pytest.approx(wanted) and wanted > 10
    assert scores.corpus_bleu_4(["", "a b"], [["a"], ["c d"]]) == 0


def cider_by_brute_force(captions: list[str], references: list[list[str]]) -> float:
    """CIDEr-D with a coordinate for every n-gram that there is."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = scores.words(text)
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    of_pictures = []
    for caption, own in zip(captions, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            axes = sorted({g for texts in (captions, *references) for text in texts for g in grams(text, n)})
            seen = [sum(any(g in grams(one, n) for one in each) for each in references) for g in axes]
            rare = np.array([math.log(len(captions) / max(1, count)) for count in seen])
            ours = rare * [grams(caption, n)[g] for g in axes]
            for one in own:
                theirs = rare * [grams(one, n)[g] for g in axes]
                norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
                apart = sum(grams(caption, 2).values()) - sum(grams(one, 2).values())
                if norm:
                    clipped = np.minimum(ours, theirs) @ theirs / norm
                    total += 10 * clipped * math.exp(-(apart**2) / 72) / 4 / len(own)
        of_pictures.append(total)
    return 100 * sum(of_pictures) / len(of_pictures)


def test_cider_d_by_brute_force() -> None:
    captions = spoiled()[:8]
    wanted = cider_by_brute_force(captions, REFERENCES[:8])
    assert scores.cider_d(captions, REFERENCES[:8]) == pytest.approx(wanted) and wanted > 10
    assert scores.cider_d([own[0] for own in REFERENCES], REFERENCES) > scores.cider_d(spoiled(), REFERENCES)
    assert scores.cider_d([""], [["a b"]]) == scores.cider_d(["a b"], [["a b"]]) == 0


@pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="needs the extra `captions`")
def test_cider_d_is_that_of_cocos_evaluation() -> None:
    from pycocoevalcap.cider.cider import Cider

    known = {i: [" ".join(scores.words(one)) for one in own] for i, own in enumerate(REFERENCES)}
    said = {i: [" ".join(scores.words(one))] for i, one in enumerate(spoiled())}
    assert scores.cider_d(spoiled(), REFERENCES) == pytest.approx(100 * Cider().compute_score(known, said)[0])


# Files ------------------------------------------------------------------------------------------------------


def test_published_layouts(tmp_path: Path) -> None:
    two = [("1.jpg", ["a dog", "the dog"]), ("2.jpg", ["a cat", "one cat"])]
    karpathy = [
        {"filename": name, "split": split, "sentences": [{"raw": text, "tokens": text.split()} for text in texts]}
        for (name, texts), split in zip(two, ("train", "test"), strict=True)
    ]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": karpathy, "dataset": "flickr30k"}))
    coco = [{**one, "filepath": "val2014"} for one in karpathy]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": coco, "dataset": "coco"}))
    annotations = [{"image_id": i, "id": 9, "caption": text} for i, (_, texts) in enumerate(two) for text in texts]
    images = [{"id": i, "file_name": name} for i, (name, _) in enumerate(two)]
    (tmp_path / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    lines = [f"{name}#{i}\t{text}" for name, texts in two for i, text in enumerate(texts)]
    (tmp_path / "results_20130124.token").write_text("\n".join(lines) + "\n")
    (tmp_path / "test.json").write_text(json.dumps([{"filename": name, "raw": texts} for name, texts in two]))
    for name in ("dataset_flickr30k.json", "captions_val2014.json", "results_20130124.token", "test.json"):
        found = captioned(tmp_path / name)
        assert [(one.file, list(one.references)) for one in found] == two, name
    path = tmp_path / "dataset_coco.json"
    assert [one.file for one in of_split(captioned(path), "test", path, "k")] == ["val2014/2.jpg"]
    with pytest.raises(ValueError, match="no split 'tset', but test, train. Nearest: 'test'. Type: k=test"):
        of_split(captioned(path), "tset", path, "k")
    token = tmp_path / "results_20130124.token"
    with pytest.raises(ValueError, match="knows no splits.* Type: k=null"):
        of_split(captioned(token), "test", token, "k")
    token.write_text("a caption\n")
    with pytest.raises(ValueError, match="line 1 is not FILE#NUMBER.* Known are Karpathy"):
        captioned(token)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no list `images`.* Known are"):
        captioned(tmp_path / "other.json")


# The probe --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    assert run_command(["draw", str(folder), "--train", "2", "--val", "1", "--test", "5"]) == 0
    return folder


@pytest.mark.parametrize("backbone", ["tiny_llava", "tiny_qwen3_vl"])
def test_captions_are_the_models_own_and_scored_against_all_references(
    backbone: str, root: Path, tmp_path: Path
) -> None:
    key = "probe.captioning_drawn"
    options = (f"{key}.max_new_tokens=6", f"{key}.batch_size=2", f"data_root={root}")
    learner, probe, folder = probed(tmp_path, f"backbone={backbone}", "probe=captioning_drawn", *options)
    probe.check()
    probe.prepare(learner, folder)
    learner.model.train()
    before = state(learner)
    found = probe.measure(learner, folder, "start")
    assert state(learner) == before
    captions = json.loads((folder / "captions_start.json").read_text())
    kept = [json.loads(line) for line in (folder / "references.jsonl").read_text().splitlines()]
    assert [one["picture"] for one in kept] == [f"test_{i:04d}.bmp" for i in range(5)]
    assert all(len(one["references"]) == 5 for one in kept)
    learner.model.eval()
    for caption, one in zip(captions, kept, strict=True):
        path = root / "drawn" / "pictures" / one["picture"]
        asked = Example("Give a short description of the image.", "", picture=Picture(str(path), path.name, 1))
        with torch.no_grad():
            (wanted,) = learner.answer(learner.collate([asked], answers=False), Answering(6))
        assert caption == wanted.text
    assert found == {
        name: scores.METRICS[name](captions, [one["references"] for one in kept])
        for name in ("bleu_1", "bleu_4", "rouge_l", "cider_d")
    }
    assert list(found) == list(probe.names()) and probe.passes([3])[0].texts == 5


def test_mistakes_of_the_probe(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe_of(name: str = "captioning_drawn", *options: str, where: Path = root) -> Any:
        given = [f"probe.{name}.{option}" for option in options]
        return probed(tmp_path, "backbone=tiny_llava", f"probe={name}", f"data_root={where}", *given)

    for name, said in (("captioning", "dataset_flickr30k.json.*flickr30k-images"), ("captioning_coco", "val2014.zip")):
        with pytest.raises(ValueError, match=rf"(?s)probe {name}: .*caption_datasets.zip.*{said}"):
            probe_of(name)[1].check()
    with pytest.raises(ValueError, match="probe.captioning_drawn.split=test"):
        probe_of("captioning_drawn", "split=tests")[1].check()
    with pytest.raises(ValueError, match="Type: python -m cl_runner draw"):
        probe_of("captioning_drawn", where=tmp_path)[1].check()
    learner, probe, folder = probe_of("captioning_drawn", "max_new_tokens=1000")
    with pytest.raises(ValueError, match=r"reads 1024 tokens.*Type: probe.captioning_drawn.max_new_tokens=9\d\d"):
        probe.prepare(learner, folder)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ValueError, match=r"meteor needs the package pycocoevalcap.*cl-runner\[captions\]"):
        probe_of("captioning_drawn", "metrics=[meteor]")[1].check()


# Words alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["tiny_llava", "tiny_qwen3_vl"])
def test_a_model_that_sees_is_asked_in_words_alone(backbone: str, tmp_path: Path) -> None:
    """Held text and HumanEval: the loss of a plain call, and completions of the plain greedy loop."""
    held = ("probe=held_text", "probe.held_text.texts=3", "probe.held_text.tokens=8", "probe.held_text.batch_size=2")
    learner, probe, folder = probed(tmp_path, f"backbone={backbone}", *held)
    probe.check()
    probe.prepare(learner, folder)
    before = state(learner)
    found = probe.measure(learner, folder, "start")
    assert state(learner) == before
    learner.model.eval()
    tokenizer, total, count = learner.family.tokenizer, 0.0, 0
    for line in (folder / "text.jsonl").read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"][:8]
        with torch.no_grad():
            logits = learner.model(input_ids=torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum"))
        count += len(ids)
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)

    path = write_problems(tmp_path)
    asked = ("probe=humaneval", f"probe.humaneval.path={path}", "probe.humaneval.max_new_tokens=4")
    learner, probe, folder = probed(tmp_path, f"backbone={backbone}", *asked, "probe.humaneval.batch_size=2")
    learner.model.eval()
    with torch.no_grad():
        written = probe._completions(learner)
    for problem, (completion,) in zip(probe.problems, written, strict=True):
        ids = tokenizer(problem.prompt)["input_ids"]
        given = len(ids)
        with torch.no_grad():
            while len(ids) < given + 4 and ids[-1] != tokenizer.eos_token_id:
                logits = learner.model(input_ids=torch.tensor([ids])).logits[0, -1]
                logits[list(learner.family._placeholders)] = -math.inf
                ids.append(int(logits.argmax()))
        plain = tokenizer.decode(ids[given:], skip_special_tokens=True)
        assert completion == plain.lstrip("\n").partition("\n\n")[0]
