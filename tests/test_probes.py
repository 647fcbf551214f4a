"""Probes of general ability: numbers against brute force, a sandbox that holds, a model left as it was."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import GenerationConfig

from cl_runner.build import build_family, build_probes
from cl_runner.families.base import Answering, Batch, Prediction
from cl_runner.learner import Learner
from cl_runner.probes import sandbox
from cl_runner.probes.base import at_rest
from cl_runner.probes.held_text import halved
from cl_runner.probes.humaneval import first_paragraph, pass_at
from cl_runner.probes.lm_eval import percents
from cl_runner.probes.sandbox import execute
from tests.tiny import learn, run_command, tiny, tiny_config, tiny_encoder, tiny_learner

MEMORY = 512 << 20
PROBLEMS = [
    {
        "task_id": "ours/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
        "entry_point": "double",
    },
    {
        "task_id": "ours/1",
        "prompt": 'from typing import List\n\ndef longest(words: List[str]) -> int:\n    """The longest length."""\n',
        "test": "def check(candidate):\n    assert candidate(['a', 'bcd']) == 3\n",
        "entry_point": "longest",
    },
]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "HumanEval.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({**problem, "canonical_solution": ""}) + "\n" for problem in PROBLEMS)
    return path


def probed(tmp_path: Path, *overrides: str) -> tuple[Learner, Any, Path]:
    """A learner on a tiny language model, the only probe, and its folder."""
    backbone = [] if any(o.startswith("backbone=") for o in overrides) else ["backbone=tiny_llama"]
    config = tiny_config(tmp_path, "method=seq_ft", *backbone, *overrides)
    family = build_family(config.backbone, [])
    learner = Learner(family.build(config.seed)[0], family, [], config.seed, torch.device("cpu"))
    (probe,) = build_probes(config.probe).values()
    folder = tmp_path / "probe"
    folder.mkdir(exist_ok=True)
    return learner, probe, folder


def state(learner: Learner) -> list[Any]:
    """Everything of a model that a measurement must leave alone."""
    model = learner.model
    return [
        {
            name: (id(p), p.requires_grad, p.grad, p.detach().clone().numpy().tobytes())
            for name, p in model.named_parameters()
        },
        [module.training for module in model.modules()],
        model.generation_config.to_dict(),
        model.config.to_dict(),
        learner.family.tokenizer.padding_side,
        torch.is_grad_enabled(),
    ]


# Held text --------------------------------------------------------------------------------------------------


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


def test_a_held_text_that_is_missing_or_too_long(tmp_path: Path) -> None:
    _, probe, _ = probed(tmp_path, "probe=held_text", "probe.held_text.path=nowhere.txt")
    with pytest.raises(ValueError, match="nowhere.txt is no file.*probe.held_text.path=null"):
        probe.check()
    learner, probe, folder = probed(tmp_path, "probe=held_text", "probe.held_text.tokens=1024")
    with pytest.raises(ValueError, match="reads 1024 tokens.* Type: probe.held_text.tokens=1023"):
        probe.prepare(learner, folder)


def test_texts_are_halved_at_a_space() -> None:
    assert [halved(t) for t in ("ab cd ef", "abcdef", " abcde")] == [("ab", " cd ef"), ("abc", "def"), (" ab", "cde")]


# HumanEval --------------------------------------------------------------------------------------------------


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
    batch = {"input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in ids])}
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    new = torch.tensor([[pieces[c.replace(" ", "▁")] for c in written] + [2]] * 2)
    monkeypatch.setattr(learner.model, "generate", lambda input_ids, **_: torch.cat([input_ids, new], 1))
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
    ],
)
def test_humaneval_says_what_is_missing(overrides: list[str], message: str, tmp_path: Path) -> None:
    _, probe, _ = probed(tmp_path, "probe=humaneval", *overrides)
    with pytest.raises(ValueError, match=message):
        probe.check()


def test_other_problems_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text('{"task_id": "1", "prompt": "x", "test": "y"}\n')
    _, probe, _ = probed(tmp_path, "probe=humaneval", f"probe.humaneval.path={path}")
    with pytest.raises(ValueError, match="a problem without the text 'entry_point'"):
        probe.check()


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


# The sandbox ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\nassert x == 1", ""),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "left with status 0"),
        ("import os; os.write(3, b'{}'); os._exit(0)", "left with status 0"),
        ("import os, signal; os.kill(os.getppid(), 9)", "os.kill is not allowed"),
        ("import ctypes; ctypes.string_at(0)", "PermissionError"),
        ("while True: pass", "timed out"),
        ("import time; time.sleep(60)", "timed out"),
        ("[0] * (1 << 40)", "MemoryError"),
        ("rows = []\nwhile True: rows.append(bytearray(1 << 24))", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "socket.getaddrinfo is not allowed"),
        ("import socket; socket.socket()", "socket.__new__ is not allowed"),
        ("import os; os.fork()", "os.fork is not allowed"),
        ("import os; os.system('true')", "os.system is not allowed"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import os; os.execv('/bin/true', ['true'])", "os.exec is not allowed"),
        ("open('/tmp/../tmp/cl_runner_was_here', 'w')", "PermissionError"),
        ("import os; os.symlink('/', 'root'); open('root/cl_runner_was_here', 'a')", "PermissionError"),
        ("import os; os.remove('/etc/hostname')", "PermissionError"),
        ("with open('own', 'w') as f: f.write('x')\nassert open('own').read() == 'x'\nimport os; os.remove('own')", ""),
        ("with open('own', 'wb') as f:\n for _ in range(64): f.write(bytes(1 << 20))", "OSError: [Errno 27]"),
        ("print('x' * 10**7)\nimport sys; sys.stderr.write('y' * 10**7)", ""),
        ("input()", "EOFError"),
        ("import os; assert set(os.environ) <= {'LC_CTYPE'}, os.environ", ""),
        ("import torch", "ModuleNotFoundError"),
        (
            "assert __name__ != '__main__'\nimport math, random, re, collections, itertools, hashlib, typing, datetime",
            "",
        ),
    ],
)
def test_what_the_sandbox_lets_through(text: str, reason: str) -> None:
    slow = reason == "timed out"
    verdict = execute(text, 0.3 if slow else 20.0, MEMORY)
    assert verdict.passed == (not reason), verdict
    assert reason in verdict.reason
    assert verdict.kept.startswith("network ")
    assert not Path("/tmp/cl_runner_was_here").exists()


def test_a_program_that_ignores_its_alarm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "STARTING", 1.0)
    program = "import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(60)"
    assert execute(program, 0.2, MEMORY).reason == "timed out"


def without_hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Switch the interpreter's hook off; what is left is the kernel."""
    source = sandbox.CONFINED.read_text(encoding="utf-8")
    assert source.count("    guard(folder)\n") == 1
    confined = tmp_path / "confined.py"
    confined.write_text(source.replace("    guard(folder)\n", ""), encoding="utf-8")
    monkeypatch.setattr(sandbox, "CONFINED", confined)
    return execute("", 20.0, MEMORY).kept


def test_the_kernel_alone_keeps_a_program_from_files_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if "files landlock" not in without_hook(monkeypatch, tmp_path):
        pytest.skip("this kernel has no Landlock")
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for change in ("open({!r}, 'w')", "os.remove({!r})", "os.truncate({!r}, 0)", "os.rename({!r}, 'mine')"):
        verdict = execute("import os\n" + change.format(str(victim)), 20.0, MEMORY)
        assert "PermissionError" in verdict.reason or "Invalid cross-device link" in verdict.reason
    assert victim.read_text() == "whole"
    assert execute(
        "import os\nos.mkdir('a')\nopen('a/b', 'w')\nos.rename('a/b', 'c')\nos.remove('c')", 20.0, MEMORY
    ).passed


def test_the_kernel_alone_keeps_a_program_from_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if "network namespace" not in without_hook(monkeypatch, tmp_path):
        pytest.skip("this system permits no network namespaces")
    devices = execute(
        "rows = open('/proc/net/dev').readlines()[2:]\nassert [r.split(':')[0].strip() for r in rows] == ['lo']",
        20.0,
        MEMORY,
    )
    assert devices.passed, devices
    away = execute(
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))", 20.0, MEMORY
    )
    assert "OSError: [Errno 101]" in away.reason


# lm-eval ----------------------------------------------------------------------------------------------------


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


@torch.no_grad()
def likelihood(learner: Learner, context: str, continuation: str, about: str | None = None) -> float:
    """log p(continuation | context), without an end token; the method is told that the text is `about`."""
    tokenizer = learner.family.tokenizer
    target = torch.tensor([tokenizer(continuation, add_special_tokens=False)["input_ids"]])
    given = tokenizer(context, return_tensors="pt")["input_ids"]
    batch = {"input_ids": given, "attention_mask": torch.ones_like(given)}
    batch |= learner.method.for_texts(learner, [context if about is None else about])
    given = learner.method.before_forward(learner, batch)["input_ids"]
    if learner.family.kind == "seq2seq":
        logits = learner.model(input_ids=given, labels=target).logits[0].log_softmax(-1)
        return float(logits.gather(1, target[0][:, None]).sum())
    logits = learner.model(torch.cat([given, target], 1)).logits[0, given.shape[1] - 1 : -1].log_softmax(-1)
    return float(logits.gather(1, target[0][:, None]).sum())


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
    seq2seq = learner.family.kind == "seq2seq"
    with at_rest(learner.model):
        tokenizer = learner.family.tokenizer
        live = LiveModel(learner, backend="seq2seq" if seq2seq else "causal", tokenizer=tokenizer, batch_size=3)
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asked)]
        scores = [score for score, _ in live.loglikelihood(requests, disable_tqdm=True)]
        expected = [likelihood(learner, *pair) for pair in asked]
        wrong = likelihood(learner, *asked[0], about=asked[1][0])
        learner.method.methods["slm"].values.stop()  # type: ignore[attr-defined]
        plain = Learner(learner.model, learner.family, [], 0, torch.device("cpu"))
        untouched = [likelihood(plain, *pair) for pair in asked]

        stop = {"max_gen_toks": 5, "do_sample": False, "until": ["\n\n"]}
        contexts = ["Once upon", "A much longer context, which comes first:", "x"]
        requests = [Instance("generate_until", {}, (text, dict(stop)), i) for i, text in enumerate(contexts)]
        written = live.generate_until(requests, disable_tqdm=True)
        ids = [tokenizer(text, return_tensors="pt") for text in contexts]
        answers = [
            learner.answer({**row, **learner.method.for_texts(learner, [text])}, Answering(5, raw=True))[0].text
            for row, text in zip(ids, contexts, strict=True)
        ]
    assert scores == [pytest.approx(score, abs=1e-4) for score in expected]
    assert abs(expected[0] - wrong) > 5e-4
    assert sum(abs(a - b) for a, b in zip(expected, untouched, strict=True)) > 0.02
    # The harness lets an encoder-decoder write more, by the length of the prompt.
    assert all(whole.startswith(answer) for whole, answer in zip(written, answers, strict=True))
    assert written == answers or seq2seq
    assert all(answers) or value != "jare"


def retrieving(tmp_path: Path, *overrides: str) -> Learner:
    """A learner after two tasks of slm; what a text retrieves is drawn by its content, and large enough to be seen."""
    config = tiny_config(tmp_path, "method=slm", "training.max_steps=1", *tiny_encoder(), *overrides)
    learner, method, tasks = tiny_learner(config)
    for task in tasks[:2]:
        learn(learner, method, task, config)
    for name, parameter in learner.parameters().items():
        if name.startswith("slm."):
            parameter.data.copy_(drawn(name, *parameter.shape))
    method.methods["slm"].units = None  # of the keys before  # type: ignore[attr-defined]
    method.methods["slm"].queries = lambda texts: torch.stack([drawn(text, 48) for text in texts])  # type: ignore[attr-defined]
    return learner


def drawn(name: str, *shape: int) -> torch.Tensor:
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


# In a run ---------------------------------------------------------------------------------------------------


def test_a_run_measures_before_the_first_and_after_every_task(tmp_path: Path, problems: Path) -> None:
    overrides = [
        "backbone=tiny_llama",
        "method=seq_ft",
        "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}]",
        "probe=[held_text,humaneval]",
        "probe.held_text.texts=4",
        "probe.held_text.tokens=8",
        f"probe.humaneval.path={problems}",
        "probe.humaneval.max_new_tokens=4",
        "training.base.learning_rate=0.01",
        "training.max_steps=3",
        "task_order.base.test=4",
        "task_order.incremental.test=2",
    ]
    assert run_command(tiny(tmp_path, *overrides)) == 0
    (table,) = tmp_path.rglob("ability.csv")
    header, *rows = [line.split(",") for line in table.read_text().splitlines()]
    assert header == ["after", "held_text/loss", "held_text/perplexity", "humaneval/pass@1"]
    assert [row[0] for row in rows] == ["start", "base", "kettles"]
    assert len({row[1] for row in rows}) == 3
    assert len((table.parent / "probes" / "held_text" / "text.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert sorted(p.stem for p in (table.parent / "probes" / "humaneval").iterdir()) == ["base", "kettles", "start"]


def test_a_missing_file_stops_a_run_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["backbone=tiny_llama", "method=seq_ft", "probe=humaneval", "probe.humaneval.path=HumanEval.jsonl"]
    assert run_command(tiny(tmp_path, *overrides)) == 2
    assert "Get HumanEval.jsonl.gz of https://github.com/openai/human-eval" in capsys.readouterr().err
