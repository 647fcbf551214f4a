"""How long a task trains: as its epochs say, or until it has cost what all methods may spend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cl_runner.config import Budget

Kind = Literal["steps", "tokens", "seconds", "flops"]
#: Steps that a task limited by seconds is divided into, for the schedule of its learning rate.
NOMINAL_STEPS = 1000.0


def asked(budget: Budget) -> tuple[Kind, float] | None:
    """What a task may spend, and in which unit; None = its epochs say how long it trains."""
    kinds: tuple[Kind, ...] = ("steps", "tokens", "seconds", "flops")
    return next(((kind, float(amount)) for kind in kinds if (amount := getattr(budget, kind)) is not None), None)


@dataclass(frozen=True)
class Course:
    """The length of a task's training.

    Attributes:
        kind: what is counted; None = steps, as the epochs say.
        amount: of it. The step that reaches it is the last one.
        steps: exact where steps are counted; else what is expected, which only a schedule's warm-up goes by.
        per_token: what a token costs, where tokens or their products are counted.
    """

    kind: Kind | None
    amount: float
    steps: float
    per_token: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether the number of steps is known."""
        return self.kind in (None, "steps")

    def spent(self, step: int, tokens: int, seconds: float) -> float:
        """What `step` steps, which read `tokens` tokens, and `seconds` seconds amount to."""
        if self.kind == "seconds":
            return seconds
        return step if self.exact else tokens * self.per_token

    def over(self, spent: float) -> bool:
        """Whether nothing is left."""
        return spent >= self.amount

    def place(self, spent: float) -> float:
        """Where training stands, in steps of `steps`: what its learning rate goes by."""
        return spent if self.exact else min(spent / self.amount, 1.0) * self.steps

    def shown(self, step: int, spent: float) -> int:
        """How many steps there will be, as far as is known after `step` of them."""
        if self.exact:
            return int(self.steps)
        if self.over(spent):
            return step
        return max(step + 1, round(step * self.amount / spent) if spent else math.ceil(self.steps))


def course_of(budget: Budget, steps: int, tokens: int, flops_per_token: float | None) -> Course:
    """The course of a task.

    Args:
        steps: of its epochs; 0 = it has none, and trains nothing.
        tokens: that its own examples have in these steps.
        flops_per_token: as its plan says; needed for a budget of flops.
    """
    found = asked(budget)
    if found is None or steps == 0:
        return Course(None, steps, steps)
    kind, amount = found
    if kind == "steps":
        return Course(kind, amount, amount)
    if kind == "seconds":
        return Course(kind, amount, NOMINAL_STEPS)
    per_token = 1.0
    if kind == "flops":
        if not flops_per_token:
            raise ValueError(
                "training.budget.flops counts products as the plan of a run prices them, and there is no plan of this "
                "one (see its log). Type: training.budget.tokens=NUMBER"
            )
        per_token = flops_per_token
    return Course(kind, amount, max(1.0, amount / (per_token * max(1, tokens) / steps)), per_token)
