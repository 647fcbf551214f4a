"""Selection: exact counts, ties, draws, computed scores."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cl_runner.sparse import selection as streaming
from cl_runner.sparse.groups import group_sizes
from cl_runner.sparse.selection import Keep, Selection, Ties, random_selection
from cl_runner.sparse.summary import zero_fraction


def select(
    scores: Mapping[str, Tensor],
    groups: Mapping[str, str],
    fraction: float,
    keep: Keep,
    seed: int,
    ties: Ties | None = None,
    counted: Mapping[str, int] | None = None,
) -> Selection:
    """Among all of `scores`, which are at hand."""
    sizes = {name: score.numel() for name, score in scores.items()}
    return streaming.select(scores, sizes, groups, fraction, keep, seed, ties, counted)


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
def test_equals_topk(keep: Keep) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {f"w{i}": torch.randn(50 + i, 7, generator=generator) for i in range(4)}
    selection = select(scores, dict.fromkeys(scores, "all"), 0.037, keep, 0)
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
    drawn = random_selection({"w": 1000}, {"w": "g"}, 0.005, 3)
    tied = select({"w": torch.zeros(1000)}, {"w": "g"}, 0.005, "largest", 3, "random")
    assert chosen(drawn) == {"w": [335, 384, 436, 438, 442]}
    assert chosen(tied) == {"w": [335, 384, 436, 438, 442]}


def test_random_selection() -> None:
    sizes = {"a": 1000, "b": 500, "c": 3}
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
        random_selection({"w": 10}, {"w": "g"}, fraction, 0)


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


@pytest.mark.parametrize("keep", ["smallest", "largest"])
def test_every_kind_of_number(keep: Keep) -> None:
    """Negative, tiny, huge and repeated scores, both zeros, infinities: as a stable sort would have it."""
    values = [3.0, -3.0, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, math.inf, -math.inf, 3.0, 1.0000001, 1.0, 0.0]
    scores = {"w": torch.tensor(values)}
    ordered = sorted(values, reverse=keep == "largest")
    for count in range(1, len(values) + 1):
        selection = select(scores, {"w": "g"}, count / len(values), keep, 0)
        found = sorted(scores["w"][selection.indices["w"]].tolist(), reverse=keep == "largest")
        assert found == torch.tensor(ordered[:count]).tolist()


@pytest.mark.parametrize("keep", ["smallest", "largest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_ties_in_order_against_a_stable_sort(keep: Keep, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of equal scores by name, then position, over the borders of chunks and tensors."""
    monkeypatch.setattr(streaming, "_CHUNK", 7)
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([-math.inf, -3.0, -1.0, -1e-7, -0.0, 0.0, 6e-8, 1.0, 1.0078125, 3.0, math.inf], dtype=dtype)
    scores = {
        name: values[torch.randint(len(values), (size,), generator=generator)].view(shape)
        for name, size, shape in [("b", 24, (4, 6)), ("c", 1, ()), ("a", 15, (15,))]
    }
    names = sorted(scores)
    joined = torch.cat([scores[name].flatten() for name in names]).double() + 0.0
    order = joined.sort(stable=True, descending=keep == "largest").indices
    starts = {"a": 0, "b": 15, "c": 39}
    for count in range(1, 41):
        selection = select(scores, dict.fromkeys(scores, "all"), count / 40, keep, 0, "order")
        found = [position + starts[name] for name in names for position in chosen(selection).get(name, [])]
        assert found == sorted(order[:count].tolist())


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-41, 1e38])
def test_equals_topk_in_chunks(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one sign, or so small or large that few bits differ; the scores grow, so that early bounds are too low."""
    monkeypatch.setattr(streaming, "_CHUNK", 1000)
    drawn = torch.randperm(30_011, generator=torch.Generator().manual_seed(0)).float() + 1
    drawn[:20_000] = drawn[:20_000].sort().values
    joined = drawn / 30_011 * scale
    scores = {"a": joined[:12_345], "b": joined[12_345:12_346], "c": joined[12_346:]}
    for keep, fraction in (("largest", 0.001), ("largest", 0.3), ("smallest", 0.001), ("smallest", 0.77)):
        selection = select(scores, dict.fromkeys(scores, "all"), fraction, keep, 0)  # type: ignore[arg-type]
        found = torch.cat([scores[name][index] for name, index in selection.indices.items()]).sort().values
        expected = joined.topk(math.floor(fraction * 30_011 + 0.5), largest=keep == "largest").values
        assert torch.equal(found, expected.sort().values)


def test_the_default_for_ties() -> None:
    scores, groups = {"w": torch.zeros(100)}, {"w": "g"}
    assert chosen(select(scores, groups, 0.03, "largest", 0)) == {"w": [0, 1, 2]}
    drawn = select(scores, groups, 0.03, "smallest", 0)
    assert drawn.digest() == select(scores, groups, 0.03, "smallest", 0, "random").digest()
    assert chosen(drawn) != {"w": [0, 1, 2]}
    assert chosen(select(scores, groups, 0.03, "smallest", 0, "order")) == {"w": [0, 1, 2]}


def test_drawn_ties_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.randint(3, (500,), generator=generator).float() for name in ("x", "y")}
    groups = dict.fromkeys(scores, "all")
    whole = select(scores, groups, 0.05, "smallest", 2)
    monkeypatch.setattr(streaming, "_CHUNK", 17)
    assert select(scores, groups, 0.05, "smallest", 2).digest() == whole.digest()


class Computed(Mapping[str, Tensor]):
    """Scores that are computed when they are asked for; one at a time may be alive."""

    def __init__(self, scores: dict[str, Tensor]) -> None:
        self.scores = scores
        self.asked: Counter[str] = Counter()
        self.last: weakref.ref[np.ndarray[Any, Any]] | None = None

    def __getitem__(self, name: str) -> Tensor:
        assert self.last is None or self.last() is None, "the scores before are still held"
        self.asked[name] += 1
        array = self.scores[name].numpy().copy()
        self.last = weakref.ref(array)
        return torch.from_numpy(array)  # it and its views keep the array alive

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)


@pytest.mark.parametrize("keep", ["smallest", "largest"])
@pytest.mark.parametrize("ties", ["random", "order"])
def test_computed_scores_are_asked_for_three_times_and_let_go(keep: Keep, ties: Ties) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.randn(40, generator=generator).relu() for name in ("x", "y", "z", "unused")}
    sizes = dict.fromkeys(("x", "y", "z"), 40)
    groups = {"x": "one", "y": "one", "z": "two"}
    computed = Computed(scores)
    selection = streaming.select(computed, sizes, groups, 0.2, keep, 0, ties)
    assert computed.asked == {"x": 3, "y": 3, "z": 3}
    used = {name: scores[name] for name in sizes}
    assert selection.digest() == select(used, groups, 0.2, keep, 0, ties).digest()
    zero_fraction(Computed(used), groups)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given.untyped_storage().data_ptr()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() != self.given:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", ["smallest", "largest"])
@pytest.mark.parametrize("ties", ["random", "order"])
def test_no_copy_of_a_tensor(dtype: torch.dtype, keep: Keep, ties: Ties, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the scores are equal; nothing larger than the 2^16 counts is made of 300 000 entries."""
    monkeypatch.setattr(streaming, "_CHUNK", 1 << 13)
    scores = torch.randn(300_000, generator=torch.Generator().manual_seed(0)).relu().to(dtype)
    with Largest(scores) as made:
        select({"w": scores}, {"w": "g"}, 0.01, keep, 0, ties)
    assert 0 < made.bytes <= (1 << 16) * 8


@pytest.mark.parametrize("keep", ["smallest", "largest"])
@pytest.mark.parametrize("position", [0, 5, 39])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_named(keep: Keep, position: int, sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_CHUNK", 16)
    scores = {"good": torch.arange(40.0), "layer.bad": torch.arange(40.0)}
    scores["layer.bad"][position] = math.copysign(math.nan, sign)
    with pytest.raises(ValueError, match=r"the scores of layer\.bad hold NaN"):
        select(scores, dict.fromkeys(scores, "all"), 0.1, keep, 0)


def test_counted() -> None:
    """As released: the share of all entries, rounded down in binary, is taken of those that are left."""
    scores = {"w": torch.arange(100.0)}
    # 19 = int(0.1 * 190); 28 as 0.29 * 100 is 28.999999999999996, where the share itself gives 29; at most all 100
    for fraction, counted, expected in ((0.1, 190, 19), (0.29, 100, 28), (0.9, 190, 100), (0.001, 1999, 1)):
        for selection in (
            select(scores, {"w": "all"}, fraction, "largest", 0, counted={"all": counted, "others": 5}),
            random_selection({"w": 100}, {"w": "all"}, fraction, 0, counted={"all": counted, "others": 5}),
        ):
            assert selection.count == expected
            assert selection.sizes == {"w": 100}
    assert select(scores, {"w": "all"}, 0.29, "largest", 0).count == 29
    sizes = {"embed": 90, "w": 100, "head": 7}
    assert group_sizes(sizes, {"embed": "one", "head": "two", "w": "one"}) == {"one": 190, "two": 7}


def test_the_count_of_gemma_2b() -> None:
    """0.1 % of 2 614 341 888 entries as released (arXiv 2511.15375), here drawn from three million."""
    selection = random_selection({"w": 3_000_000}, {"w": "all"}, 0.001, 0, counted={"all": 2_614_341_888})
    index = selection.indices["w"]
    assert index.numel() == 2_614_341
    assert bool((index.diff() > 0).all()) and index[0] >= 0 and index[-1] < 3_000_000


def test_a_large_share_is_drawn_uniformly_without_a_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_CHUNK", 64)
    hits = torch.zeros(400)
    neighbours = 0
    for seed in range(300):
        index = random_selection({"w": 400}, {"w": "g"}, 0.375, seed).indices["w"]
        assert len(index) == len(index.unique()) == 150
        hits[index] += 1
        neighbours += int((index.diff() == 1).sum())
    # Each position: 112.5 times, standard deviation 8.4; pairs of neighbours: 399 * 150/400 * 149/399 = 55.9 a draw
    assert hits.min() > 112.5 - 5 * 8.4 and hits.max() < 112.5 + 5 * 8.4
    assert abs(float(hits[:64].mean()) - 112.5) < 5 * 8.4 / 8
    assert abs(neighbours / 300 - 55.9) < 2
    assert random_selection({"w": 400}, {"w": "g"}, 1.0, 0).count == 400
    with Largest(torch.empty(0)) as made:
        random_selection({"w": 100_000}, {"w": "g"}, 0.3, 0)
    assert made.bytes < 100_000 * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("keep", ["smallest", "largest"])
@pytest.mark.parametrize("ties", ["random", "order"])
def test_same_on_a_gpu(keep: Keep, ties: Ties) -> None:
    scores = {"w": torch.randn(100_000, generator=torch.Generator().manual_seed(0)).relu() * 1e-40}
    expected = select(scores, {"w": "g"}, 0.6, keep, 0, ties)
    assert select({"w": scores["w"].cuda()}, {"w": "g"}, 0.6, keep, 0, ties).digest() == expected.digest()
