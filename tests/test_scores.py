"""Scores against brute force in double precision."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_runner.config import Score
from cl_runner.sparse.importance import Importance, measure
from cl_runner.sparse.scores import NEEDS_GRADIENT, NEEDS_PASS, scores

WEIGHTS = {"w": torch.zeros(4)}
HAND = Importance(
    gradient={"w": torch.tensor([3.0, -4.0, 0.0, 1.0])},
    fisher={"w": torch.tensor([8.0, 15.0, 0.0, 2.0])},
    units=4,
    examples=4,
)
M = 2.0  # mean of |G|


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("fisher", [8.0, 15.0, 0.0, 2.0]),
        ("second_order", [3 / 9**0.5, 4 / 16**0.5, 0.0, 1 / 3**0.5]),
        ("gradient_over_fisher", [3 / 8**0.5, 4 / 15**0.5, 0.0, 1 / 2**0.5]),
        ("gradient_over_shifted_fisher", [3 / 10**0.5, 4 / 17**0.5, 0.0, 1 / 4**0.5]),
        ("gradient_over_shifted_root", [3 / (8**0.5 + M), 4 / (15**0.5 + M), 0.0, 1 / (2**0.5 + M)]),
        ("abs_grad", [3.0, 4.0, 0.0, 1.0]),
    ],
)
def test_hand_worked(kind: Score, expected: list[float]) -> None:
    torch.testing.assert_close(scores(kind, HAND, WEIGHTS)["w"], torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", get_args(Score))
def test_brute_force(kind: Score) -> None:
    """Two layers, three examples, autograd in double precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(3, 4), torch.tensor([0, 2, 1])

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")

    parameters = dict(model.named_parameters())
    found = measure(model, lambda: [{"x": x, "y": y}], loss, list(parameters), gradient=kind in NEEDS_GRADIENT)
    mapping = scores(kind, found if kind in NEEDS_PASS else None, parameters, damping=0.25)
    model.double()
    per_example = [
        torch.autograd.grad(loss(model, {"x": x[i : i + 1].double(), "y": y[i : i + 1]}), list(model.parameters()))
        for i in range(3)
    ]
    gradients = [torch.stack(g).sum(0).abs() for g in zip(*per_example, strict=True)]
    fishers = [torch.stack(g).square().sum(0) for g in zip(*per_example, strict=True)]
    m = float(torch.cat([g.flatten() for g in gradients]).mean())
    assert list(mapping) == list(parameters) and len(mapping) == 4
    for g, f, (name, weight) in zip(gradients, fishers, parameters.items(), strict=True):
        expected = {
            "fisher": f,
            "second_order": g / (f + 0.25).sqrt(),
            "gradient_over_fisher": g / f.sqrt(),
            "gradient_over_shifted_fisher": g / (f + m).sqrt(),
            "gradient_over_shifted_root": g / (f.sqrt() + m),
            "abs_grad": g,
            "magnitude": weight.detach().abs(),
        }
        score = mapping[name]
        assert score.dtype == torch.float32 and score.shape == weight.shape and not score.requires_grad
        assert bool((score >= 0).all())
        if kind != "random":
            torch.testing.assert_close(score.double(), expected[kind], rtol=1e-4, atol=1e-7)


def test_computed_at_every_look_up_and_inputs_untouched() -> None:
    before = {"g": HAND.gradient["w"].clone(), "f": HAND.fisher["w"].clone()}  # type: ignore[index]
    for kind in get_args(Score):
        mapping = scores(kind, HAND, WEIGHTS)
        assert torch.equal(mapping["w"], mapping["w"])
    assert HAND.gradient is not None
    assert torch.equal(HAND.gradient["w"], before["g"]) and torch.equal(HAND.fisher["w"], before["f"])


def test_random_depends_on_seed_and_name_only() -> None:
    first = scores("random", None, {"a": torch.zeros(50), "b": torch.zeros(50)}, seed=1)
    alone = scores("random", None, {"b": torch.zeros(50)}, seed=1)
    other = scores("random", None, {"b": torch.zeros(50)}, seed=2)
    assert torch.equal(first["b"], alone["b"])
    assert not torch.equal(first["a"], first["b"]) and not torch.equal(alone["b"], other["b"])
    assert float(first["a"].min()) >= 0 and float(first["a"].max()) < 1


def test_bf16_as_released() -> None:
    """F + 1 is 1 in bf16 for F up to 2^-8: PIECE-S is then |G|, as in the release; in fp32 it is not."""
    g, f = torch.tensor([0.5]), torch.tensor([0.0035])
    half = Importance({"w": g.bfloat16()}, {"w": f.bfloat16()}, 1, 1)
    assert scores("second_order", half, WEIGHTS)["w"].tolist() == [0.5]
    assert scores("second_order", half, WEIGHTS)["w"].dtype == torch.float32
    assert scores("second_order", Importance({"w": g}, {"w": f}, 1, 1), WEIGHTS)["w"].item() < 0.4995


def test_no_gradient_anywhere() -> None:
    zero = Importance({"w": torch.zeros(3)}, {"w": torch.zeros(3)}, 1, 1)
    for kind in NEEDS_PASS:
        assert scores(kind, zero, WEIGHTS, damping=0.0)["w"].tolist() == [0.0] * 3  # type: ignore[arg-type]


def test_what_is_not_finite_is_named() -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        broken = {"fine": torch.ones(2), "layer.weight": torch.tensor([1.0, value])}
        mapping = scores("magnitude", None, broken)
        assert mapping["fine"].tolist() == [1.0, 1.0]
        with pytest.raises(ValueError, match=r"the score magnitude of layer\.weight is not finite"):
            mapping["layer.weight"]
