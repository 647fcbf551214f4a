"""HumanEval: completions, their judgement, pass@k."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from probing import PROBLEMS, probed, state, write_problems
from programs import problems as small_problems

from cl_runner.batch import Batch
from cl_runner.families.base import Answering, Prediction
from cl_runner.learner import Learner
from cl_runner.probes.humaneval import Problem, first_paragraph, pass_at, program
from cl_runner.probes.sandbox import execute


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write_problems(tmp_path)


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_is_the_chance_of_a_drawn_subset(samples: int) -> None:
    for passed in range(samples + 1):
        outcomes = [True] * passed + [False] * (samples - passed)
        for k in range(1, samples + 1):
            drawn = [any(chosen) for chosen in itertools.combinations(outcomes, k)]
            assert pass_at(k, samples, passed) == pytest.approx(sum(drawn) / len(drawn))


def test_a_completion_ends_at_the_first_blank_line() -> None:
    assert first_paragraph("\n\n    return 1\n    # end\n\nprint(2)") == "    return 1\n    # end"
    assert first_paragraph("    return 1") == "    return 1"


def test_programs_end_as_under_the_reference() -> None:
    """Whose verdicts on these were asked once: of 48 they differ in the three that know their own module."""

    def differs(row: tuple[str, Problem, str, bool]) -> str:
        what, problem, completion, passes = row
        verdict = execute(program(problem, completion), 0.5 if "never" in what or "sleeps" in what else 20.0, 10**9)
        return "" if verdict.passed == passes else f"{what}: {verdict}"

    rows = small_problems()
    assert len(rows) == 48 and sum(passes for *_, passes in rows) == 25
    with ThreadPoolExecutor(2) as pool:
        assert not list(filter(None, pool.map(differs, rows)))


def answers_with(monkeypatch: pytest.MonkeyPatch, learner: Learner, texts: dict[str, Sequence[str]]) -> list[Answering]:
    """The model completes a prompt, told by a part of it, with these texts, one after another."""
    asked = []
    left = {part: list(each) for part, each in texts.items()}

    def answer(model: Any, batch: Batch, how: Answering) -> list[Prediction]:
        asked.append(how)
        prompts = learner.family.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        return [Prediction(next(each for part, each in left.items() if part in p).pop(0), None) for p in prompts]

    monkeypatch.setattr(learner.family, "answer", answer)
    return asked


def test_pass_at_k_of_right_and_wrong_completions(
    tmp_path: Path, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, probe, folder = probed(
        tmp_path,
        "probe=humaneval",
        f"probe.humaneval.path={problems}",
        "probe.humaneval.samples=3",
        "probe.humaneval.k=[1,2]",
        "probe.humaneval.decoding=piece",
    )
    probe.check()
    right, wrong = "    return x + x", "    return x * x\n\nignored = ("
    asked = answers_with(
        monkeypatch,
        learner,
        {
            "double": [right, wrong, wrong],
            "longest": ["    return max(map(len, words))", "  x", "    raise SystemExit"],
        },
    )
    before = state(learner)
    found = probe.measure(learner, folder, "base")
    assert state(learner) == before
    assert found == {"pass@1": pytest.approx(100 / 3), "pass@2": pytest.approx(200 / 3)}
    assert asked[0].sampling is not None and asked[0].sampling.model_dump() == {
        "temperature": 0.3,
        "top_k": 10,
        "top_p": 0.95,
    }
    assert (asked[0].max_new_tokens, asked[0].raw) == (128, True)
    lines = [json.loads(line) for line in (folder / "base.jsonl").read_text().splitlines()]
    assert [(line["task_id"], line["passed"]) for line in lines] == [
        ("ours/0", True),
        ("ours/0", False),
        ("ours/0", False),
        ("ours/1", True),
        ("ours/1", False),
        ("ours/1", False),
    ]
    assert lines[1]["completion"] == "    return x * x"
    assert [line["reason"].partition(":")[0] for line in lines[3:]] == ["", "IndentationError", "SystemExit"]


@pytest.mark.parametrize("backbone", ["tiny_llama", "tiny_t5"])
def test_a_live_model_completes_the_same_whatever_the_batch(backbone: str, tmp_path: Path, problems: Path) -> None:
    written = []
    for size in (1, 2):
        learner, probe, folder = probed(
            tmp_path,
            f"backbone={backbone}",
            "probe=humaneval",
            f"probe.humaneval.path={problems}",
            "probe.humaneval.max_new_tokens=6",
            f"probe.humaneval.batch_size={size}",
        )
        before = state(learner)
        assert probe.measure(learner, folder, "start") == {"pass@1": 0.0}
        assert state(learner) == before
        written.append((folder / "start.jsonl").read_text())
    assert written[0] == written[1]


def test_raw_answers_keep_the_first_line_indented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer like LLaMA-2's drops the space that a text begins with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = {piece: i for i, piece in enumerate(["<pad>", "<s>", "</s>", "▁", *"definrtu:(),x\n1.!"])}
    tokenizer = Tokenizer(models.BPE(pieces, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace()
    llama = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    learner, _, _ = probed(tmp_path, "probe=held_text")
    monkeypatch.setattr(learner.family, "tokenizer", llama)
    prompts, written = ["def f(x):\n", "x"], "    return x , 1 !\n"
    ids = [[pieces["<s>"], *llama(p, add_special_tokens=False)["input_ids"]] for p in prompts]
    longest = max(map(len, ids))
    read = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
    batch = Batch({"input_ids": read, "attention_mask": (read != 0).long()})
    new = torch.tensor([[pieces[c.replace(" ", "▁")] for c in written] + [2]] * 2)

    def generate(input_ids: torch.Tensor, logits_processor: Any, **_: Any) -> torch.Tensor:
        logits_processor(input_ids, torch.zeros(2, len(pieces)))
        return torch.cat([input_ids, new], 1)

    monkeypatch.setattr(learner.model, "generate", generate)
    raw = learner.answer(batch, Answering(8, raw=True))
    assert [answer.text for answer in raw] == [written, written]
    assert [answer.text for answer in learner.answer(batch, Answering(8))] == [written.strip()] * 2


def test_prompts_are_raw_and_keep_their_end(tmp_path: Path, problems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, probe, folder = probed(
        tmp_path,
        "probe=humaneval",
        f"probe.humaneval.path={problems}",
        "probe.humaneval.max_new_tokens=984",
        "backbone.max_length=16",
    )
    seen = []

    def answer(model: Any, batch: Batch, how: Answering) -> list[Prediction]:
        seen.extend(learner.family.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True))
        return [Prediction("", None)] * len(batch["input_ids"])

    monkeypatch.setattr(learner.family, "answer", answer)
    monkeypatch.setattr(learner.family.tokenizer, "chat_template", "{{ 1 / 0 }}")
    probe.measure(learner, folder, "start")
    room = 1024 - 984 - 1  # positions without the completion's and <s>
    assert seen == [problem["prompt"][-room:] for problem in reversed(PROBLEMS)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probe.humaneval.path=nowhere/HumanEval.jsonl"], "nowhere/HumanEval.jsonl is no .*github.com/openai"),
        (["probe.humaneval.k=[1,5]"], "pass@5 needs as many samples. Type: probe.humaneval.samples=5"),
        (["probe.humaneval.samples=2"], "greedy samples are the same. Type: probe.humaneval.decoding=piece"),
        ([], "openai/openai_humaneval cannot be read.*probe.humaneval.path="),
        (
            ["probe.humaneval.path=FILE", "probe.humaneval.memory_gb=0.01"],
            "no program can run within memory_gb=0.01 and seconds=5 here: .* Type: probe.humaneval.memory_gb=1.0",
        ),
    ],
)
def test_humaneval_says_what_is_missing(overrides: list[str], message: str, tmp_path: Path, problems: Path) -> None:
    _, probe, _ = probed(tmp_path, "probe=humaneval", *(o.replace("FILE", str(problems)) for o in overrides))
    with pytest.raises(ValueError, match=message):
        probe.check()


def test_other_problems_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text('{"task_id": "1", "prompt": "x", "test": "y"}\n')
    _, probe, _ = probed(tmp_path, "probe=humaneval", f"probe.humaneval.path={path}")
    with pytest.raises(ValueError, match="a problem without the text 'entry_point'"):
        probe.check()
