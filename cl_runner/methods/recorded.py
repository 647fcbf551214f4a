"""Outputs of the model as it is, recorded before a task trains: those that LwF holds on to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_runner import distributed
from cl_runner.data.example import Example
from cl_runner.learner import Learner
from cl_runner.passes import idle_pass

#: Examples of one pass.
AT_ONCE = 64


@torch.no_grad()
def record_logits(learner: Learner, examples: Sequence[Example]) -> Tensor:
    """Logits [examples, V] at the current weights, without dropout; for families with one target an example."""
    learner.model.eval()
    found: Tensor | None = None
    done = 0
    for number, positions in enumerate(learner.by_length(examples, AT_ONCE)):
        done += len(positions)
        # The first batch tells the width to every process of the run.
        if number == 0 or distributed.mine(number):
            logits = learner.forward(learner.collate([examples[i] for i in positions])).logits
            if found is None:
                found = logits.new_zeros(len(examples), logits.shape[1])
            if distributed.mine(number):
                found[torch.tensor(positions, device=found.device)] = logits
        if distributed.round_ends(number) or done == len(examples):
            if learner.shards is not None:
                learner.shards.wait(idle_pass(learner, examples[positions[-1]]))
            learner.progress("record outputs", done, len(examples))
    assert found is not None, "there are no examples"
    distributed.add([found])
    return found
