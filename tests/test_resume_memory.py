"""Runs with a memory that die in the middle and end with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_resume import command, dies_and_goes_on
from tiny import some, tiny_words

pytestmark = pytest.mark.usefixtures("no_pictures")


ROWS = [
    ("[replay,lwf,ewc]", "tiny_bert", (4, 9)),
    ("[replay_online,lwf,migu,piece_s]", "tiny_llama", (9,)),
    ("[der,lwf]", "tiny_t5", (9,)),
    ("[der,ewc,piece_s]", "tiny_bert", (4, 9)),
    ("[masked_kl,agem,si,mas,piece_s]", "tiny_bert", (9,)),
    ("[opr,ogd,bitfit]", "tiny_bert", (9,)),
    ("[gem,lwf]", "tiny_llama", (9,)),
]


@pytest.mark.parametrize(("method", "backbone", "deaths"), some(ROWS, 7))
def test_death_with_a_memory(
    method: str, backbone: str, deaths: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memories, counters and kept logits in the middle of a step's draws, with passes and dropout."""
    options = [f"method={method}", f"backbone={backbone}", "backbone.dropout=0.1", "importance.cache_gb=0"]
    options += [
        "training.base.micro_batch=3",
        "training.incremental.micro_batch=3",
        "evaluation.tasks=seen",
        "task_order.base.train=24",
    ]
    options += [f"method.{node}.size=9" for node in ("replay_online", "der") if node in method]
    if "[replay," in method:
        options += ["method.replay.share=0.25", "method.replay.way=periodic", "method.replay.every=2"]

    def typed(root: Path) -> list[str]:
        return tiny_words(*command(root), *options)

    dies_and_goes_on(typed, deaths, "accuracy.csv", tmp_path, monkeypatch)
