"""What retrieval is made of, against brute force: keys, what a text retrieves, the bank, queries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import seeded, tiny_config, tiny_encoder
from torch import Tensor
from torch.nn import functional

from cl_runner.layers.values import Retrieved
from cl_runner.retrieval.bank import Bank
from cl_runner.retrieval.keys import (
    hits,
    key_schedule,
    new_keys,
    own_weight,
    retrieve,
    similarities,
    train_keys,
    unit_keys,
    unmoved,
)
from cl_runner.retrieval.measures import Served

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


def released_softmax(cosines: Tensor, top_k: int, temperature: float) -> tuple[list[int], list[float]]:
    """The release's option, of a batch: probabilities over all slots by group and text, their mean, the largest."""
    groups, texts, count = cosines.shape
    means = [0.0] * count
    for group in range(groups):
        for text in range(texts):
            powers = [math.exp(float(cosines[group, text, slot]) / temperature) for slot in range(count)]
            means = [m + p / sum(powers) / (groups * texts) for m, p in zip(means, powers, strict=True)]
    chosen = sorted(range(count), key=lambda slot: -means[slot])[:top_k]
    return chosen, [means[slot] / sum(means[slot] for slot in chosen) for slot in chosen]


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
    for whole_batch in (False, True):
        soft = retrieve(cosines, 2, weighting="softmax", temperature=0.5, whole_batch=whole_batch)
        slots, weights = released_softmax(cosines, 2, 0.5)
        if whole_batch:
            assert all(row == slots for row in soft.slots.tolist())
            assert soft.weights[2].tolist() == pytest.approx(weights, abs=1e-6)
        else:
            alone = [released_softmax(cosines[:, row : row + 1], 2, 0.5) for row in range(5)]
            assert soft.slots.tolist() == [slots for slots, _ in alone]
            assert torch.allclose(soft.weights, torch.tensor([weights for _, weights in alone]), atol=1e-6)


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


def test_what_a_text_is_given_of_its_own_task_by_hand() -> None:
    found = Retrieved(torch.tensor([[0, 5], [3, 4]]), torch.tensor([[0.4, 0.6], [0.25, 0.75]]))
    assert own_weight(found, torch.tensor([0, 2]), torch.tensor([2, 4])).tolist() == pytest.approx([0.4, 0.25])
    served = Served()
    served.add(torch.tensor([0, 1, 1]), torch.tensor([0.5, 0.75, 0.25]))
    served.add(torch.tensor([0]), torch.tensor([0.51]))
    assert served.by_task(["a", "b", "c"]) == {
        "a": {"served_percent": 50.0, "own_weight_percent": pytest.approx(50.5)},  # half is not more than half
        "b": {"served_percent": 50.0, "own_weight_percent": 50.0},
    }
    served.forget()
    assert served.by_task(["a"]) == {}


def test_few_texts_make_as_many_steps_as_many() -> None:
    assert key_schedule(460_000, 4, 3, 2, 1000) == (3, 2)
    assert key_schedule(280, 4, 3, 2, 1000) == (15, 10)  # 70 steps an epoch
    assert key_schedule(280, 4, 3, 2, 0) == (3, 2)
    assert key_schedule(5, 16, 2, 2, 1000) == (1000, 1000)
    assert key_schedule(280, 4, 0, 2, 1000) == (0, 2), "no epochs asked for"


def test_keys_that_do_not_move_are_counted() -> None:
    keys = torch.randn(2, 3, 4, generator=seeded(8))
    learned = train_keys(keys, torch.randn(1, 8, generator=seeded(9)), **options())
    assert unmoved(keys, learned) == 4 and unmoved(keys, keys) == 6


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


# queries


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


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cl_runner.retrieval import encoder

    monkeypatch.setattr(encoder.importlib.util, "find_spec", lambda name: None)
    chosen = tiny_config(tmp_path, "method=slm", *tiny_encoder(), "method.slm.encoder.max_length=33").method["slm"]
    with pytest.raises(ValueError, match=r"Type: pip install 'cl-runner\[retrieval\]'"):
        encoder.check_encoder(encoder.Encoder.model_validate(chosen["encoder"]))
