"""The quadratic penalty of several regularisers: weights are pulled back to what they were before the task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cl_runner import distributed
from cl_runner.learner import Learner
from cl_runner.shards import local


def pull_back(learner: Learner, strength: float, importance: Mapping[str, Tensor] | None = None) -> float:
    """Add the gradient of strength * sum_i importance_i (theta_i - theta_i_old)^2 over the weights that train.

    The penalty is quadratic, so its gradient is written down, not traced.

    Args:
        importance: by name, of what trains or of whole tensors, 0 where there is none; None = 1 everywhere.

    Returns:
        The penalty.
    """
    penalty, own = 0.0, 0.0
    for name, values in learner.trained.items():
        # From theta_old, of the weights that train.
        moved = values.detach() - local(learner.before[name]).to(values.device)
        pull = moved
        if importance is not None and name not in importance:  # it exists since this task
            continue
        if importance is not None:
            weight = importance[name]
            fits = weight.shape == learner.before[name].shape and not learner.rows_of(name)
            pull = (weight if fits else local(learner.part(name, weight))).to(values.device) * moved
        gradient = 2 * strength * pull
        values.grad = gradient if values.grad is None else values.grad.add_(gradient)
        if learner.rows_of(name):
            own += float((pull * moved).sum())
        else:
            penalty += float((pull * moved).sum())
    return strength * (penalty + (sum(distributed.gathered(own)) if learner.shards is not None else own))
