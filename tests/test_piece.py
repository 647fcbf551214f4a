"""PIECE over the selector: what is selected from, the release's behaviours, and importance shared between runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY, learn, run_command, tiny_config, tiny_learner

from cl_runner.config import ImportanceChange
from cl_runner.data.task import Task, build_tasks
from cl_runner.importance import importance
from cl_runner.learn import Watch, learn_task
from cl_runner.learner import Learner
from cl_runner.methods.selector import Selector
from cl_runner.patterns import module_types
from cl_runner.prepared import prepare
from cl_runner.sparse import importance_cache


def selected(tmp_path: Path, *overrides: str) -> tuple[dict[str, torch.Tensor], Learner]:
    """Positions for the first task."""
    config = tiny_config(tmp_path, *overrides)
    learner, method, tasks = tiny_learner(config)
    method.select(learner, tasks[0])
    selector = method.methods["piece"]
    assert isinstance(selector, Selector)
    return selector.indices, learner


@pytest.mark.parametrize(("method", "score"), [("piece_f", "fisher"), ("piece_s", "second_order")])
def test_largest_scores_of_the_new_task_over_the_whole_model(method: str, score: str, tmp_path: Path) -> None:
    """Against torch.topk of brute-force scores on the concatenation, embeddings left out."""
    indices, learner = selected(tmp_path, f"method={method}", "method.piece.fraction=0.01")
    names = [n for n, types in module_types(learner.model).items() if "Embedding" not in types]
    weights = learner.parameters()
    gradient = {n: torch.zeros_like(weights[n]) for n in names}
    fisher = {n: torch.zeros_like(weights[n]) for n in names}
    learner.model.eval()
    for i in range(len(learner.tasks[0].train)):
        loss = learner.family.loss_sum(learner.model, learner.collate([learner.tasks[0].train[i] for i in [i]]), "mean")
        for name, g in zip(names, torch.autograd.grad(loss, [weights[n] for n in names]), strict=True):
            gradient[name] += g
            fisher[name] += g.square()
    wanted = {n: fisher[n] if score == "fisher" else gradient[n].abs() / (fisher[n] + 1).sqrt() for n in names}
    everything = torch.cat([wanted[n].flatten() for n in names])
    count = round(0.01 * len(everything))
    assert sum(index.numel() for index in indices.values()) == count
    limit = everything.topk(count).values[-1]
    for name in names:
        flat = wanted[name].flatten()
        sure = (flat > limit * 1.001).nonzero().view(-1)
        found = set(indices.get(name, torch.empty(0)).tolist())
        assert set(sure.tolist()) <= found <= set((flat >= limit * 0.999).nonzero().view(-1).tolist())


def test_the_first_task_is_selected_for_as_well(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=piece_s")
    learner, method, tasks = tiny_learner(config)
    before = learner.weights()
    learn(learner, method, tasks[0], config)
    changed = sum(int((p != before[n]).sum()) for n, p in learner.parameters().items())
    assert 0 < changed <= 0.001 * sum(p.numel() for p in before.values()) + 1
    config = tiny_config(tmp_path, "method=piece_s", "method.piece.first_task=whole")
    learner, method, tasks = tiny_learner(config)
    learn(learner, method, tasks[0], config)
    changed = sum(int((p != before[n]).sum()) for n, p in learner.parameters().items())
    assert changed > 0.5 * sum(p.numel() for p in before.values())


def test_compat_options_are_the_releases_behaviours(tmp_path: Path) -> None:
    plain, learner = selected(tmp_path, "method=piece_f", "method.piece.fraction=0.003")
    sizes = {n: p.numel() for n, p in learner.parameters().items()}
    types = module_types(learner.model)
    allowed = {n for n in sizes if "Embedding" not in types[n]}
    assert set(plain) < allowed
    counted, _ = selected(
        tmp_path, "method=piece_f", "method.piece.fraction=0.003", "method.piece.compat=[count_excluded]"
    )
    assert sum(i.numel() for i in counted.values()) == int(0.003 * sum(sizes.values()))
    still, _ = selected(  # as the release froze them while it trained
        tmp_path,
        "method=piece_f",
        "method.piece.fraction=0.003",
        "method.piece.compat=[count_excluded]",
        "backbone.frozen=['*word_embeddings*']",
    )
    assert {name: index.tolist() for name, index in still.items()} == {n: i.tolist() for n, i in counted.items()}
    assert sum(i.numel() for i in plain.values()) == round(0.003 * sum(sizes[n] for n in allowed))
    missing, _ = selected(
        tmp_path, "method=piece_f", "method.piece.fraction=0.003", "method.piece.compat=[missing_mask]"
    )
    assert set(missing) == allowed
    for name in allowed - set(plain):
        assert missing[name].numel() == sizes[name]
    for name, index in plain.items():
        assert torch.equal(missing[name], index)


def test_bf16_accumulation_rounds_the_sums(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=piece_s", "method.piece.compat=[bf16_accumulation]")
    learner, method, tasks = tiny_learner(config)
    method.select(learner, tasks[0])
    (found,) = learner.measured.found.values()
    assert found.gradient is not None
    assert {tensor.dtype for sums in (found.fisher, found.gradient) for tensor in sums.values()} == {torch.bfloat16}


@pytest.mark.parametrize("size", [1, 4])
def test_sums_in_bf16_are_the_releases_to_the_bit(size: int, tmp_path: Path) -> None:
    """Its loop: micro-batches padded on the left to a multiple of 8, positions from the first column, all in bf16."""
    config = tiny_config(
        tmp_path,
        "method=piece_s",
        "backbone=tiny_llama",
        "backbone.dtype=bfloat16",
        f"importance.micro_batch={size}",
    )
    learner, _, tasks = tiny_learner(config)
    learner.measured.options = config.importance
    examples = tasks[0].train[:13]  # the last micro-batch is smaller
    found = importance(learner, examples, gradient=True, dtype=torch.bfloat16)
    assert found.gradient is not None
    pad, weights = learner.family.tokenizer.pad_token_id, learner.parameters()
    gradient, fisher = ({name: torch.zeros_like(p) for name, p in weights.items()} for _ in range(2))
    learner.model.requires_grad_(True)
    for start in range(0, len(examples), size):
        rows, labels = [], []
        for example in examples[start : start + size]:
            prompt = learner.family.tokenizer(example.prompt)["input_ids"]
            answer = learner.family.tokenizer(example.answer, add_special_tokens=False)["input_ids"] + [2]
            rows.append(prompt + answer)
            labels.append(answer)
        length = -(-max(map(len, rows)) // 8) * 8
        loss = learner.model(
            input_ids=torch.tensor([[pad] * (length - len(row)) + row for row in rows]),
            attention_mask=torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
            labels=torch.tensor([[-100] * (length - len(answer)) + answer for answer in labels]),
            use_cache=False,
        ).loss
        for (name, _), g in zip(weights.items(), torch.autograd.grad(loss, list(weights.values())), strict=True):
            gradient[name] += g
            fisher[name] += g**2
    assert all(torch.equal(found.gradient[n], gradient[n]) and torch.equal(found.fisher[n], fisher[n]) for n in weights)


def test_a_task_of_an_order_measures_in_its_own_micro_batches(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=piece_f")
    learner, method, tasks = tiny_learner(config)
    units = []

    class Measured(Watch):
        def on_prepared(self, task: Task) -> None:
            (found,) = learner.measured.found.values()
            units.append((found.units, found.examples))

    for task, change in ((tasks[1], ImportanceChange(micro_batch=4)), (tasks[2], None)):
        learn_task(learner, method, dataclasses.replace(task, importance=change), config.training, Measured())
    assert units == [(6, 24), (24, 24)]


def test_importance_reads_texts_as_short_as_it_is_told(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=piece_f", "backbone=tiny_llama", "importance.max_length=16")
    tasks = build_tasks(config.task_order, config.task)
    prepared = prepare(config, tasks)
    example = dataclasses.replace(tasks[0].train[0], answer="a long answer of more than sixteen bytes")
    assert prepared.measuring.lengths([example], answers=False) == prepared.measuring.targets([example]) == [16]
    assert min(prepared.family.lengths([example], answers=False) + prepared.family.targets([example])) > 16
    assert prepared.measuring.identity() != prepared.family.identity(), "the cache knows them apart"
    longer = tiny_config(tmp_path, "method=piece_f", "backbone=tiny_llama", "importance.max_length=5000")
    with pytest.raises(ValueError, match=r"tokens of a text that training reads\. Type: importance\.max_length=\d+$"):
        prepare(longer, tasks)


def test_importance_on_the_new_tasks_data_is_online(tmp_path: Path) -> None:
    for method, online in (("piece_s", True), ("pe_select", False)):
        assert run_command([*TINY, f"method={method}", "importance.cache_gb=0", f"root={tmp_path / method}"]) == 0
        (path,) = (tmp_path / method).rglob("summary.json")
        task = json.loads(path.read_text())["tasks_detail"][1]
        needed = task["phases"]["importance"] + task["phases"]["selection"]
        assert (task["offline_seconds"] == 0) == online
        assert (task["online_seconds"] > needed) == online or not online


def test_no_old_data_before_the_first_task(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=piece_f", "method.piece.score_data=old_tasks")
    learner, method, _ = tiny_learner(config)
    with pytest.raises(ValueError, match=r"before the first task.*Type: method\.piece\.score_data=new_task"):
        method.check(learner.model, 64)


def test_importance_is_shared_between_runs_and_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run finds the first task's sums, computed for another share; without a cache the bits are the same."""
    loaded: list[bool] = []
    load = importance_cache.load

    def watched(*given: Any) -> Any:
        found = load(*given)
        loaded.append(found is not None)
        return found

    monkeypatch.setattr(importance_cache, "load", watched)

    def end(root: str, *more: str) -> str:
        loaded.clear()
        assert run_command([*TINY, "method=pe_select", f"root={tmp_path / root}", *more]) == 0
        (path,) = (p for p in (tmp_path / root).rglob("summary.json") if "x" not in json.loads(p.read_text()))
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "x": 0}))  # seen
        return str(content["weights_sha256"])

    first = end("a", "method.pe.fraction=0.01")
    assert not any(loaded) and len(list((tmp_path / "a/cache/importance").glob("*.safetensors"))) == 2
    second = end("a", "method.pe.fraction=0.02")
    assert any(loaded)  # the base task left the same weights
    assert end("b", "method.pe.fraction=0.02", "importance.cache_gb=0") == second != first
    assert not (tmp_path / "b/cache").exists()
    # A sample of the data, or labels of the model's own, is something else.
    end("a", "method.pe.fraction=0.02", "importance.max_examples=7")
    assert not any(loaded)
    end("a", "method.pe.fraction=0.02", "importance.labels=model")
    assert not any(loaded)


def test_micro_batches_of_importance_are_another_fisher(tmp_path: Path) -> None:
    """F of micro-batches: squares of mean gradients, in the data's own order."""
    _, learner = selected(tmp_path, "method=piece_f")
    config = tiny_config(tmp_path, "importance.micro_batch=4")
    learner, _, tasks = tiny_learner(config)
    learner.measured.options = config.importance
    found = importance(learner, tasks[1].train)
    assert (found.units, found.examples) == (6, 24)
    weight = learner.parameters()["classifier.bias"]
    wanted = torch.zeros_like(weight)
    learner.model.eval()
    for start in range(0, 24, 4):
        batch = learner.collate([tasks[1].train[i] for i in range(start, start + 4)])
        loss = learner.family.loss_sum(learner.model, batch, "mean") / 4
        wanted += torch.autograd.grad(loss, weight)[0].square()
    torch.testing.assert_close(found.fisher["classifier.bias"], wanted)
