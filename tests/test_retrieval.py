"""What retrieval is made of, against brute force: keys, what a text retrieves, the bank, queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import seeded, tiny_config, tiny_encoder
from torch import Tensor
from torch.nn import functional

from cl_runner.retrieval.bank import Bank
from cl_runner.retrieval.keys import hits, new_keys, retrieve, similarities, train_keys, unit_keys

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
