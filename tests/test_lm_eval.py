"""The lm-evaluation-harness on the live model against brute force."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from probing import likelihood, probed, retrieving, state
from transformers import GenerationConfig

from cl_runner.batch import Batch
from cl_runner.data.example import Example
from cl_runner.families.base import Answering
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.probes.base import at_rest
from cl_runner.probes.lm_eval import percents


def test_shares_of_the_harness_become_percent() -> None:
    results = {
        "arc": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.1, "acc_norm,none": 0.5, "bleu,none": 12.0},
        "gsm8k": {"exact_match,strict-match": 0.125, "exact_match,flexible-extract": 0.25},
        "mmlu_a": {"acc,none": 1.0},
        "mmlu_b": {"acc,none": 0.0},
        "words": {"word_perplexity,none": 7.0},
    }
    assert percents(["arc", "gsm8k", "tag"], results, {"tag": ["mmlu_a", "mmlu_b"]}) == {
        "arc/acc": 25.0,
        "arc/acc_norm": 50.0,
        "gsm8k/exact_match/strict-match": 12.5,
        "gsm8k/exact_match/flexible-extract": 25.0,
        "mmlu_a/acc": 100.0,
        "mmlu_b/acc": 0.0,
    }
    with pytest.raises(ValueError, match="words has no metric that is a share"):
        percents(["words"], results, {})


def test_a_missing_harness_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, probe, _ = probed(tmp_path, "probe=lm_eval")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'cl-runner\\[lm-eval\\]'"):
        probe.check()


CHOICE = """
task: our_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
QUESTIONS = [
    {"question": f"Question {i}:", "choices": ["yes", "certainly not", "x" * (i + 1)], "label": i % 3}
    for i in range(12)
]


@pytest.mark.filterwarnings("default")  # of the harness and its own packages
@pytest.mark.parametrize("backbone", ["tiny_llama", "tiny_t5"])
def test_the_harness_measures_the_live_model_and_leaves_it_alone(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / "tasks" / "ours.yaml").write_text(CHOICE.format(data=data, cache=tmp_path / "cache"))
    learner, probe, folder = probed(
        tmp_path,
        f"backbone={backbone}",
        "probe=lm_eval",
        "probe.lm_eval.tasks=[our_choice]",
        f"probe.lm_eval.include_path={tmp_path / 'tasks'}",
        "probe.lm_eval.batch_size=4",
    )
    learner.model.train()
    learner.model.get_input_embeddings().weight.requires_grad_(False)
    learner.model.generation_config = GenerationConfig(max_new_tokens=3, pad_token_id=0)
    probe.check()
    before = state(learner)
    probe.prepare(learner, folder)
    found = probe.measure(learner, folder, "start")
    assert found == probe.measure(learner, folder, "base")
    assert state(learner) == before

    learner.model.eval()
    right, right_norm = 0, 0
    for question in QUESTIONS:
        scores = [likelihood(learner, str(question["question"]), f" {c}") for c in question["choices"]]  # type: ignore[attr-defined]
        lengths = [len(c) for c in question["choices"]]  # type: ignore[attr-defined]
        right += scores.index(max(scores)) == question["label"]
        normed = [score / length for score, length in zip(scores, lengths, strict=True)]
        right_norm += normed.index(max(normed)) == question["label"]
    assert found == {
        "our_choice/acc": pytest.approx(100 * right / 12),
        "our_choice/acc_norm": pytest.approx(100 * right_norm / 12),
    }
    with torch.no_grad():  # the live weights are what is measured
        learner.model.get_output_embeddings().weight.normal_()
    assert probe.measure(learner, folder, "base") != found


@pytest.mark.filterwarnings("default")  # of the harness and its own packages
@pytest.mark.parametrize("value", ["jare", "prompt", "adapter"])
@pytest.mark.parametrize("backbone", ["tiny_llama", "tiny_t5"])
def test_what_the_harness_asks_retrieves_by_its_context(backbone: str, value: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    from lm_eval.api.instance import Instance

    from cl_runner.probes.live_model import LiveModel

    learner = retrieving(tmp_path, f"backbone={backbone}", f"method.slm.value={value}")
    asked = [  # of the first two all tokens are the same; some choices share all tokens but the last
        ("Once up", "on a"),
        ("Once upon", " a"),
        *((str(q["question"]), f" {c}") for q in QUESTIONS[:3] for c in (*q["choices"], "yet")),  # type: ignore[attr-defined]
    ]
    seq2seq = learner.family.backbone.family == "seq2seq"
    with at_rest(learner.model):
        tokenizer = learner.family.tokenizer
        live = LiveModel(learner, backend="seq2seq" if seq2seq else "causal", tokenizer=tokenizer, batch_size=3)
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asked)]
        scores = [score for score, _ in live.loglikelihood(requests, disable_tqdm=True)]
        expected = [likelihood(learner, *pair) for pair in asked]
        wrong = likelihood(learner, *asked[0], about=asked[1][0])
        learner.method.methods["slm"].values.stop()  # type: ignore[attr-defined]
        plain = Learner(learner.model, learner.family, [], 0, torch.device("cpu"), Method())
        untouched = [likelihood(plain, *pair) for pair in asked]

        stop = {"max_gen_toks": 5, "do_sample": False, "until": ["\n\n"]}
        contexts = ["Once upon", "A much longer context, which comes first:", "x"]
        requests = [Instance("generate_until", {}, (text, dict(stop)), i) for i, text in enumerate(contexts)]
        written = live.generate_until(requests, disable_tqdm=True)
        ids = [tokenizer(text, return_tensors="pt") for text in contexts]
        answers = [
            learner.answer(Batch(row, [Example(text, "")]), Answering(5, raw=True))[0].text
            for row, text in zip(ids, contexts, strict=True)
        ]
    assert scores == [pytest.approx(score, abs=1e-4) for score in expected]
    assert abs(expected[0] - wrong) > 5e-4
    assert sum(abs(a - b) for a, b in zip(expected, untouched, strict=True)) > 0.02
    until = [answer.partition("\n\n")[0] for answer in answers]
    # The harness lets an encoder-decoder write more, by the length of the prompt.
    assert all(whole.startswith(answer) for whole, answer in zip(written, until, strict=True))
    assert written == until or seq2seq
    assert any(answers) or value != "jare"
