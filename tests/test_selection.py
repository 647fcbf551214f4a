"""Selection: exact counts, ties, groups, patterns."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from cl_runner.sparse.selection import (
    Selection,
    layer_groups,
    match,
    random_selection,
    select,
    zero_fraction,
)

BERT = [
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.LayerNorm.bias",
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.0.output.dense.bias",
    "bert.encoder.layer.10.attention.self.query.weight",
    "bert.pooler.dense.weight",
    "classifier.weight",
]


def chosen(selection: Selection) -> dict[str, list[int]]:
    return {name: index.tolist() for name, index in selection.indices.items()}


def test_hand_worked() -> None:
    scores = {
        "a": torch.tensor([[5.0, 1.0], [4.0, 2.0]]),
        "b": torch.tensor([0.5, 9.0]),
        "c": torch.tensor([3.0, 3.5, 8.0]),
    }
    groups = {"a": "one", "b": "one", "c": "two"}
    # group one: round(0.5 * 6) = 3 of 5 1 4 2 | .5 9; group two: 0.5 * 3 = 1.5, half up: 2 of 3 3.5 8
    smallest = select(scores, groups, 0.5, "smallest", 0)
    assert chosen(smallest) == {"a": [1, 3], "b": [0], "c": [0, 1]}
    assert (smallest.count, smallest.fraction) == (5, 5 / 9)
    assert smallest.sizes == {"a": 4, "b": 2, "c": 3}
    assert all(index.dtype == torch.int64 for index in smallest.indices.values())
    largest = select(scores, groups, 0.5, "largest", 0)
    assert chosen(largest) == {"a": [0, 2], "b": [1], "c": [1, 2]}
    # 0.12 * 9 > 1 in all, though less than half an entry of group two: each group gives one at least
    assert chosen(select(scores, groups, 0.12, "largest", 0)) == {"b": [1], "c": [2]}
    assert select(scores, groups, 1.0, "smallest", 0).count == 9


@pytest.mark.parametrize("keep", ["smallest", "largest"])
def test_equals_topk(keep: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {f"w{i}": torch.randn(50 + i, 7, generator=generator) for i in range(4)}
    selection = select(scores, dict.fromkeys(scores, "all"), 0.037, keep, 0)  # type: ignore[arg-type]
    joined = torch.cat([score.flatten() for score in scores.values()])
    count = math.floor(0.037 * len(joined) + 0.5)
    expected = joined.topk(count, largest=keep == "largest").values.sort().values
    found = torch.cat([scores[name].flatten()[index] for name, index in selection.indices.items()])
    assert torch.equal(found.sort().values, expected)
    assert all(bool((index.diff() > 0).all()) for index in selection.indices.values())


def test_ties_are_drawn_uniformly() -> None:
    """Two of four zeros beside one smaller and one larger score: every pair of the zeros, equally often."""
    scores = {"b": torch.tensor([0.0, 7.0, 0.0]), "a": torch.tensor([-1.0, 0.0, 0.0])}
    groups = {"a": "g", "b": "g"}
    counts: Counter[tuple[str, ...]] = Counter()
    for seed in range(600):
        found = chosen(select(scores, groups, 0.5, "smallest", seed))
        picked = sorted(f"{name}{i}" for name, index in found.items() for i in index)
        assert "a0" in picked and "b1" not in picked and len(picked) == 3
        counts[tuple(picked)] += 1
    assert len(counts) == 6
    assert all(60 <= count <= 140 for count in counts.values())  # expected 100, standard deviation 9


def test_depends_on_seed_and_group_but_not_on_order() -> None:
    scores = {name: torch.zeros(200) for name in ("x", "y", "z")}
    groups = {"x": "one", "y": "one", "z": "two"}
    first = select(scores, groups, 0.1, "smallest", 5)
    turned = select(dict(reversed(scores.items())), groups, 0.1, "smallest", 5)
    assert first.digest() == turned.digest()
    assert first.digest() != select(scores, groups, 0.1, "smallest", 6).digest()
    # A group's draw does not depend on the other groups.
    alone = select({"z": scores["z"]}, groups, 0.1, "smallest", 5)
    assert torch.equal(alone.indices["z"], first.indices["z"])


def test_same_on_every_machine() -> None:
    """Locked: a resumed run, or another machine, must draw the same entries."""
    drawn = random_selection({"w": torch.Size([1000])}, {"w": "g"}, 0.005, 3)
    tied = select({"w": torch.zeros(1000)}, {"w": "g"}, 0.005, "largest", 3)
    assert chosen(drawn) == {"w": [335, 384, 436, 438, 442]}
    assert chosen(tied) == {"w": [335, 384, 436, 438, 442]}


def test_random_selection() -> None:
    sizes = {"a": torch.Size([100, 10]), "b": torch.Size([500]), "c": torch.Size([3])}
    groups = {"a": "one", "b": "one", "c": "two"}
    hits = torch.zeros(1500)
    for seed in range(200):
        selection = random_selection(sizes, groups, 0.1, seed)
        joined = torch.cat([selection.indices["a"], selection.indices["b"] + 1000])
        assert len(joined) == len(joined.unique()) == 150
        assert selection.indices["c"].numel() == 1
        hits[joined] += 1
    # Each position is drawn 20 times on average, standard deviation 4.2.
    assert hits.min() >= 2 and hits.max() <= 45
    assert abs(float(hits[:1000].mean()) - 20) < 1
    assert random_selection(sizes, groups, 1.0, 0).count == 1503
    assert random_selection(sizes, groups, 0.1, 0).digest() != random_selection(sizes, groups, 0.1, 1).digest()


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_fractions(fraction: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        select({"w": torch.ones(10)}, {"w": "g"}, fraction, "smallest", 0)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        random_selection({"w": torch.Size([10])}, {"w": "g"}, fraction, 0)


def test_a_fraction_that_selects_nothing() -> None:
    with pytest.raises(ValueError, match=r"0\.05 selects none of 10 weights"):
        select({"w": torch.ones(10)}, {"w": "g"}, 0.05, "smallest", 0)


def test_empty_tensors_are_left_out() -> None:
    scores = {"w": torch.ones(10), "none": torch.empty(0)}
    assert list(select(scores, {"w": "g", "none": "h"}, 0.5, "smallest", 0).indices) == ["w"]


def test_decimal_rounding() -> None:
    """0.145 * 100 is 14.499999999999998 in binary; the share that was typed rounds half up to 15."""
    scores: dict[str, Tensor] = {"w": torch.arange(100.0)}
    assert select(scores, {"w": "g"}, 0.145, "smallest", 0).count == 15


def test_zero_fraction() -> None:
    scores = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.0, -0.0]), "c": torch.tensor([1e-30])}
    assert zero_fraction(scores, {"a": "one", "b": "one", "c": "two"}) == {"one": 0.75, "two": 0.0}


def test_layer_groups() -> None:
    assert list(layer_groups(BERT, "layer").values()) == [
        "bert.embeddings",
        "bert.embeddings",
        "bert.encoder.layer.0",
        "bert.encoder.layer.0",
        "bert.encoder.layer.10",
        "bert.pooler",
        "classifier",
    ]
    others = {
        "roberta.encoder.layer.3.output.dense.bias": "roberta.encoder.layer.3",
        "classifier.dense.weight": "classifier",
        "classifier.out_proj.bias": "classifier",
        "transformer.h.7.attn.c_attn.weight": "transformer.h.7",
        "transformer.wte.weight": "transformer.wte",
        "model.layers.31.mlp.up_proj.weight": "model.layers.31",
        "model.embed_tokens.weight": "model.embed_tokens",
        "lm_head.weight": "lm_head",
        "encoder.block.2.layer.0.SelfAttention.q.weight": "encoder.block.2",
        "scale": "scale",
    }
    assert layer_groups(list(others), "layer") == others
    # Patterns may leave the embeddings and the pooler only.
    assert set(layer_groups([BERT[0], BERT[5]], "layer").values()) == {"bert.embeddings", "bert.pooler"}
    assert layer_groups(BERT, "tensor") == {name: name for name in BERT}
    assert set(layer_groups(BERT, "global").values()) == {"all"}


def test_match() -> None:
    assert match(BERT, [], []) == BERT
    assert match(BERT, ["*.query.weight", "classifier.*"], ["*.10.*"]) == [BERT[2], BERT[6]]
    assert match(BERT, [], ["*embeddings*"]) == BERT[2:]


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["*.qeury.*"], [], r"'\*\.qeury\.\*' matches no parameter\. Nearest: .*query.*type '\*query\*'"),
        ([], ["embeddings"], r"cover the whole name, such as 'bert\.embeddings\.word.*type '\*embeddings\*'"),
        (["Xyz*"], [], r"'Xyz\*' matches no parameter\. Nearest: "),
        (["classifier.*"], ["class*"], "no parameter is left"),
    ],
)
def test_patterns_that_match_nothing(include: list[str], exclude: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match(BERT, include, exclude)


@pytest.mark.parametrize("keep", ["smallest", "largest"])
def test_every_kind_of_number(keep: str) -> None:
    """Negative, tiny, huge and repeated scores, both zeros, infinities: as a stable sort would have it."""
    values = [3.0, -3.0, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, math.inf, -math.inf, 3.0, 1.0000001, 1.0, 0.0]
    scores = {"w": torch.tensor(values)}
    ordered = sorted(values, reverse=keep == "largest")
    for count in range(1, len(values) + 1):
        selection = select(scores, {"w": "g"}, count / len(values), keep, 0)  # type: ignore[arg-type]
        found = sorted(scores["w"][selection.indices["w"]].tolist(), reverse=keep == "largest")
        assert found == torch.tensor(ordered[:count]).tolist()
