"""The plan of a run: against real passes, a real run, and numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import TINY, run_command
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, PreTrainedModel

from cl_runner.build import build_family
from cl_runner.compose import compose
from cl_runner.data.example import Example
from cl_runner.families.base import Answering, Family
from cl_runner.families.freezing import freeze
from cl_runner.families.seq2seq import Seq2Seq
from cl_runner.planning import memory as machine
from cl_runner.planning.imitation import Cost, Imitation, Ledger, checkpointing
from cl_runner.planning.memory import advice, is_out_of_memory, smallest_change
from cl_runner.planning.numbers import (
    Lengths,
    counts_of,
    local_family,
    local_tasks,
    setting_of,
    skeleton,
    text_lengths,
)
from cl_runner.planning.passes import loss_sum, outputs
from cl_runner.planning.past import past_seconds
from cl_runner.planning.planner import Planner
from cl_runner.planning.setting import Answers, Memory, Setting, TaskNumbers
from cl_runner.planning.speed import Speed, calibrate
from cl_runner.sparse.layers import CompactValues
from cl_runner.tracking.environment import describe_environment

CONFIGURATIONS = {
    "bert": BertConfig(
        num_labels=3,
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
    ),
    "llama": LlamaConfig(
        num_labels=3,
        pad_token_id=0,
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
    ),
}


def model_of(kind: str) -> PreTrainedModel:
    """A small model with random weights."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(CONFIGURATIONS[kind])
    return model


def meta(kind: str) -> PreTrainedModel:
    """The same without weights."""
    with torch.device("meta"):
        return model_of(kind)


TASKS = (TaskNumbers("a", "base", 64, 16, "all", 0), TaskNumbers("b", "incremental", 32, 8, "selected", 64))


def setting(**changes: Any) -> Setting:
    """Two tasks on a CPU: the first trains all weights, the second selected ones."""
    plain = Setting(
        device="cpu",
        precision="fp32",
        dtype=torch.float32,
        gradient_checkpointing=False,
        max_length=32,
        mean_length=32,
        batch_size={"base": 8, "incremental": 8},
        micro_batch={"base": 8, "incremental": 8},
        importance_batch=4,
        importance_micro_batch=1,
        accumulate="device",
        passes=1,
        evaluation_batch=8,
        evaluated=300,
        tasks=TASKS,
        memory=Memory(fraction=0.01, candidates={"classifier.weight": 1000}),
        restart=False,
        snapshots="all",
        cache_bytes=0,
    )
    return dataclasses.replace(plain, **changes)


# What a pass costs --------------------------------------------------------------------------------------------------


def test_ledger_counts_what_lives_at_once() -> None:
    with Ledger() as ledger:
        a = torch.zeros(100)  # 400 bytes
        b = a + 1  # 800
        del a  # 400
        c = b.view(10, 10)[2:]  # a view takes nothing
        d = c @ torch.ones(10, 5)  # 200 for the ones, 160 for the product
        b.add_(1)
        del b, c  # the storage lives until its last view goes
    assert ledger.peak_bytes == 800
    assert ledger.live_bytes == d.numel() * 4 == 160
    assert ledger.flops == 2 * 8 * 10 * 5


def backward(model: PreTrainedModel) -> None:
    """A training pass over a batch with padding."""
    model.requires_grad_(True).train()
    outputs(model, setting(), 8).loss.backward()


def forward(model: PreTrainedModel) -> None:
    """An evaluation pass."""
    model.eval()
    with torch.no_grad():
        outputs(model, setting(), 8)


def checkpointed(model: PreTrainedModel) -> None:
    """As `backward`, with activations computed twice."""
    with checkpointing(model, True):
        backward(model)


def autocast(model: PreTrainedModel) -> None:
    """As `backward`, in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        backward(model)


@pytest.mark.parametrize("work", [backward, forward, checkpointed, autocast])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_imitation_lives_like_the_real_model(kind: str, work: Callable[[PreTrainedModel], None]) -> None:
    real = model_of(kind)
    with Ledger() as ledger:
        work(real)
    imitated = Imitation(meta(kind), torch.float32, "cpu").cost(work)
    assert imitated.peak_bytes == ledger.peak_bytes
    assert imitated.flops == ledger.flops
    assert imitated.peak_bytes > 100_000


def test_checkpointing_saves_memory_and_costs_operations() -> None:
    imitation = Imitation(meta("llama"), torch.float32, "cpu")
    plain, saving = imitation.cost(backward), imitation.cost(checkpointed)
    assert saving.peak_bytes < 0.8 * plain.peak_bytes
    assert saving.flops > 1.2 * plain.flops


def test_a_gpu_has_no_table_of_attention_even_with_dropout() -> None:
    def long(model: PreTrainedModel) -> None:
        model.requires_grad_(True).train()
        outputs(model, setting(max_length=512), 2).loss.backward()

    peaks = {device: Imitation(meta("bert"), torch.float32, device).cost(long).peak_bytes for device in ("cpu", "cuda")}
    table = 4 * 2 * 4 * 512 * 512  # bytes of [examples, heads, positions, positions] in fp32
    assert peaks["cpu"] - peaks["cuda"] > 2 * table
    assert functional.scaled_dot_product_attention.__module__ != "cl_runner.planning.imitation"


def test_flops_of_a_layer_and_of_attention() -> None:
    with Ledger() as ledger:
        functional.scaled_dot_product_attention(*(torch.randn(2, 3, 5, 8) for _ in range(3)))
    assert ledger.flops == 2 * (2 * 2 * 3 * 5 * 5 * 8)


@pytest.mark.parametrize("clustered", [True, False])
def test_selected_training_lives_like_the_real_layers(clustered: bool) -> None:
    """A third of a percent of every matrix: real sparse layers against the planner's estimate of what they keep."""
    real = model_of("bert").train()
    generator = torch.Generator().manual_seed(0)
    indices = {}
    for name, weight in real.named_parameters():
        if weight.dim() == 2 and "embeddings" not in name:
            count = max(1, weight.numel() // 300)
            places = torch.randperm(weight.numel(), generator=generator)
            if clustered:  # in a tenth of the columns
                places = places[places % weight.shape[1] < max(1, weight.shape[1] // 10)]
            indices[name] = places[:count].sort().values
    CompactValues(real, indices)
    with Ledger() as ledger:
        outputs(real, setting(), 8).loss.backward()
    sizes = {name: p.numel() for name, p in real.named_parameters()}
    memory = Memory(fraction=1 / 300, candidates={name: sizes[name] for name in indices}, clustered=clustered)
    planner = Planner(lambda: meta("bert"), 0)
    planned = planner._train(setting(memory=memory), "incremental", "selected", False).peak_bytes
    assert planned == pytest.approx(ledger.peak_bytes, rel=0.1)


# Language models ----------------------------------------------------------------------------------------------------

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
        batch_size={"base": EXAMPLES, "incremental": EXAMPLES},
        micro_batch={"base": EXAMPLES, "incremental": EXAMPLES},
        evaluation_batch=EXAMPLES,
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
    real, planned = ledger.cost(), planner._train(s, "base", "all", False)
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
    prompt, _, token = planner._evaluate(writing(name))["generate"]
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
    ways = Planner(family.skeleton, 0)._evaluate(s)
    assert set(ways) == {"labels"}
    assert max(cost.peak_bytes for cost in ways["labels"]) == pytest.approx(real.peak_bytes, rel=0.03)
    assert sum(cost.flops for cost in ways["labels"]) == pytest.approx(real.flops, rel=0.15)


def test_memory_of_a_cache_by_hand() -> None:
    """Of long answers to short prompts what counts is the cache: keys and values of every head and layer."""
    family, _ = language_model("tiny_llama")
    s = dataclasses.replace(writing("tiny_llama", generated=400, mean_generated=400), max_length=4, mean_length=4)
    prompt, _, token = Planner(family.skeleton, 0)._evaluate(s)["generate"]
    of_a_token = 2 * 2 * 2 * 8 * 4  # keys and values, 2 layers, 2 heads of their own, 8 wide, fp32
    cache = EXAMPLES * (4 + 400 - 1) * of_a_token
    largest = cache // 4  # the keys or values of one layer, which are copied to add a token
    assert cache + largest < token.peak_bytes < 1.4 * (cache + largest)
    assert prompt.peak_bytes < token.peak_bytes


def test_seconds_of_an_answer() -> None:
    family, _ = language_model("tiny_llama")
    planner, speed = Planner(family.skeleton, 0), Speed(1e9, 1e9, 1e-5)
    s = writing("tiny_llama")
    prompt, _, token = planner._evaluate(s)["generate"]
    weights = 4 * planner.parameters(s) / 1e9
    of_a_batch = speed.seconds(prompt) + GENERATED * (speed.seconds(token) + weights)
    assert planner.seconds(s, speed)["evaluate"] == pytest.approx(300 / EXAMPLES * of_a_batch)
    half = writing("tiny_llama", mean_generated=GENERATED / 2, labels=3, label_length=ANSWER, by_label=150)
    labels = sum(speed.seconds(cost) for cost in planner._evaluate(half)["labels"])
    expected = 150 / EXAMPLES * (of_a_batch + labels)
    assert planner.seconds(half, speed)["evaluate"] == pytest.approx(expected)


def test_a_teacher_holds_old_weights_and_outputs() -> None:
    family, model = language_model("tiny_llama")
    planner = Planner(family.skeleton, 0)
    plain = dataclasses.replace(
        writing("tiny_llama"),
        device="cuda",
        tasks=(TASKS[0], dataclasses.replace(TASKS[1], trains="all")),
        memory=Memory(),
    )
    taught = dataclasses.replace(plain, memory=Memory(teacher="logits"))
    weights = sum(p.numel() for p in model.parameters())
    assert planner.peak(taught, "train base") == planner.peak(plain, "train base")
    assert planner.peak(taught, "evaluate") - planner.peak(plain, "evaluate") == 4 * weights
    outputs = 4 * EXAMPLES * ANSWER * 259  # of the old weights, for the answers' tokens
    step = planner._train(taught, "incremental", "all", True).peak_bytes
    assert step - planner._train(plain, "incremental", "all", True).peak_bytes >= outputs
    assert planner.peak(taught, "train incremental") >= planner.peak(plain, "train incremental") + 4 * weights + outputs


def test_whole_tensors_of_a_list_train() -> None:
    names = {"bert.encoder.layer.0.output.LayerNorm.weight": 64, "bert.encoder.layer.0.output.LayerNorm.bias": 64}
    planner = Planner(lambda: meta("bert"), 0)
    s = setting(device="cuda", memory=Memory(listed=names), tasks=(dataclasses.replace(TASKS[0], trains="listed"),))
    assert planner.trained(s, s.tasks[0]) == 128
    step = planner._train(s, "base", "listed", False)
    assert planner.peak(s, "train base") == planner.peak(s, "load") + 128 * 12 + step.peak_bytes
    assert step.peak_bytes < planner._train(s, "base", "all", False).peak_bytes
    assert planner.disk(s)["snapshots"] == 4 * 128
    everything = Planner(lambda: meta("bert"), 0)._train(s, "base", "all", False)
    assert step.flops < 0.7 * everything.flops


def test_frozen_tensors_do_not_train() -> None:
    def skeleton() -> PreTrainedModel:
        model = meta("bert")
        freeze(model, ["bert.embeddings.*"])
        return model

    planner, plain = Planner(skeleton, 0), Planner(lambda: meta("bert"), 0)
    s = setting(device="cuda", tasks=TASKS[:1])
    embeddings = (300 + 512 + 2 + 2) * 64  # words, positions, types, and a norm
    assert plain.trained(s, TASKS[0]) - planner.trained(s, TASKS[0]) == embeddings
    assert plain.peak(s, "importance") - planner.peak(s, "importance") >= 4 * embeddings
    assert planner._train(s, "base", "all", False).peak_bytes < plain._train(s, "base", "all", False).peak_bytes


def test_flops_of_a_token_by_hand() -> None:
    planner, s = Planner(lambda: meta("bert"), 0), setting()
    layer = 2 * (4 * 64**2 + 2 * 64 * 256) + 4 * 64 * 32  # products with weights, and with 32 other positions
    pooled = 2 * (64 * 64 + 64 * 3) / 32  # one position of 32
    forward = 2 * layer + pooled
    assert planner.flops_per_token(s, TASKS[0]) == pytest.approx(3 * forward)
    assert planner.flops_per_token(s, TASKS[1]) == pytest.approx(2 * forward)
    assert planner.flops_per_token(s, dataclasses.replace(TASKS[1], trains="nothing")) == 0
    saving = dataclasses.replace(s, gradient_checkpointing=True)
    assert planner.flops_per_token(saving, TASKS[0]) == pytest.approx(3 * forward)
    # The backward pass of fused attention computes its scores once more.
    real = planner._train(s, "base", "all", False).flops / (8 * 32)
    assert real == pytest.approx(3 * forward, rel=0.05)


# Sums ---------------------------------------------------------------------------------------------------------------


def test_memory_of_phases_by_hand() -> None:
    planner = Planner(lambda: meta("bert"), 10_000)
    weights = sum(p.numel() for p in meta("bert").parameters())
    largest = 512 * 64  # the table of positions
    s = setting(device="cuda", memory=Memory(fraction=0.01, candidates={"x": 5000}, sums=2))
    peaks = planner.memory(s)
    assert peaks["load"] == 10_000 + 4 * weights
    assert peaks["evaluate"] == peaks["load"] + planner._evaluate(s)["forward"][0].peak_bytes
    # Both sums, and the pass.
    assert peaks["importance"] == peaks["load"] + 8 * weights + planner._importance(s).peak_bytes
    # The weights before the task, two moments, and gradients with activations; or a checkpoint of 12 bytes.
    step = planner._train(s, "base", "all", False).peak_bytes
    assert step > 4 * weights
    assert peaks["train base"] == peaks["load"] + 12 * weights + max(step, 12 * weights)
    # 50 values of 4, positions of 8, old values of 4, moments of 8, gradients of 4 bytes.
    step = planner._train(s, "incremental", "selected", False).peak_bytes
    assert peaks["train incremental"] == peaks["load"] + 50 * 28 + step
    assert planner.memory(dataclasses.replace(s, restart=True))["load"] == 10_000 + 8 * weights
    # In groups, the sums of one group lie on the device; in main memory, those of one tensor.
    for changes, held in (({"passes": 2}, 4 * weights), ({"accumulate": "cpu"}, 8 * largest)):
        other = planner.memory(dataclasses.replace(s, **changes))["importance"]
        assert peaks["importance"] - other == pytest.approx(8 * weights - held, abs=8)


def test_half_precision_trains_in_full() -> None:
    """fp32 copies and gradients beside bf16 weights."""
    planner = Planner(lambda: meta("bert"), 0)
    weights = sum(p.numel() for p in meta("bert").parameters())
    s = setting(device="cuda", dtype=torch.bfloat16, micro_batch={"base": 1, "incremental": 1}, max_length=4)
    # bf16 weights and their old values 2 + 2, fp32 copies 4, moments 8, and a checkpoint of 12 above gradients of 4.
    assert planner.peak(s, "train base") == 28 * weights
    assert planner._train(s, "base", "all", False).peak_bytes >= 4 * weights


def test_smaller_parts_of_a_batch_take_less() -> None:
    planner = Planner(lambda: meta("bert"), 0)
    settings = [setting(micro_batch={"base": m, "incremental": m}) for m in (8, 4, 1)]
    parts = [planner._train(s, "base", "all", False).peak_bytes for s in settings]
    assert parts[0] > parts[1] > parts[2]


def test_what_methods_hold_counts_from_the_second_task_on() -> None:
    planner = Planner(lambda: meta("bert"), 0)
    plain = setting(device="cuda")
    holding = dataclasses.replace(plain, memory=dataclasses.replace(plain.memory, entry_bytes=8, example_bytes=12))
    before, after = planner.memory(plain), planner.memory(holding)
    trained = planner.trained(plain, TASKS[1])
    assert trained == 10
    assert after["train base"] == before["train base"]
    held = 8 * trained + 12 * 32
    assert after["train incremental"] - before["train incremental"] == held
    assert after["evaluate"] - before["evaluate"] == held


def test_disk_and_counts_by_hand() -> None:
    planner = Planner(lambda: meta("bert"), 0)
    weights = sum(p.numel() for p in meta("bert").parameters())
    s = setting()
    disk = planner.disk(s)
    assert disk["snapshots"] == 4 * weights + 10 * 6  # a gap of 2 and a word of 4 bytes for each of 10 entries
    assert disk["predictions"] == 100 * 100 * 3
    assert disk["state while running"] == 2 * 12 * weights
    assert planner.disk(dataclasses.replace(s, snapshots="none"))["snapshots"] == 0
    assert planner.work(s)["train"] == (16 * 8 + 8 * 8, 192 * 32)
    assert planner.work(s)["importance"] == (64, 64 * 32)
    assert planner.work(s)["evaluate"] == (300, 300 * 32)


def test_time_is_products_traffic_and_starts() -> None:
    speed = Speed(100.0, 10.0, 0.5)
    assert speed.seconds(Cost(0, 400, 20, 3)) == 400 / 100 + 20 / 10 + 3 * 0.5
    assert speed.seconds(Cost(0, 400, 20, 3), share=0.5) == 2 + 1 + 1.5
    planner = Planner(lambda: meta("bert"), 0)
    s = setting()
    found = planner.seconds(s, speed)
    assert found["evaluate"] == pytest.approx(speed.seconds(planner._evaluate(s)["forward"][0]) * 300 / 8)
    assert planner.seconds(dataclasses.replace(s, passes=2), speed)["importance"] == 2 * found["importance"]
    measured = calibrate(32, 16, torch.float32, torch.device("cpu"))
    assert measured.flops_per_second > 1e6 and measured.bytes_per_second > 1e6
    assert 1e-7 < measured.seconds_per_operation < 1e-2


# From a configuration -----------------------------------------------------------------------------------------------


def numbers_of(*overrides: str) -> Setting:
    """The numbers of a tiny run."""
    config = compose([*TINY, *overrides]).config
    return setting_of(config, counts_of(config, None), 3, skeleton(config.backbone, 3), "cpu", None)


@pytest.mark.parametrize(
    ("method", "trains", "measured"),
    [
        ("seq_ft", ["all", "all", "all"], [0, 0, 0]),
        ("frozen", ["all", "nothing", "nothing"], [0, 0, 0]),
        ("ewc", ["all", "all", "all"], [0, 48, 72]),
        ("pe", ["all", "selected", "selected"], [0, 48, 72]),
        ("pe_rand", ["all", "selected", "selected"], [0, 48, 72]),  # its EWC measures
        ("piece_s", ["selected", "selected", "selected"], [48, 24, 24]),
        ("lwf", ["all", "all", "all"], [0, 0, 0]),
        ("layer_norm", ["listed", "listed", "listed"], [0, 0, 0]),
        ("slm", ["retrieved", "retrieved", "retrieved"], [0, 0, 0]),
    ],
)
def test_what_trains_and_what_is_measured(method: str, trains: list[str], measured: list[int]) -> None:
    s = numbers_of(f"method={method}")
    assert [task.trains for task in s.tasks] == trains
    assert [task.measured for task in s.tasks] == measured
    assert [task.examples for task in s.tasks] == [48, 24, 24]
    assert [task.steps for task in s.tasks] == [12, 6, 6]


def test_options_reach_the_numbers() -> None:
    s = numbers_of("method=piece_s", "importance.max_examples=30", "training.base.micro_batch=2")
    assert [task.measured for task in s.tasks] == [30, 24, 24]
    assert s.micro_batch == {"base": 2, "incremental": 8}
    assert s.memory.sums == 2 and s.memory.clustered and s.per_example
    assert not any("embeddings.word" in name for name in s.memory.candidates)
    rounded = numbers_of("method=piece_s", "method.piece.compat=[bf16_accumulation]")
    assert not rounded.per_example
    joint = numbers_of("method=seq_ft", "task_order=[reviews,joint]")
    assert [task.examples for task in joint.tasks] == [48, 72, 96]
    alone = numbers_of("method=pe", "task_order=[reviews,single_task]")
    assert {task.trains for task in alone.tasks} == {"all"} and alone.restart


def test_numbers_of_a_language_model() -> None:
    config = compose([*TINY, "backbone=tiny_llama", "method=lwf", "task.reviews.max_new_tokens=5"]).config
    model = skeleton(config.backbone, 0)
    counts = [("base", 48, 20), ("kettles", 24, 10), ("software", 24, 10)]
    unknown = setting_of(config, counts, 0, model, "cpu", None)
    assert unknown.family == "causal" and unknown.max_length == 256 and unknown.max_whole == 256 + 64
    assert unknown.memory.teacher == "logits" and unknown.memory.example_bytes == 0
    assert unknown.evaluated == 4 * 40
    lengths = Lengths(prompts=[10, 20, 30], answers=[3, 5], whole=[14, 26])
    s = setting_of(config, counts, 0, model, "cpu", lengths)
    assert (s.max_length, s.mean_length, s.max_whole, s.mean_whole) == (30, 20, 26, 26)
    assert s.answers == Answers(5, 4, 26, 26, 5, 5)
    assert dataclasses.replace(s, max_length=8).max_whole == 13  # a shorter prompt, the same answer
    mean = s.at_mean()
    assert (mean.max_length, mean.max_whole) == (20, 24)
    likely = compose([*TINY, "backbone=tiny_llama", "method=lwf", "evaluation.labels=likelihood"]).config
    s = setting_of(likely, counts, 0, model, "cpu", lengths)
    assert s.answers == Answers(5, 4, 26, 26, 0, 0, labels=3, label_length=len("2 stars") + 1, by_label=160)
    sorted_by_length = compose([*TINY, "backbone=tiny_llama", "method=lwf", "training.group_by_length=true"]).config
    assert setting_of(sorted_by_length, counts, 0, model, "cpu", lengths).mean_whole == 20


def test_lengths_of_prompts_and_answers() -> None:
    config = compose([*TINY, "backbone=tiny_t5", "method=seq_ft"]).config
    tasks = local_tasks(config)
    assert tasks is not None
    lengths = text_lengths(local_family(config.backbone, tasks), tasks)
    assert lengths is not None
    train = [example for task in tasks for example in task.train]
    assert lengths.answers == [len(example.answer) + 1 for example in train]  # bytes and the end token
    assert lengths.whole == [len(example.prompt) + 1 + len(example.answer) + 1 for example in train]
    assert len(lengths.prompts) == len(train) + 40


def test_tasks_seen_so_far_are_evaluated() -> None:
    # After task 1: 20, after task 2: 20 + 10, after task 3: 20 + 10 + 10.
    assert numbers_of("method=seq_ft", "evaluation.tasks=seen").evaluated == 90
    assert numbers_of("method=seq_ft").evaluated == 4 * 40


def test_importance_of_what_may_be_selected() -> None:
    s = numbers_of("method=piece_s")
    assert s.memory.measured == s.memory.candidates
    assert numbers_of("method=pe").memory.measured == numbers_of("method=pe").memory.candidates
    assert numbers_of("method=ewc").memory.measured is None
    planner = Planner(lambda: meta("bert"), 0)
    weights = sum(p.numel() for p in meta("bert").parameters())
    measured = {"bert.encoder.layer.0.output.dense.weight": 64 * 256}
    plain = setting(device="cuda", memory=Memory(mean_bytes=4))
    fewer = dataclasses.replace(plain, memory=Memory(mean_bytes=4, measured=measured), importance_batch=1)
    assert planner._sums(plain) == 4 * weights and planner._sums(fewer) == 4 * 64 * 256
    assert planner.disk(dataclasses.replace(fewer, cache_bytes=10**9))["cached importance"] == 4 * 64 * 256
    small = planner._importance(fewer)
    assert small.peak_bytes < planner._importance(dataclasses.replace(plain, importance_batch=1)).peak_bytes


def test_a_hub_order_without_numbers_says_what_to_type() -> None:
    config = compose([*TINY, "method=seq_ft", "task_order.incremental.train=null"]).config
    with pytest.raises(ValueError, match=r"task_order\.incremental\.train=1000"):
        counts_of(config, None)
    counts = "{train: 5, validation: 0, test: null}"
    tasks = f"task_order.tasks=[{{name: base, domains: [novels]}}, {{name: kettles, counts: {counts}}}]"
    config = compose([*TINY, "method=seq_ft", tasks]).config
    with pytest.raises(ValueError, match=r"task_order\.tasks\[1\]\.counts\.test=1000"):
        counts_of(config, None)


@pytest.mark.parametrize("backbone", ["tiny_bert", "tiny_t5"])
def test_plan_of_a_run_is_in_its_folder(backbone: str, tmp_path: Path) -> None:
    arguments = [*TINY, "method=pe", f"root={tmp_path}", f"backbone={backbone}"]
    assert run_command(arguments) == 0
    (folder,) = {path.parent for path in tmp_path.rglob("summary.json")}
    plan = json.loads((folder / "plan.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert set(plan) == {"phases", "disk_bytes", "trainable", "flops_per_token", "flops_per_second", "basis"}
    assert set(plan["phases"]) == {"load", "importance", "train", "evaluate"}
    assert len(plan["flops_per_token"]) == 3 and plan["flops_per_second"] > 1e6
    assert plan["flops_per_token"][0] == pytest.approx(1.5 * plan["flops_per_token"][1])
    trained = [task["trainable"] for task in summary["tasks_detail"]]
    # Every layer's share is rounded by itself.
    assert plan["trainable"] == [pytest.approx(n, abs=5) for n in trained]
    for phase, planned in plan["phases"].items():
        assert planned["bytes"] / 2**20 == pytest.approx(summary["peak_memory_mib"][phase], rel=0.3)


# The command --------------------------------------------------------------------------------------------------------


def test_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["plan", *TINY, "method=pe"]) == 0
    text = capsys.readouterr().out
    for part in ("load", "importance", "train", "evaluate", "Disk:", "It fits", "a short calibration"):
        assert part in text
    assert run_command(["plan", "--json", *TINY, "method=pe"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["optimizer_steps"] == 12 + 6 + 6
    assert content["phases"]["train"]["examples"] == 2 * (48 + 24 + 24)
    assert content["phases"]["train"]["seconds"] > 0
    assert content["advice"] is None


def test_command_explains_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["plan", "metod=pe"]) == 2
    assert "Nearest: 'method'" in capsys.readouterr().err
    assert run_command(["plan", "--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layers", "parameters"), [(8, 1_881_214_976), pytest.param(32, 6_738_415_616, marks=pytest.mark.slow)]
)
def test_llama_without_network(layers: int, parameters: int, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["method=piece_s", "backbone=llama2_7b", "hardware=gpu", "hardware.gradient_checkpointing=true"]
    overrides += [f"training.{stage}.micro_batch=2" for stage in ("base", "incremental")]
    assert run_command(["plan", "--json", *overrides, f"backbone.architecture.num_hidden_layers={layers}"]) == 0
    plan = json.loads(capsys.readouterr().out)
    # A layer: 4 x 4096^2 + 3 x 4096 x 11008 and two norms; embeddings, the last norm, and the output layer.
    linear = layers * (4 * 4096**2 + 3 * 4096 * 11008)
    assert parameters == linear + layers * 2 * 4096 + 4096 + 2 * 32000 * 4096
    assert plan["parameters"] == parameters
    assert plan["phases"]["load"]["bytes"] == 2 * parameters
    # 0.1 % of all but the embeddings, in bf16: weights, 28 bytes an entry, and less than 2 GB of activations.
    assert 0 < plan["phases"]["train"]["bytes"] - 2 * parameters < 2e9
    assert (plan["longest_text"], plan["longest_answer"], plan["longest_generated"]) == (1024, 512, 16)
    # Of 1536 tokens 513 reach the output layer; attention: two products with all positions. Selected entries train, so
    # that backward costs one more forward pass.
    forward = 2 * linear + 2 * 32000 * 4096 * 513 / 1536 + layers * 4 * 4096 * 1536
    assert plan["flops_per_token"] == [pytest.approx(2 * forward)] * 5
    assert plan["flops_per_second"] is None


def test_a_run_that_does_not_fit_gets_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "device_bytes", lambda device: 1_000_000)
    assert run_command(["plan", *TINY, "method=seq_ft"]) == 0
    text = capsys.readouterr().out
    assert "does not fit" in text and "No change of options" in text


# Past runs ----------------------------------------------------------------------------------------------------------


def past_run(folder: Path, resolved: Mapping[str, Any], device: str = "cpu") -> None:
    """The files of a finished run of which only counts and seconds matter."""
    folder.mkdir(parents=True)
    environment = describe_environment("")
    environment["hardware"]["device"] = device
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(resolved)))
    details = [
        {"name": name, "train_examples": 10, "importance_cached": False} for name in ("base", "kettles", "software")
    ]
    summary = {
        "tasks_detail": details,
        "test_examples": {"base": 5, "kettles": 5, "software": 5},
        "phases": {"load": 1.5, "train": 6.0, "evaluate": 3.0},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def test_seconds_at_the_pace_of_a_past_run(tmp_path: Path) -> None:
    resolved = compose([*TINY, "method=seq_ft"]).resolved
    work = {"importance": (0, 0.0), "train": (90, 90.0), "evaluate": (30, 30.0)}
    seen = []

    def work_of(config: Any, counts: Any) -> Mapping[str, tuple[int, float]]:
        seen.append(counts)
        return {"importance": (0, 0.0), "train": (60, 60.0), "evaluate": (60, 60.0)}

    def ask() -> tuple[dict[str, float], str] | None:
        return past_seconds(tmp_path, "*/tiny/seq_ft/*", resolved, "cpu", work, work_of)

    assert ask() is None
    past_run(tmp_path / "order/tiny/seq_ft/other", resolved, device="another GPU")
    slower = {**resolved, "hardware": {**resolved["hardware"], "threads": 7}}
    past_run(tmp_path / "order/tiny/seq_ft/threads", slower)
    (tmp_path / "order/tiny/seq_ft/damaged").mkdir()
    (tmp_path / "order/tiny/seq_ft/damaged/summary.json").write_text("{")
    assert ask() is None
    past_run(tmp_path / "order/tiny/seq_ft/cached", resolved)
    summary = tmp_path / "order/tiny/seq_ft/cached/summary.json"
    summary.write_text(summary.read_text().replace('"importance_cached": false', '"importance_cached": true'))
    assert ask() is None  # its offline phase took no time
    past_run(tmp_path / "order/tiny/seq_ft/same", {**resolved, "seed": 3})
    assert ask() == ({"train": 9.0, "evaluate": 1.5, "load": 1.5}, str(tmp_path / "order/tiny/seq_ft/same"))
    assert seen == [[("base", 10, 5), ("kettles", 10, 5), ("software", 10, 5)]]


# Out of memory ------------------------------------------------------------------------------------------------------


def test_errors_that_mean_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    outer = ValueError("the step failed")
    outer.__cause__ = MemoryError()
    assert is_out_of_memory(outer)
    assert not is_out_of_memory(ValueError("out of luck"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(None)


class Formula(Planner):
    """Peaks by a formula in place of passes: gigabytes that grow with what the options say."""

    def __init__(self) -> None:
        super().__init__(lambda: meta("bert"), 0)

    def peak(self, s: Setting, phase: str) -> int:
        weights = 4 * s.dtype.itemsize
        if phase == "load":
            size = weights
        elif phase == "importance":
            size = (
                weights + s.importance_batch * s.max_length // 32 + (32 // s.passes if s.accumulate == "device" else 1)
            )
        elif phase == "evaluate":
            size = weights + s.evaluation_batch * s.max_length // 64
        else:
            size = weights + s.micro_batch[phase.split()[1]] * s.max_length // (128 if s.gradient_checkpointing else 32)
        return size * 10**9


@pytest.mark.parametrize(
    ("gigabytes", "changes", "expected"),
    [
        (64, {}, {}),
        (50, {}, {"importance.batch_size": "2"}),
        (40, {}, {"importance.batch_size": "1", "importance.passes": "2"}),
        (
            20,
            {},
            {
                "importance.batch_size": "1",
                "importance.accumulate": "cpu",
                "training.base.micro_batch": "4",
                "training.incremental.micro_batch": "4",
            },
        ),
        (64, {"micro_batch": {"base": 96, "incremental": 8}}, {"training.base.micro_batch": "48"}),
        (
            19,
            {"max_length": 128, "tasks": tuple(dataclasses.replace(task, measured=0) for task in TASKS)},
            {
                "hardware.gradient_checkpointing": "true",
                "training.base.micro_batch": "2",
                "training.incremental.micro_batch": "2",
                "evaluation.batch_size": "1",
            },
        ),
        (
            18,  # importance on a CPU fits with shorter texts only, and with those the rest needs less
            {"max_length": 128, "device": "cpu", "importance_batch": 1, "accumulate": "cpu"},
            {
                "backbone.max_length": "32",
                "training.base.micro_batch": "2",
                "training.incremental.micro_batch": "2",
                "evaluation.batch_size": "4",
            },
        ),
    ],
)
def test_smallest_change_of_options(gigabytes: int, changes: dict[str, Any], expected: dict[str, str]) -> None:
    s = setting(**{"device": "cuda", **changes})
    options, hopeless = smallest_change(Formula(), s, gigabytes * 10**9)
    assert (options, hopeless) == (expected, {})


def test_options_that_shorter_texts_make_needless_are_dropped() -> None:
    """Phases come in the order of the run: a smaller batch for importance, then shorter texts for training."""

    class Long(Formula):
        def peak(self, s: Setting, phase: str) -> int:
            if phase == "importance":
                return s.importance_batch * s.max_length
            return 10 * s.max_length if phase.startswith("train") else 0

    s = setting(device="cpu", importance_batch=4, max_length=64)
    options, hopeless = smallest_change(Long(), s, 200)
    assert not hopeless
    assert options["backbone.max_length"] == "16"
    assert "importance.batch_size" not in options


def test_advice_is_a_line_to_type() -> None:
    request = compose([*TINY, "method=pe", "importance.batch_size=4"])
    planner = Formula()
    text = advice(planner, setting(device="cuda"), 40 * 10**9, request.command_with)
    line = text.splitlines()[-1]
    assert line.startswith("python -m cl_runner ") and "importance.batch_size=1 importance.passes=2" in line
    assert "importance.batch_size=4" not in line and "method=pe" in line
    assert "the results stay" in text
    assert advice(planner, setting(), 60 * 10**9, request.command_with).startswith("It fits")
    shorter = advice(planner, setting(max_length=128), 50 * 10**9, request.command_with)
    assert "backbone.max_length changes the results" in shorter


def test_advice_after_a_failure_asks_for_less_than_the_plan_said() -> None:
    command = compose([*TINY, "method=pe"]).command_with
    # Importance needs 52: the next try must need at most 80 % of it, although there is room for more.
    text = advice(Formula(), setting(device="cuda"), 100 * 10**9, command, failed="importance")
    assert text.endswith("importance.batch_size=1 importance.passes=2")
    # Training needs 24, and 80 % of it is 19: a micro-batch of 2 needs 18.
    text = advice(Formula(), setting(device="cuda"), 100 * 10**9, command, failed="train incremental")
    assert text.endswith("method=pe training.incremental.micro_batch=2")
    # The phase is not known: the largest.
    text = advice(Formula(), setting(device="cuda"), 100 * 10**9, command, failed="checkpoint")
    assert text.endswith("importance.batch_size=1 importance.passes=2")


def test_advice_without_hope_says_by_how_much() -> None:
    s = setting(device="cuda", dtype=torch.bfloat16)
    text = advice(Formula(), s, 4 * 10**9, compose([*TINY, "method=pe"]).command_with)
    # The least that importance can need: weights of 8 and sums of one tensor of 1 GB, texts cut to 16.
    assert "importance fit: it needs 9 GB at least, 5 GB more than the 4 GB" in text
    assert f"at most about {4 / 9 * 0.156547:,.0f} M parameters" in text
