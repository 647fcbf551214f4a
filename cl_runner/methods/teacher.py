"""Passes in the middle of training that are no part of it, such as of an earlier model; no second one is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cl_runner.batch import Batch, Output
from cl_runner.learner import Learner


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The model as it answers, whether it trains or not."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def output_at(
    learner: Learner, batch: Batch, weights: Mapping[str, Tensor], positions: Mapping[str, Tensor] | None = None
) -> Output:
    """The output at other values of the parameters, without dropout.

    Args:
        weights, positions: as `Learner.at` takes them.
    """
    with without_dropout(learner.model), learner.at(weights, positions):
        return learner.forward(batch)
