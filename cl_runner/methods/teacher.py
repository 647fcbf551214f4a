"""What an earlier model says of the examples under way, without a second model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cl_runner.batch import Batch, Output
from cl_runner.learner import Learner


@torch.no_grad()
def output_at(
    learner: Learner, batch: Batch, weights: Mapping[str, Tensor], positions: Mapping[str, Tensor] | None = None
) -> Output:
    """The output at other values of the parameters, without dropout.

    Args:
        weights, positions: as `Learner.at` takes them.
    """
    training = learner.model.training
    learner.model.eval()
    with learner.at(weights, positions):
        output = learner.forward(batch)
    learner.model.train(training)
    return output
