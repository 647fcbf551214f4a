"""SLM's parts against brute force: keys, retrieval, low-rank increments, prompts, gated prefixes, heads, the bank."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import learn, run_command, tiny, tiny_config, tiny_encoder, tiny_learner, weights_of
from torch import Tensor, nn
from torch.nn import functional

from cl_runner.families.base import Answering
from cl_runner.retrieval.bank import Bank
from cl_runner.retrieval.heads import Heads
from cl_runner.retrieval.increments import Increments
from cl_runner.retrieval.keys import Retrieved, hits, new_keys, retrieve, similarities, train_keys, unit_keys
from cl_runner.retrieval.targets import find_targets

FAMILIES = ("bert", "llama", "gpt2", "t5")


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


# keys


def test_new_keys_are_orthonormal_in_each_group_and_the_last_part_is_filled() -> None:
    keys = new_keys(3, 10, 4, seeded())
    assert keys.shape == (3, 10, 4)
    for group in keys:
        for start in (0, 4, 8):
            part = group[start : start + 4]
            assert torch.allclose(part @ part.T, torch.eye(len(part)), atol=1e-6)
    assert not torch.equal(keys[0], keys[1])


def options(**others: Any) -> dict[str, Any]:
    given = {"top_k": 1, "mask": 0.0, "epochs": 1, "batch_size": 1, "learning_rate": 1e-3, "decay_every": 2}
    return {**given, "clip": 1e9, "generator": seeded(), **others}


def test_a_step_follows_the_gradient_of_the_cosine_of_the_nearest_key_alone() -> None:
    """Eq. 5 by hand: d cos(q, k) / dk = (q / |q| - cos k / |k|) / |k|; Adam's first step is its sign."""
    keys, query = torch.randn(2, 3, 4, generator=seeded(1)), torch.randn(1, 8, generator=seeded(2))
    learned = train_keys(keys, query, **options())
    for group in range(2):
        part = query[0, 4 * group : 4 * group + 4]
        cosines = functional.cosine_similarity(keys[group], part[None])
        nearest = int(cosines.argmax())
        key = keys[group, nearest]
        gradient = (part / part.norm() - cosines[nearest] * key / key.norm()) / key.norm()
        assert torch.allclose(learned[group, nearest] - key, 1e-3 * gradient.sign(), atol=1e-6)
        others = [slot for slot in range(3) if slot != nearest]
        assert torch.equal(learned[group, others], keys[group, others]), "a key that nobody retrieved moved"


def test_the_mask_lets_every_slot_learn() -> None:
    centre = torch.randn(1, 8, generator=seeded(5))
    queries = centre + 0.1 * torch.randn(200, 8, generator=seeded(6))
    keys = new_keys(2, 4, 4, seeded(7))
    alone = train_keys(keys, queries, **options(batch_size=4, epochs=3))
    masked = train_keys(keys, queries, **options(batch_size=4, epochs=3, mask=0.5, learning_rate=1e-2))
    assert not bool((alone != keys).any(-1).all()), "without a mask some slots never learn"
    assert bool((masked != keys).any(-1).all())
    near = similarities(queries, unit_keys(masked)).mean()
    assert near > similarities(queries, unit_keys(keys)).mean() + 0.2
    again = train_keys(keys, queries, **options(batch_size=4, epochs=3, mask=0.5, learning_rate=1e-2))
    assert torch.equal(masked, again), "the same seed gives other keys"


def by_hand(cosines: Tensor, top_k: int, row: int) -> tuple[list[int], list[float]]:
    """mean_sim and normalised_cos, one text, in plain Python."""
    groups, _, count = cosines.shape
    means = [sum(float(cosines[g, row, j]) for g in range(groups)) / groups for j in range(count)]
    chosen = sorted(range(count), key=lambda j: -means[j])[:top_k]
    positive = [max(0.0, means[j]) for j in chosen]
    return chosen, [p / (sum(positive) + 1e-9) for p in positive]


def test_retrieval_by_brute_force() -> None:
    cosines = torch.rand(3, 5, 7, generator=seeded()) * 2 - 1
    found = retrieve(cosines, 2)
    for row in range(5):
        slots, weights = by_hand(cosines, 2, row)
        assert found.slots[row].tolist() == slots
        assert found.weights[row].tolist() == pytest.approx(weights, abs=1e-6)
    assert float(found.weights.min()) >= 0, "a negative cosine has a weight"
    whole = retrieve(cosines, 2, whole_batch=True)
    slots, weights = by_hand(cosines.mean(1, keepdim=True), 2, 0)
    assert all(row == slots for row in whole.slots.tolist())
    assert whole.weights[3].tolist() == pytest.approx(weights, abs=1e-6)
    uniform = retrieve(cosines, 2, weighting="uniform")
    assert torch.allclose(uniform.weights, torch.full((5, 2), 0.5))
    soft = retrieve(cosines, 2, weighting="softmax", temperature=0.5)
    scores = cosines.mean(0).gather(1, soft.slots)
    assert torch.allclose(soft.weights, (scores / 0.5).softmax(-1), atol=1e-6)


def test_retrieval_per_group_by_votes() -> None:
    cosines = torch.rand(3, 4, 6, generator=seeded(3)) * 2 - 1
    found = retrieve(cosines, 2, aggregate="per_group")
    for row in range(4):
        votes = [0.0] * 6
        for group in range(3):
            for slot in sorted(range(6), key=lambda j: -float(cosines[group, row, j]))[:2]:
                votes[slot] += max(0.0, float(cosines[group, row, slot]))
        expected = {slot: vote / sum(votes) for slot, vote in enumerate(votes) if vote}
        pairs = zip(found.slots[row].tolist(), found.weights[row].tolist(), strict=True)
        got = {slot: weight for slot, weight in pairs if weight > 1e-6}
        assert got == pytest.approx(expected, abs=1e-5)


def test_what_is_not_visible_is_not_retrieved() -> None:
    cosines = torch.rand(2, 3, 8, generator=seeded(4))
    visible = torch.zeros(3, 8, dtype=torch.bool)
    visible[0, :4], visible[1:, 4:] = True, True
    for aggregate in ("mean_sim", "per_group"):
        found = retrieve(cosines, 3, aggregate=aggregate, visible=visible)  # type: ignore[arg-type]
        assert bool((found.slots[0] < 4).all()) and bool((found.slots[1:] >= 4).all())


def test_retrieval_accuracy_needs_more_than_half() -> None:
    """Eq. 13 with 6 groups and K = 2: 6 of 12 hits are not enough, 7 are."""
    cosines = torch.full((6, 2, 4), -1.0)
    for row, inside in ((0, 6), (1, 7)):
        for group in range(6):
            first = 2 * group < inside
            second = 2 * group + 1 < inside
            cosines[group, row, 0 if first else 2] = 0.9
            cosines[group, row, 1 if second else 3] = 0.8
    assert hits(cosines, 2, 0, 2).tolist() == [False, True]


# the bank


def test_rows_of_the_bank_carry_gradients_to_the_task_that_trains_alone() -> None:
    bank = Bank(["a", "b", "c"], torch.randn(2, 6, 4), torch.arange(18.0).view(6, 3))
    slots = torch.tensor([[0, 2], [3, 5]])
    assert torch.equal(bank.rows(slots), torch.arange(18.0).view(6, 3)[slots])
    bank.values["b"].requires_grad_(True)
    rows = bank.rows(slots)
    (rows * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.equal(bank.values["b"].grad, torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))
    assert bank.values["a"].grad is None and bank.values["c"].grad is None
    only = bank.rows(torch.tensor([[2, 3]]))
    assert only.requires_grad and torch.equal(only.detach(), bank.store[[2, 3]][None])


def test_a_task_writes_into_the_store_also_after_a_move() -> None:
    bank = Bank(["a", "b"], torch.randn(2, 4, 4), torch.randn(4, 3)).to(torch.float64)
    with torch.no_grad():
        bank.values["b"].fill_(7.0)
    assert (
        bank.store.dtype == torch.float64
        and bool((bank.store[2:] == 7).all())
        and not bool((bank.store == 7)[:2].any())
    )


# values in models


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


@pytest.mark.parametrize("kinds", [("attention_output",), ("attention_output", "query", "key", "value")])
@pytest.mark.parametrize("family", FAMILIES)
def test_composition_equals_weights_with_dense_increments(family: str, kinds: tuple[str, ...], tmp_path: Path) -> None:
    """Each text by itself through a model whose weights are W + sum_k w_k A_k^T B_k, eq. 3 and 4, in fp64."""
    if family == "gpt2" and len(kinds) > 1:
        pytest.skip("its query, key and value are one matrix")
    learner, slm, tasks = prepared(family, tmp_path, f"method.slm.targets=[{','.join(kinds)}]", "method.slm.rank=3")
    batch = learner.collate(tasks[1].test, range(5))
    cosines = similarities(batch["query"], unit_keys(slm.bank.all_keys(0, 2)))
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
            alone.append(learner.family.forward(learner.model, {n: t[row : row + 1] for n, t in batch.items()}).logits)
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
    learner, slm, tasks = prepared(family, tmp_path, f"method={method}", "method.slm.prompt_length=3")
    calls, real = [], slm.before_forward
    learner.method.methods["slm"].before_forward = lambda *given: calls.append(1) or real(*given)
    batch = learner.collate(tasks[0].test, [0, 3, 5], answers=False)
    answers = learner.answer(batch, Answering(6, raw=True))
    assert len(calls) == 1, "retrieved more than once for an answer"
    given = slm.before_forward(learner, batch)
    slow = greedy(learner, given, 6, family)
    texts = learner.family.tokenizer.batch_decode(slow, skip_special_tokens=True)
    assert [answer.text for answer in answers] == texts
    assert all(len(row) > 2 for row in slow), "nothing to compare"
    full = learner.collate(tasks[0].test, [0, 3, 5])
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
    batch = learner.collate(tasks[0].test, [1], answers=True)
    found = retrieve(similarities(batch["query"], unit_keys(slm.bank.all_keys(0, 2))), 2)
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
    values, batch = slm.values, learner.collate(tasks[0].test, [0, 1])
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
        found = retrieve(similarities(batch["query"], unit_keys(slm.bank.all_keys(0, 2))), 2)
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


# the method


def test_queries_are_encoded_once_and_kept_by_content(tmp_path: Path) -> None:
    from cl_runner.config import Encoder
    from cl_runner.retrieval.encoder import Queries

    folder = tiny_encoder()[0].partition("=")[2]
    chosen = Encoder(checkpoint=folder, revision=None, package=None, weights_sha256=None, max_length=None)
    texts = [f"text number {i}" for i in range(70)]
    done: list[int] = []
    first = Queries(chosen, torch.device("cpu"), tmp_path, lambda phase, now, total: done.append(now))
    vectors = first(texts)
    assert done == [64, 70] and len(list(tmp_path.iterdir())) == 1
    assert torch.equal(first([texts[5], texts[2]]), vectors[[5, 2]]) and len(done) == 2
    second = Queries(chosen, torch.device("cpu"), tmp_path, lambda phase, now, total: done.append(now))
    assert torch.equal(second(texts), vectors) and len(done) == 2, "encoded again"
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    third = Queries(chosen, torch.device("cpu"), tmp_path, lambda phase, now, total: done.append(now))
    assert torch.equal(third(texts), vectors) and len(done) == 4, "a damaged file is written anew"
    other = Queries(chosen, torch.device("cpu"), tmp_path, lambda phase, now, total: done.append(now))
    with torch.no_grad():
        next(other._encoder().parameters()).mul_(2.0)
    assert not torch.equal(other(texts), vectors), "vectors of other weights"
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(folder, device="cpu").encode(texts[:3], convert_to_tensor=True)
    assert torch.allclose(vectors[:3], whole, atol=1e-5)


@pytest.mark.parametrize("pool", ["prefix", "current", "all"])
def test_old_values_stay_bit_by_bit_and_what_is_visible(pool: str, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        "method=slm",
        *tiny_encoder(),
        f"method.slm.pool={pool}",
        "method.slm.learning_rate=0.05",
        "training.weight_decay=0.5",
    )
    learner, chain, tasks = tiny_learner(config)
    slm = chain.methods["slm"]
    learn(learner, chain, tasks[0], config)
    first = weights_of(learner)
    seen: list[tuple[int, int]] = []
    real = slm._visible
    slm._visible = lambda given: seen.append(real(given)) or seen[-1]
    learn(learner, chain, tasks[1], config)
    assert set(seen) >= {{"prefix": (0, 2), "current": (1, 2), "all": (0, 3)}[pool]}
    after = weights_of(learner)
    moved = {name for name in after if not torch.equal(after[name], first[name])}
    assert "slm.values.01" in moved
    assert not any(".00" in name or ".02" in name for name in moved)
    assert real(learner) == {"prefix": (0, 2), "current": (0, 2), "all": (0, 3)}[pool]


def test_task_identity_shows_each_text_its_own_slots(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "method=slm_ti", *tiny_encoder())
    learner, chain, tasks = tiny_learner(config)
    for task in tasks[:2]:
        learn(learner, chain, task, config)
    slm = chain.methods["slm"]
    used: list[Retrieved] = []
    real = slm.values.use
    slm.values.use = lambda rows, found, batch: used.append(found) or real(rows, found, batch)
    learner.model.eval()
    mixed = [*tasks[1].test[:3], *tasks[0].test[:3]]
    learner.forward(learner.collate(mixed, range(6)))
    assert bool((used[0].slots[:3] >= 4).all()) and bool((used[0].slots[3:] < 4).all())


def test_a_run_leaves_the_papers_numbers_and_small_snapshots(tmp_path: Path) -> None:
    from cl_runner.sparse.snapshots import describe_snapshot, read_snapshot

    given = [*tiny(tmp_path, "method=slm", *tiny_encoder())]
    assert run_command(given) == 0
    (path,) = tmp_path.rglob("summary.json")
    details = json.loads(path.read_text())["tasks_detail"]
    last = details[-1]["method"]["slm"]
    assert list(last["retrieval_accuracy"]) == ["base", "kettles", "software"]
    assert set(last["timing"]["base"]) == {"retrieval_ms", "answer_ms", "retrieval_share_percent"}
    assert all({"keys", "train"} <= set(detail["phases"]) for detail in details)
    assert all(detail["certificate"]["holds"] for detail in details)
    from safetensors.torch import load_file

    keys = load_file(path.parent / "keys.safetensors")
    for number, detail in enumerate(details):
        (file,) = (path.parent / "snapshots").glob(f"{number:02d}_*")
        changes = read_snapshot(file).changes
        names = {name for name in changes if not name.startswith("classifier")}
        assert names == {f"slm.{kind}.{number:02d}" for kind in ("keys", "values")}
        slots, width = changes[f"slm.values.{number:02d}"].bits.shape
        assert slots == 4 and width == 2 * 12 * (32 + 32)  # two layers, r = 12, width 32
        assert detail["stored"] == describe_snapshot(file).stored
        assert keys[detail["name"]].shape == (6, 4, 8)


@pytest.mark.parametrize("head", ["shared", "by_num_labels"])
def test_single_tasks_learn_all_of_their_own_again(head: str, tmp_path: Path) -> None:
    """The labels are the same in all tasks; each begins with a head that nobody has trained."""
    given = tiny(tmp_path, "method=slm", "task_order=[reviews,single_task]", f"method.slm.head={head}", *tiny_encoder())
    assert run_command(given) == 0
    (path,) = tmp_path.rglob("summary.json")
    details = json.loads(path.read_text())["tasks_detail"]
    assert len({detail["trainable"] for detail in details}) == 1
    assert all(detail["method"]["slm"]["retrieval_accuracy"] == {} for detail in details)
    assert "retrieval_accuracy/slm" not in json.loads(path.read_text())["metrics"]


def test_another_encoder_than_the_package_carries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tiny(tmp_path, "method=slm", "method.slm.encoder.checkpoint=sentence-transformers/nli-mpnet-base-v2")
    assert run_command(given) == 2
    assert "method.slm.encoder.package=null method.slm.encoder.revision=null" in capsys.readouterr().err


def test_answers_by_prefix_have_room_for_prompts(tmp_path: Path) -> None:
    given = tiny(
        tmp_path, "method=slm_prompt", "backbone=tiny_llama", "evaluation.answer_slice=prefix", *tiny_encoder()
    )
    assert run_command([*given, "training.max_steps=1", "method.slm.prompt_length=2"]) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["method=[ewc,slm]"], r"ewc would have nothing to do. Type: method=slm"),
        (["method=[slm,piece_s]"], r"slm and piece both decide what trains"),
        (["method=slm", "method.slm.groups=5"], r"48 numbers cannot be cut .* Type: method.slm.groups=4"),
        (["method=slm", "method.slm.top_k=5"], r"Type: method.slm.top_k=4"),
        (["method=slm", "method.slm.head=per_task"], r"Type: method=slm_ti"),
        (["method=slm", "method.slm.targets=[outpt]"], r"method.slm.targets.0 must be 'attention_output', 'query'"),
        (["method=slm", "backbone=tiny_gpt2", "method.slm.targets=[query]"], r"it has attention_output"),
        (["method=slm_adapter", "backbone=tiny_gpt2"], r"Type: method.slm.value=jare"),
        (["method=slm_adapter", "method.slm.aggregate=per_group"], r"Type: method.slm.aggregate=mean_sim"),
        (["method=slm", "task_order=[reviews,joint]"], r"Type: method=seq_ft for the upper bound"),
        (["method=slm", "method.slm.encoder.max_length=9999"], r"Type: method.slm.encoder.max_length=null"),
        (["method=slm_prompt"], r"Type: backbone.max_length=N, with N smaller by"),
        (["method=slm", "backbone=tiny_llava"], r"slm supports the families classifier, causal, seq2seq"),
        (["method=slm", "method.slm.encoder.checkpoint=./nowhere"], r"method.slm.encoder.checkpoint=./nowhere: no"),
    ],
)
def test_mistakes(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = [] if "[" in given[0] else [o for o in tiny_encoder() if o.partition("=")[0] not in given[-1]]
    assert run_command([*tiny(tmp_path, *given), *encoder]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_find_targets_of_t5_with_and_without_cross_attention(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "backbone=tiny_t5")
    learner, _, _ = tiny_learner(config)
    plain = [t.name for t in find_targets(learner.model, ["attention_output"], False)]
    crossed = [t.name for t in find_targets(learner.model, ["attention_output"], True)]
    assert len(plain) == 4 and all("SelfAttention.o" in name for name in plain)
    assert len(crossed) == 6


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cl_runner.retrieval import encoder

    monkeypatch.setattr(encoder.importlib.util, "find_spec", lambda name: None)
    chosen = tiny_config(tmp_path, "method=slm", *tiny_encoder(), "method.slm.encoder.max_length=33").method["slm"]
    with pytest.raises(ValueError, match=r"Type: pip install 'cl-runner\[retrieval\]'"):
        encoder.check_encoder(encoder.Encoder.model_validate(chosen["encoder"]))
