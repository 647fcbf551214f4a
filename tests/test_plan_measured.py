"""The memory that a plan says for a method, against what lives while it learns two tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import Row, nodes_for
from tiny import Losses, some, tiny_config, tiny_learner

from cl_runner.combinations import plainest
from cl_runner.learn import learn_task
from cl_runner.planning import peaks
from cl_runner.planning.imitation import Ledger
from cl_runner.planning.numbers import counts_of, setting_of, skeleton, text_lengths
from cl_runner.planning.planner import Planner

#: Weights of 3 MB, few and short texts of one length: what methods hold of weights and gradients is most of it.
WIDE = (
    "method=seq_ft",
    "++backbone.architecture={hidden_size: 192, intermediate_size: 512}",
    "task_order.base.train=8",
    "task_order.incremental.train=6",
    "training.base.batch_size=4",
    "training.incremental.batch_size=3",
    "backbone.max_length=19",
    "evaluation.batch_size=2",
    "training.max_steps=2",
)
#: Of each class the plainest preset, and chains of what holds most; methods that retrieve have tests of their own.
CHOICES = [option for node, option in plainest().items() if node not in ("slm", "icl")]
CHOICES += ["ewc_online", "lwf_piece", "[ogd,bitfit]", "[ogd,inc_lora]"]


@pytest.mark.parametrize("choice", some(CHOICES, 3))
def test_a_plan_is_within_a_quarter_of_what_lives(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for share in ("HEAP_SHARE", "PROMPT_HEAP_SHARE"):
        monkeypatch.setattr(peaks, share, 1.0)  # what the heap keeps beside it is measured on real runs
    row = Row(choice, 1)
    # What learns its own answers is a language model.
    own = [] if "bert" in row.claimed else [f"backbone=tiny_{row.claimed[0]}"]
    config = tiny_config(tmp_path, *own, *WIDE).model_copy(update={"method": nodes_for(row)})
    learner, method, tasks = tiny_learner(config)
    weights = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    with Ledger() as ledger:
        for task in tasks[:2]:
            learn_task(learner, method, task, config.training, Losses())
    s = setting_of(
        config, counts_of(config, tasks), skeleton(config.backbone, 3), "cpu", text_lengths(learner.family, tasks)
    )
    planner = Planner(lambda: skeleton(config.backbone, 3), 0)
    planned = max(size for phase, size in planner.memory(s).items() if phase != "evaluate")
    assert planned == pytest.approx(weights + ledger.peak_bytes, rel=0.25), planner.memory(s)
