"""Memory, disk and time of a plan, worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from plans import TASKS, meta, setting
from transformers import PreTrainedModel

from cl_runner.families.freezing import freeze
from cl_runner.needs import Needs
from cl_runner.planning.alike import Cost
from cl_runner.planning.planner import Planner
from cl_runner.planning.seconds import SELECTION, work
from cl_runner.planning.speed import Speed, calibrate


def test_whole_tensors_of_a_list_train() -> None:
    names = {"bert.encoder.layer.0.output.LayerNorm.weight": 64, "bert.encoder.layer.0.output.LayerNorm.bias": 64}
    planner = Planner(lambda: meta("bert"), 0)
    s = setting(
        device="cuda",
        needs=Needs("listed", "listed", listed=names),
        tasks=(dataclasses.replace(TASKS[0], trains="listed"),),
    )
    assert planner.architecture.trained(s, s.tasks[0]) == 128
    step = planner.prices.train(s, s.tasks[0])
    assert planner.peak(s, "train base") == planner.peak(s, "load") + 128 * 12 + step.peak_bytes
    assert step.peak_bytes < planner.prices.train(s, TASKS[0]).peak_bytes
    assert planner.disk(s)["snapshots"] == 4 * 128
    everything = Planner(lambda: meta("bert"), 0).prices.train(s, TASKS[0])
    assert step.flops < 0.7 * everything.flops


def test_frozen_tensors_do_not_train() -> None:
    def skeleton() -> PreTrainedModel:
        model = meta("bert")
        freeze(model, ["bert.embeddings.*"])
        return model

    planner, plain = Planner(skeleton, 0), Planner(lambda: meta("bert"), 0)
    s = setting(device="cuda", tasks=TASKS[:1])
    embeddings = (300 + 512 + 2 + 2) * 64  # words, positions, types, and a norm
    assert plain.architecture.trained(s, TASKS[0]) - planner.architecture.trained(s, TASKS[0]) == embeddings
    assert plain.peak(s, "importance") - planner.peak(s, "importance") >= 4 * embeddings
    assert planner.prices.train(s, TASKS[0]).peak_bytes < plain.prices.train(s, TASKS[0]).peak_bytes


def test_flops_of_a_token_by_hand() -> None:
    planner, s = Planner(lambda: meta("bert"), 0), setting()
    layer = 2 * (4 * 64**2 + 2 * 64 * 256) + 4 * 64 * 32  # products with weights, and with 32 other positions
    pooled = 2 * (64 * 64 + 64 * 3) / 32  # one position of 32
    forward = 2 * layer + pooled
    assert planner.prices.flops_per_token(s, TASKS[0]) == pytest.approx(3 * forward)
    assert planner.prices.flops_per_token(s, TASKS[1]) == pytest.approx(2 * forward)
    assert planner.prices.flops_per_token(s, dataclasses.replace(TASKS[1], trains="nothing")) == 0
    saving = dataclasses.replace(s, gradient_checkpointing=True)
    assert planner.prices.flops_per_token(saving, TASKS[0]) == pytest.approx(3 * forward)
    # The backward pass of fused attention computes its scores once more.
    real = planner.prices.train(s, TASKS[0]).flops / (8 * 32)
    assert real == pytest.approx(3 * forward, rel=0.05)


def test_memory_of_phases_by_hand() -> None:
    planner = Planner(lambda: meta("bert"), 10_000)
    weights = sum(p.numel() for p in meta("bert").parameters())
    largest = 512 * 64  # the table of positions
    s = setting(device="cuda", needs=Needs("all", "selected", fraction=0.01, candidates={"x": 5000}, sums=2))
    peaks = planner.memory(s)
    assert peaks["load"] == 10_000 + 4 * weights
    assert peaks["evaluate"] == peaks["load"] + planner.prices.evaluate(s)["forward"][0].peak_bytes
    # Both sums, and the pass.
    assert peaks["importance"] == peaks["load"] + 8 * weights + planner.prices.importance(s).peak_bytes
    # The weights before the task, two moments, and gradients with activations; or a checkpoint of 12 bytes.
    step = planner.prices.train(s, TASKS[0]).peak_bytes
    assert step > 4 * weights
    assert peaks["train base"] == peaks["load"] + 12 * weights + max(step, 12 * weights)
    # 50 values of 4, positions of 8, old values of 4, moments of 8, gradients of 4 bytes.
    step = planner.prices.train(s, TASKS[1]).peak_bytes
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
    # bf16 weights and their old values 2 + 2, fp32 copies 4, moments 8, and a pass with gradients of 4.
    step = planner.prices.train(s, TASKS[0]).peak_bytes
    assert step >= 4 * weights
    assert planner.peak(s, "train base") == 16 * weights + step


def test_smaller_parts_of_a_batch_take_less() -> None:
    planner = Planner(lambda: meta("bert"), 0)
    settings = [setting(micro_batch={"base": m, "incremental": m}) for m in (8, 4, 1)]
    parts = [planner.prices.train(s, TASKS[0]).peak_bytes for s in settings]
    assert parts[0] > parts[1] > parts[2]


def test_what_methods_hold_counts_from_the_second_task_on() -> None:
    planner = Planner(lambda: meta("bert"), 0)
    plain = setting(device="cuda")
    holding = dataclasses.replace(plain, needs=dataclasses.replace(plain.needs, entry_bytes=8, example_bytes=12))
    before, after = planner.memory(plain), planner.memory(holding)
    trained = planner.architecture.trained(plain, TASKS[1])
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
    assert work(s)["train"] == (16 * 8 + 8 * 8, 192 * 32)
    assert work(s)["importance"] == (64, 64 * 32)
    assert work(s)["evaluate"] == (300, 300 * 32)


def test_time_is_products_traffic_and_starts() -> None:
    speed = Speed(100.0, 10.0, 0.5)
    assert speed.seconds(Cost(0, 400, 20, 3)) == 400 / 100 + 20 / 10 + 3 * 0.5
    assert speed.seconds(Cost(0, 400, 20, 3), share=0.5) == 2 + 1 + 1.5
    planner = Planner(lambda: meta("bert"), 0)
    s = setting()
    found = planner.seconds(s, speed)
    assert found["evaluate"] == pytest.approx(speed.seconds(planner.prices.evaluate(s)["forward"][0]) * 300 / 8)
    selecting = SELECTION * 1000 / 10
    again = planner.seconds(dataclasses.replace(s, passes=2), speed)["importance"]
    assert again - selecting == pytest.approx(2 * (found["importance"] - selecting))
    measured = calibrate(32, 16, torch.float32, torch.device("cpu"))
    assert measured.flops_per_second > 1e6 and measured.bytes_per_second > 1e6
    assert 1e-7 < measured.seconds_per_operation < 1e-2
