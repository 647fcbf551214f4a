"""What the plan says of language models, against real passes and by hand."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import TASKS, setting
from transformers import PreTrainedModel

from cl_runner.build import build_family
from cl_runner.compose import compose
from cl_runner.data.example import Example
from cl_runner.families.base import Answering, Family
from cl_runner.families.seq2seq import Seq2Seq
from cl_runner.needs import Needs, ProbePass
from cl_runner.planning.alike import Cost
from cl_runner.planning.imitation import Imitation, Ledger
from cl_runner.planning.passes import loss_sum
from cl_runner.planning.planner import Planner
from cl_runner.planning.seconds import work
from cl_runner.planning.setting import Answers, Setting
from cl_runner.planning.speed import Speed

PROMPT, ANSWER, GENERATED, EXAMPLES = 60, 20, 12, 4


@functools.cache
def language_model(name: str) -> tuple[Family, PreTrainedModel]:
    """A tiny one with its family."""
    backbone = compose([f"backbone={name}", "method=seq_ft"]).config.backbone
    family = build_family(backbone, [])
    model, _ = family.build(0)
    return family, model


def writing(name: str, **changes: Any) -> Setting:
    """The setting of a run with it, in which all examples are equally long."""
    answers = Answers(ANSWER, ANSWER, PROMPT + ANSWER, PROMPT + ANSWER, GENERATED, GENERATED)
    family = language_model(name)[0]
    return setting(
        family="seq2seq" if isinstance(family, Seq2Seq) else "causal",
        answers=dataclasses.replace(answers, **changes),
        max_length=PROMPT,
        mean_length=PROMPT,
        micro_batch={"base": EXAMPLES, "incremental": EXAMPLES},
        evaluation_batch=EXAMPLES,
        tasks=tuple(dataclasses.replace(task, largest_part=EXAMPLES) for task in TASKS),
    )


def prompts(name: str) -> list[Example]:
    """All but one have the greatest length, which a byte and the special tokens make up: there is padding."""
    family = language_model(name)[0]
    examples = [Example("x" * (PROMPT - 1 - shorter), "y" * (ANSWER - 1), "d") for shorter in (0, 0, 0, 3)]
    assert family.lengths(examples, answers=False) == [PROMPT] * 3 + [PROMPT - 3]
    assert family.targets(examples) == [ANSWER] * 4
    return examples


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_language_models_train_as_imitated(name: str) -> None:
    family, model = language_model(name)
    planner, s = Planner(family.skeleton, 0), writing(name)
    model.requires_grad_(True).train()
    with Ledger() as ledger:
        output = family.forward(model, family.collate(prompts(name)))  # a step holds it until the end
        output.loss.backward()
    model.zero_grad()
    real, planned = ledger.cost(), planner.prices.train(s, s.tasks[0])
    assert planned.peak_bytes == pytest.approx(real.peak_bytes, rel=0.02)
    assert planned.flops == real.flops
    with Ledger() as ledger:
        family.loss_sum(model, family.collate(prompts(name)), "mean").backward()
    model.zero_grad()
    imitated = Imitation(family.skeleton(), torch.float32, "cpu")
    planned = imitated.cost(lambda model: loss_sum(model.requires_grad_(True).train(), s, EXAMPLES).backward())
    assert planned.peak_bytes == pytest.approx(ledger.cost().peak_bytes, rel=0.02)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_language_models_answer_as_imitated(name: str) -> None:
    family, model = language_model(name)
    model.eval()
    batch = family.collate(prompts(name), answers=False)
    planner = Planner(family.skeleton, 0)
    with torch.no_grad(), Ledger() as ledger:
        family.answer(model, batch, Answering(GENERATED))
    real = ledger.cost()
    prompt, _, token = planner.prices.evaluate(writing(name))["generate"]
    # Of these weights some answer has no early end, so that there are as many passes as there may be.
    assert prompt.peak_bytes == pytest.approx(real.peak_bytes, rel=0.03)
    assert prompt.flops + (GENERATED - 1) * token.flops == pytest.approx(real.flops, rel=0.03)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_labels_are_weighed_as_imitated(name: str) -> None:
    family, model = language_model(name)
    model.eval()
    labels = tuple(letter * (ANSWER - 1) for letter in "abc")
    with torch.no_grad(), Ledger() as ledger:
        family.answer(model, family.collate(prompts(name), answers=False), Answering(GENERATED, labels=labels))
    real = ledger.cost()
    s = writing(name, generated=0, mean_generated=0, labels=3, label_length=ANSWER, by_label=300)
    ways = Planner(family.skeleton, 0).prices.evaluate(s)
    assert set(ways) == {"labels"}
    assert max(cost.peak_bytes for cost in ways["labels"]) == pytest.approx(real.peak_bytes, rel=0.03)
    assert sum(cost.flops for cost in ways["labels"]) == pytest.approx(real.flops, rel=0.15)


def test_memory_of_a_cache_by_hand() -> None:
    """Of long answers to short prompts what counts is the cache: keys and values of every head and layer."""
    family, _ = language_model("tiny_llama")
    s = dataclasses.replace(writing("tiny_llama", generated=400, mean_generated=400), max_length=4, mean_length=4)
    prompt, _, token = Planner(family.skeleton, 0).prices.evaluate(s)["generate"]
    of_a_token = 2 * 2 * 2 * 8 * 4  # keys and values, 2 layers, 2 heads of their own, 8 wide, fp32
    cache = EXAMPLES * (4 + 400 - 1) * of_a_token
    largest = cache // 4  # the keys or values of one layer, which are copied to add a token
    assert cache + largest < token.peak_bytes < 1.4 * (cache + largest)
    assert prompt.peak_bytes < token.peak_bytes


def test_seconds_of_an_answer() -> None:
    family, _ = language_model("tiny_llama")
    planner, speed = Planner(family.skeleton, 0), Speed(1e9, 1e9, 1e-5)
    s = writing("tiny_llama")
    prompt, _, token = planner.prices.evaluate(s)["generate"]
    weights = 4 * planner.architecture.parameters(s) / 1e9
    of_a_batch = speed.seconds(prompt) + GENERATED * (speed.seconds(token) + weights)
    assert planner.seconds(s, speed)["evaluate"] == pytest.approx(300 / EXAMPLES * of_a_batch)
    half = writing("tiny_llama", mean_generated=GENERATED / 2, labels=3, label_length=ANSWER, by_label=150)
    labels = sum(speed.seconds(cost) for cost in planner.prices.evaluate(half)["labels"])
    expected = 150 / EXAMPLES * (of_a_batch + labels)
    assert planner.seconds(half, speed)["evaluate"] == pytest.approx(expected)


def test_seconds_of_probes() -> None:
    """A text is read with a logit for every token, prompts are completed, examples are read as they are."""
    family, _ = language_model("tiny_llama")
    planner, speed = Planner(family.skeleton, 0), Speed(1e9, 1e9, 1e-5)
    read = ProbePass("held text", 10, PROMPT, 0, EXAMPLES)
    completed = ProbePass("write completions", 6, PROMPT, GENERATED, EXAMPLES)
    loss = ProbePass("task loss", 5, None, 0, EXAMPLES)
    once = ProbePass("write text", 8, 1, ANSWER, EXAMPLES, once=True)
    s = writing("tiny_llama")
    probing = dataclasses.replace(s, probes=(read, completed, loss, once))
    assert "probe" not in planner.seconds(s, speed)
    prompt, _, token = planner.prices.evaluate(s)["generate"]
    weights = 4 * planner.architecture.parameters(s) / 1e9
    of_completed = speed.seconds(prompt) + GENERATED * (speed.seconds(token) + weights)
    (of_loss,) = planner.prices.probe(s, loss)
    (of_read,) = planner.prices.probe(s, read)
    assert of_loss.flops == pytest.approx(planner.prices.forward_flops(s) * EXAMPLES * (PROMPT + ANSWER))
    assert of_read.peak_bytes > of_loss.peak_bytes  # logits of all tokens, not of the answers alone
    first, _, more = planner.prices.probe(s, once)
    of_once = speed.seconds(first) + ANSWER * (speed.seconds(more) + weights)
    each = 10 * speed.seconds(of_read) + 6 * of_completed + 5 * speed.seconds(of_loss)
    assert planner.seconds(probing, speed)["probe"] == pytest.approx((3 * each + 8 * of_once) / EXAMPLES)
    assert work(probing)["probe"] == (
        3 * 21 + 8,
        pytest.approx(3 * (10 * PROMPT + 6 * (PROMPT + GENERATED) + 5 * (PROMPT + ANSWER)) + 8 * (1 + ANSWER)),
    )
    assert planner.memory(probing)["probe"] > planner.memory(s)["load"]


def test_prices_are_shared_between_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, _ = language_model("tiny_llama")
    s = writing("tiny_llama")
    plain = Planner(family.skeleton, 0)
    plans = [planner.plan(s, None, "") for planner in (plain, Planner(family.skeleton, 0, tmp_path / "plans"))]
    stored = sorted(tmp_path.rglob("*.json"))
    assert plans[0] == plans[1] and len(stored) == 5  # training of two kinds, importance, answers, a forward pass
    priced = []
    monkeypatch.setattr(
        Imitation, "costs", lambda imitation, stages, *names: priced.append(stages) or [Cost(1, 2, 3, 4)] * 3
    )
    assert Planner(family.skeleton, 0, tmp_path / "plans").plan(s, None, "") == plans[0]
    assert not priced
    longer = dataclasses.replace(s, max_length=PROMPT + 1)
    half = dataclasses.replace(s, dtype=torch.bfloat16)
    listed = dataclasses.replace(s, needs=dataclasses.replace(s.needs, listed={"model.norm.weight": 32}))
    for other in (longer, half, listed):
        Planner(family.skeleton, 0, tmp_path / "plans").prices.train(other, s.tasks[0])
    assert len(priced) == 3
    for path in stored:
        path.write_bytes(path.read_bytes().replace(b"1", b"7"))
    assert Planner(family.skeleton, 0, tmp_path / "plans").plan(s, None, "") != plans[0]
    assert len(priced) == 3 + len(stored)


def test_weights_that_are_never_whole_are_planned_so() -> None:
    """Of a GPU's memory: a part, two blocks and what lies outside of them, in the place of all weights and a part."""
    family, model = language_model("tiny_llama")
    planner = Planner(family.skeleton, 0)
    parts = dataclasses.replace(writing("tiny_llama"), device="cuda", shards=4)
    always = dataclasses.replace(parts, always=True)
    entries = sum(parameter.numel() for parameter in model.parameters())
    block, outside = planner.architecture.blocks(parts)
    spared = 4 * (entries + entries // 4) - 4 * (entries // 4 + 2 * block + outside)
    # Of the sums of squared gradients a part, and in each of as many passes a part that is whole, or a tensor.
    sums = 4 * (entries - entries // 4 - max(entries // 4, *planner.architecture.measured(parts).values()))
    for phase, planned in planner.memory(parts).items():
        more = sums if phase == "importance" else 0
        assert planned - planner.peak(always, phase) == (0 if phase.startswith("train") else spared + more), phase
    assert planner.in_first_process(always) == 4 * entries


def test_a_teacher_gives_outputs_at_the_values_before_the_task() -> None:
    """Which are kept anyway, so that nothing but its outputs is held beside them."""
    family, _ = language_model("tiny_llama")
    planner = Planner(family.skeleton, 0)
    s = writing("tiny_llama")
    later = dataclasses.replace(s.tasks[1], trains="all")
    plain = dataclasses.replace(s, device="cuda", tasks=(s.tasks[0], later), needs=Needs("all", "all"))
    taught = dataclasses.replace(plain, needs=Needs("all", "all", teacher="logits"))
    for phase in ("train base", "evaluate"):
        assert planner.peak(taught, phase) == planner.peak(plain, phase)
    outputs = 4 * EXAMPLES * ANSWER * 259  # of the old weights, for the answers' tokens
    step, without = (planner.prices.train(of, later) for of in (taught, plain))
    assert step.peak_bytes - without.peak_bytes >= outputs
    forward = planner.prices.forward_flops(plain) * EXAMPLES * plain.max_whole
    assert step.flops - without.flops == pytest.approx(forward, rel=0.01)
    more = planner.peak(taught, "train incremental") - planner.peak(plain, "train incremental")
    assert 0 < more <= step.peak_bytes - without.peak_bytes
    kept = dataclasses.replace(plain, needs=Needs("all", "all", teacher="kept"))
    of_kept = planner.prices.train(kept, later)
    assert of_kept.flops == without.flops  # nothing is computed for them
    assert of_kept.peak_bytes - without.peak_bytes >= outputs
