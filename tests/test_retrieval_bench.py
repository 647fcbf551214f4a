"""The benchmark of per-sample composition at a tiny size: what it compares is equal, and what is not is noticed."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

TOP = Path(__file__).parents[1]
PEFT = importlib.util.find_spec("peft") is not None
TINY = SimpleNamespace(size="tiny", encoder="tiny", length=8, tasks="2,5", peft=False)
# transformers' of its own attribute, whenever PEFT asks for it
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOP / "scripts" / "bench"))
    return importlib.import_module("retrieval")


@pytest.mark.parametrize("peft", [False, pytest.param(True, marks=pytest.mark.skipif(not PEFT, reason="needs peft"))])
def test_it_measures_every_way(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peft: bool) -> None:
    options = "--size tiny --encoder tiny --length 8 --batches 1,6 --top-k 2 --ranks 3 --tasks 2,5 --repeats 2"
    options += f" --peft {str(peft).lower()} --memory false --threads 1"
    output = tmp_path / "retrieval.json"
    command = ["retrieval.py", *options.split(), "--output", str(output)]
    monkeypatch.setattr("sys.argv", command)
    bench.main()
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["benchmark"] == "retrieval"
    results = written["results"]
    assert list(results) == ["forward", "tasks", "training"]
    assert list(results["forward"]) == ["batch 1, K 2, r 3", "batch 6, K 2, r 3"]
    many = results["forward"]["batch 6, K 2, r 3"]
    peers = {bench.PEFT_ALL, bench.PEFT_FOUR} if peft else set()
    equal = "greatest_difference_of_equal_ways"
    assert set(many) == {bench.PLAIN, bench.OURS, bench.MATERIALISED, bench.ENCODER, equal} | peers
    assert 0 < many[bench.ENCODER]["share_with_ours"] < 1
    assert many[equal] < bench.TOLERANCE
    assert many[bench.OURS]["ratio_to_plain"]["median"] > 0
    assert set(results["tasks"]["batch 6, K 2, r 3"]) == {
        f"{tasks} tasks{part}" for tasks in (2, 5) for part in ("", ", retrieval", ", retrieval and fetching")
    }
    training = {bench.FROZEN, bench.OURS, bench.ELSEWHERE, bench.MATERIALISED} | ({bench.LORA} if peft else set())
    assert set(results["training"]["batch 6, K 2, r 3"]) == training


@torch.no_grad()
def test_ours_is_a_pass_of_each_text_with_its_own_weights(bench: ModuleType) -> None:
    size, top_k, rank = 3, 2, 3
    ways = bench.forward_ways(TINY, size, top_k, rank)
    model, batch = bench.encoder("tiny", 8, bench.BertModel), bench.batch_of(size, 8)
    targets = bench.find_targets(model, ["attention_output"], False, option="targets")
    increments = bench.Increments(targets, rank)
    bank = bench.bank_of(increments.width, 2)
    found = bench.find(bank, bench.queries_of(bank, [0, 1, 0]), top_k)
    assert (found.slots // bench.SLOTS).tolist() == [[0, 0], [1, 1], [0, 0]]  # texts lie among their task's keys
    before = [target.module.weight.clone() for target in targets]
    expected = []
    for text in range(size):
        for number, target in enumerate(targets):
            weight = before[number].clone()
            for slot, share in zip(found.slots[text].tolist(), found.weights[text].tolist(), strict=True):
                start = number * 2 * rank * 32  # of each target A, then B, of `rank` rows of 32 numbers
                outward, inward = bank.store[slot, start : start + 2 * rank * 32].view(2, rank, 32)
                weight += share * outward.T @ inward
            target.module.weight.copy_(weight)
        expected.append(model(**{name: tensor[text : text + 1] for name, tensor in batch.items()}).last_hidden_state)
    torch.testing.assert_close(ways[bench.OURS](), torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_the_check_notices_a_difference_and_increments_without_effect(bench: ModuleType) -> None:
    ways = bench.forward_ways(TINY, 2, 1, 2)
    assert bench.check(ways) < bench.TOLERANCE
    wrong = {**ways, bench.MATERIALISED: lambda: ways[bench.OURS]() + 2 * bench.TOLERANCE}
    with pytest.raises(AssertionError, match=bench.MATERIALISED):
        bench.check(wrong)
    with pytest.raises(AssertionError, match="change nothing"):
        bench.check({**ways, bench.PLAIN: ways[bench.OURS]})


def test_training_steps_that_compute_the_same_have_the_same_loss(bench: ModuleType) -> None:
    losses = {}
    for name, way in bench.training_ways(TINY, 4, 2, 3).items():
        torch.manual_seed(0)  # of the dropout
        losses[name] = float(way())
    assert losses[bench.MATERIALISED] == pytest.approx(losses[bench.OURS], abs=1e-5)
    for other in (bench.FROZEN, bench.ELSEWHERE):
        assert abs(losses[other] - losses[bench.OURS]) > 1e-4
