"""Values in models and heads, against brute force: low-rank increments, prompts, gated prefixes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import seeded, tiny_config, tiny_encoder, tiny_learner
from torch import Tensor, nn
from torch.nn import functional

from cl_runner.families.base import Answering
from cl_runner.layers.heads import Heads
from cl_runner.layers.increments import Increments
from cl_runner.layers.targets import find_targets
from cl_runner.retrieval.keys import retrieve, similarities, unit_keys

FAMILIES = ("bert", "llama", "gpt2", "t5")


def prepared(family: str, tmp_path: Path, *more: str) -> tuple[Any, Any, list[Any]]:
    """A learner in fp64 whose SLM has learned two tasks with random values, dropout off."""
    config = tiny_config(
        tmp_path, f"backbone=tiny_{family}", "method=slm", *tiny_encoder(), "backbone.max_length=44", *more
    )
    learner, chain, tasks = tiny_learner(config)
    learner.model.double().eval()
    slm = chain.methods["slm"]
    with torch.no_grad():
        slm.bank.store.copy_(torch.randn(slm.bank.store.shape, generator=seeded(9)).double())
    slm.learned = 2
    # A random encoder finds all texts alike.
    slm.queries = lambda texts: torch.stack([torch.randn(48, generator=seeded(len(text))) for text in texts])
    with torch.no_grad():  # nor does a random model say anything but its special tokens
        learner.model.get_input_embeddings().weight[:3] = 0.0
    return learner, slm, tasks


def queries_of(slm: Any, batch: Any) -> Tensor:
    return slm.queries([example.prompt for example in batch.examples])


@pytest.mark.parametrize("kinds", [("attention_output",), ("attention_output", "query", "key", "value")])
@pytest.mark.parametrize("family", FAMILIES)
def test_composition_equals_weights_with_dense_increments(family: str, kinds: tuple[str, ...], tmp_path: Path) -> None:
    """Each text by itself through a model whose weights are W + sum_k w_k A_k^T B_k, eq. 3 and 4, in fp64."""
    if family == "gpt2" and len(kinds) > 1:
        pytest.skip("its query, key and value are one matrix")
    learner, slm, tasks = prepared(family, tmp_path, f"method.slm.targets=[{','.join(kinds)}]", "method.slm.rank=3")
    batch = learner.collate([tasks[1].test[i] for i in range(5)])
    cosines = similarities(queries_of(slm, batch), unit_keys(slm.bank.all_keys(0, 2)))
    found = retrieve(cosines, 2)
    assert len({tuple(row) for row in found.slots.tolist()}) > 1, "all texts retrieve the same"
    with torch.no_grad():
        together = learner.forward(batch).logits
        slm.values.stop()
        plain = learner.family.forward(learner.model, batch).logits
        alone = []
        for row in range(5):
            dense = {}
            for target in slm.values.targets:
                weight = target.module.weight
                dense[target.name] = weight.detach().clone()
                change = torch.zeros(target.width_out, target.width_in, dtype=torch.float64)
                for slot, share in zip(found.slots[row].tolist(), found.weights[row].tolist(), strict=True):
                    a, b = factors(slm.values, slm.bank.store[slot], target)
                    change += share * a.T @ b
                weight += change if isinstance(target.module, nn.Linear) else change.T
            alone.append(learner.family.forward(learner.model, batch.rows(row, row + 1)).logits)
            for target in slm.values.targets:
                target.module.weight.copy_(dense[target.name])
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(together, plain, atol=3e-3), "the increments do nothing"


def factors(values: Increments, row: Tensor, wanted: Any) -> tuple[Tensor, Tensor]:
    """A [r, out] and B [r, in] of a target, from the documented layout."""
    start = 0
    for target in values.targets:
        a, b = values.rank * target.width_out, values.rank * target.width_in
        if target is wanted:
            return row[start : start + a].view(values.rank, -1), row[start + a : start + a + b].view(values.rank, -1)
        start += a + b
    raise AssertionError


@pytest.mark.parametrize("method", ["slm", "slm_prompt", "slm_adapter"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_answers_are_generated_with_what_was_retrieved_once(method: str, family: str, tmp_path: Path) -> None:
    """Greedy decoding with a cache against one full pass per token, and one retrieval for a whole answer."""
    short = [] if method == "slm" else ["method.slm.prompt_length=3"]
    learner, slm, tasks = prepared(family, tmp_path, f"method={method}", *short)
    calls, real = [], slm.before_forward
    learner.method.methods["slm"].before_forward = lambda *given: calls.append(1) or real(*given)
    batch = learner.collate([tasks[0].test[i] for i in [0, 3, 5]], answers=False)
    answers = learner.answer(batch, Answering(6, raw=True))
    assert len(calls) == 1, "retrieved more than once for an answer"
    given = slm.before_forward(learner, batch)
    slow = greedy(learner, given, 6, family)
    texts = learner.family.tokenizer.batch_decode(slow, skip_special_tokens=True)
    assert [answer.text for answer in answers] == texts
    assert all(len(row) > 2 for row in slow), "nothing to compare"
    full = learner.collate([tasks[0].test[i] for i in [0, 3, 5]])
    with torch.no_grad():
        retrieved = learner.forward(full).logits
        slm.learned = 0
        assert not torch.allclose(learner.forward(full).logits, retrieved, atol=1e-3), "retrieval changes nothing"


@torch.no_grad()
def greedy(learner: Any, batch: dict[str, Tensor], count: int, family: str) -> list[list[int]]:
    """Token by token without a cache, one row at a time being the batch's own row."""
    model, end = learner.model, learner.family.tokenizer.eos_token_id
    ids = batch["input_ids"]
    decoded = ids.new_full((len(ids), 1), model.config.decoder_start_token_id or 0) if family == "t5" else None
    rows: list[list[int]] = [[] for _ in ids]
    mask = batch["attention_mask"]
    for _ in range(count):
        if decoded is not None:
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoded, use_cache=False).logits
        else:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        new = logits[:, -1].argmax(-1)
        for row, token in zip(rows, new.tolist(), strict=True):
            if end not in row:
                row.append(token)
        if decoded is not None:
            decoded = torch.cat([decoded, new[:, None]], 1)
        else:
            ids, mask = torch.cat([ids, new[:, None]], 1), torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_read_as_embeddings_before_the_text(family: str, tmp_path: Path) -> None:
    learner, slm, tasks = prepared(family, tmp_path, "method=slm_prompt", "method.slm.prompt_length=2")
    batch = learner.collate([tasks[0].test[i] for i in [1]])
    found = retrieve(similarities(queries_of(slm, batch), unit_keys(slm.bank.all_keys(0, 2))), 2)
    vectors = slm.bank.store[found.slots[0]].view(4, -1)
    with torch.no_grad():
        got = learner.forward(batch).logits
        slm.values.stop()
        embedded = learner.model.get_input_embeddings()(batch["input_ids"])
        first = 1 if family == "bert" else 0
        longer = torch.cat([embedded[:, :first], vectors[None], embedded[:, first:]], 1)
        mask = torch.ones(longer.shape[:2], dtype=torch.long)
        given = {"inputs_embeds": longer, "attention_mask": mask}
        if family == "t5":
            given["decoder_input_ids"] = batch["decoder_input_ids"]
        logits = learner.model(**given).logits
    if family in ("llama", "gpt2"):
        logits = logits[:, -batch["labels"].shape[1] - 1 : -1]
    expected = logits if family == "bert" else logits[batch["labels"] != -100]
    assert torch.allclose(got, expected.view_as(got).float(), atol=1e-5)


def test_a_closed_gate_changes_nothing_and_an_open_one_attends_to_the_prefix(tmp_path: Path) -> None:
    learner, slm, tasks = prepared("bert", tmp_path, "method=slm_adapter", "method.slm.prompt_length=3")
    values, batch = slm.values, learner.collate([tasks[0].test[i] for i in [0, 1]])
    seen: dict[str, Tensor] = {}
    query, key, value, output = values.layers[0]
    query.module.register_forward_hook(lambda module, given, out: seen.update(query=out))
    handle = output.module.register_forward_pre_hook(lambda module, given: seen.update(after=given[0]))
    with torch.no_grad():
        learner.forward(batch)
        slm.values.stop()
        handle.remove()
        output.module.register_forward_pre_hook(lambda module, given: seen.update(before=given[0]))
        learner.family.forward(learner.model, batch)
        found = retrieve(similarities(queries_of(slm, batch), unit_keys(slm.bank.all_keys(0, 2))), 2)
        size = 3 * key.width_in
        row = slm.bank.store[found.slots[1]][:, : size + 1]  # the first layer's, of the second text
        prefix, gate = row[:, :size].reshape(6, -1), row[:, size].tanh().repeat_interleave(3)
        heads, width = values.heads, query.width_out // values.heads
        added = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = seen["query"][1, :, part] @ key.module(prefix)[:, part].T / math.sqrt(width)
            added.append((scores.softmax(-1) * gate) @ value.module(prefix)[:, part])
        assert torch.allclose(seen["after"][1] - seen["before"][1], torch.cat(added, -1), atol=1e-6)
        for layer in range(len(values.layers)):
            slm.bank.store[:, (layer + 1) * (size + 1) - 1] = 0.0
        closed = learner.forward(batch).logits
        slm.values.stop()
        assert torch.equal(closed, learner.family.forward(learner.model, batch).logits)


# heads


def test_shared_rows_of_a_restart_are_the_latest_task_s() -> None:
    linear = nn.Linear(4, 3)
    heads = Heads(linear, [[0, 1], [1, 2]], ["a", "b"], "shared", restart=True)
    with torch.no_grad():
        heads.bias["a"] += 10.0
    states = torch.randn(2, 4)
    assert torch.allclose(heads(states), linear(states) + torch.tensor([10.0, 10.0, 0.0]), atol=1e-5)
    heads.latest = 1
    assert torch.allclose(heads(states), linear(states) + torch.tensor([10.0, 0.0, 0.0]), atol=1e-5)
    assert all(len(heads.trained_by(task)[0]) == 2 for task in range(2))


def test_shared_rows_answer_everything_and_are_learned_once() -> None:
    linear = nn.Linear(4, 5)
    heads = Heads(linear, [[0, 1], [3, 1, 2], [1, 2], [4]], ["a", "b", "c", "d"], "shared")
    states = torch.randn(3, 4)
    assert torch.allclose(heads(states), linear(states), atol=1e-6)
    assert [len(heads.trained_by(t)[0]) if heads.trained_by(t) else 0 for t in range(4)] == [2, 2, 0, 1]
    assert torch.equal(heads.weight["b"], linear.weight[[3, 2]])


@pytest.mark.parametrize("kind", ["by_num_labels", "per_task"])
def test_heads_by_the_true_task(kind: Any) -> None:
    linear = nn.Linear(4, 5)
    heads = Heads(linear, [[0, 1], [3, 1, 2], [4, 2]], ["a", "b", "c"], kind)
    heads.tasks = torch.tensor([2, 0, 1])
    states = torch.randn(3, 4)
    logits = heads(states)
    assert logits.isinf().tolist() == [
        [True, True, False, True, False],
        [False, False, True, True, True],
        [True, False, False, False, True],
    ]
    own = "a" if kind == "by_num_labels" else "c"  # the first head of two labels serves both
    expected = functional.linear(states[:1], heads.weight[own], heads.bias[own])[0]
    assert torch.allclose(logits[0, [4, 2]], expected)
    assert bool(heads.trained_by(2)) == (kind == "per_task")


def test_find_targets_of_t5_with_and_without_cross_attention(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "backbone=tiny_t5")
    learner, _, _ = tiny_learner(config)
    plain = [t.name for t in find_targets(learner.model, ["attention_output"], False, option="targets")]
    crossed = [t.name for t in find_targets(learner.model, ["attention_output"], True, option="targets")]
    assert len(plain) == 4 and all("SelfAttention.o" in name for name in plain)
    assert len(crossed) == 6


def test_heads_of_a_plan_are_made_of_tensors_without_content() -> None:
    """The plan of a second run in a root asks the first run's method with such a model, outside their mode."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        linear = nn.Linear(4, 3)
    heads = Heads(linear, [[2, 0], [1, 2]], ["00", "01"], "shared")
    assert [[p.numel() for p in heads.trained_by(task)] for task in (0, 1)] == [[8, 2], [4, 1]]
