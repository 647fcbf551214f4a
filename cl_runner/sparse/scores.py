"""Scores of weights from their importance: what a selection ranks.

G and F are the sums over units of `importance.measure`, per weight. The second-order score and its variants are those
of PIECE (arXiv:2511.15375) as the released code computes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import get_args

import torch
from torch import Tensor

from cl_runner.config import Score
from cl_runner.sparse.importance import Importance

#: Scores that a pass over data comes before, and those of them that need its G.
NEEDS_PASS = frozenset(get_args(Score)) - {"magnitude", "random"}
NEEDS_GRADIENT = NEEDS_PASS - {"fisher"}
#: Those that hold the mean over all weights.
NEEDS_MEAN = frozenset({"gradient_over_shifted_fisher", "gradient_over_shifted_root"})


def scores(
    kind: Score,
    importance: Importance | None,
    weights: Mapping[str, Tensor],
    *,
    damping: float = 1.0,
    seed: int = 0,
) -> Mapping[str, Tensor]:
    """Non-negative fp32 scores by parameter, each computed when it is looked up, so that no second copy exists.

    With m the mean of |G| over all measured weights:

        fisher                        F                        PIECE-F, and PE eq. 1 up to the factor 1/B
        second_order                  |G| / sqrt(F + damping)  PIECE-S with damping 1 (the release's new_2)
        gradient_over_fisher          |G| / sqrt(F)            the release's new_1
        gradient_over_shifted_fisher  |G| / sqrt(F + m)        the release's new_3
        gradient_over_shifted_root    |G| / (sqrt(F) + m)      the release's new_4
        abs_grad                      |G|
        magnitude                     |weight|
        random                        uniform in [0, 1), the same for a parameter on every machine

    A quotient is 0 where its denominator is: no unit had a gradient there. Sums in bf16 are combined in bf16, as the
    release does.

    Args:
        importance: needed by the kinds in NEEDS_PASS, with G by those in NEEDS_GRADIENT.
        weights: the parameters to score; of a pass, all that it measured are scored.
        damping: of second_order; the score is not free of scale, so 1 belongs to sums over units.
        seed: of random.

    Raises:
        ValueError: at look-up, a score is not finite; the message names the tensor.
    """
    return _Scores(kind, importance, weights, damping, seed)


class _Scores(Mapping[str, Tensor]):
    def __init__(
        self, kind: Score, importance: Importance | None, weights: Mapping[str, Tensor], damping: float, seed: int
    ):
        assert kind in get_args(Score), kind
        assert importance is not None or kind not in NEEDS_PASS, f"{kind} needs a pass over data"
        self._fisher = importance.fisher if importance is not None else {}
        self._gradient: Mapping[str, Tensor] = {}
        if kind in NEEDS_GRADIENT:
            assert importance is not None and importance.gradient is not None, f"{kind} needs the sum of gradients"
            self._gradient = importance.gradient
        self._kind = kind
        self._weights = weights
        self._damping = damping
        self._seed = seed
        self._names = list(self._fisher if kind in NEEDS_PASS else weights)
        self._shift: float | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        if self._kind == "random":
            digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            weight = self._weights[name]
            return torch.rand(weight.shape, generator=generator).to(weight.device)
        if self._kind == "magnitude":
            score = self._weights[name].detach().abs()
        elif self._kind == "fisher":
            score = self._fisher[name]
        else:
            score = self._gradient[name].abs()
            if self._kind != "abs_grad":
                denominator = self._denominator(self._fisher[name])
                score = score.div_(denominator).masked_fill_(denominator == 0, 0.0)
        score = score.float()
        if score.numel() and not bool(torch.isfinite(score.amax())):
            raise ValueError(
                f"the score {self._kind} of {name} is not finite: its weights or gradients have overflowed"
            )
        return score

    def _denominator(self, fisher: Tensor) -> Tensor:
        if self._kind == "second_order":
            return (fisher + self._damping).sqrt_()
        if self._kind == "gradient_over_fisher":
            return fisher.sqrt()
        if self._kind == "gradient_over_shifted_fisher":
            return (fisher + self._mean_gradient()).sqrt_()
        return fisher.sqrt().add_(self._mean_gradient())

    def _mean_gradient(self) -> float:
        """Mean of |G| over all weights."""
        if self._shift is None:
            total = sum(float(torch.linalg.vector_norm(g, 1, dtype=torch.float64)) for g in self._gradient.values())
            self._shift = total / sum(g.numel() for g in self._gradient.values())
        return self._shift
