"""One low-rank adapter learns task after task (LoRA, Hu et al. 2022, arXiv:2106.09685): SeqLoRA of PIECE and O-LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cl_runner.config import Sharded
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.low_rank import LowRank, name_of
from cl_runner.needs import Outline
from cl_runner.said import Said


@dataclass
class SeqLoRA(LowRank):
    """DoRA learns the length of each row of W beside its direction (Liu et al. 2024, arXiv:2402.09353).

    PiSSA begins with the largest singular values of W, and W with the rest (Meng et al. 2024, arXiv:2404.02948).
    """

    dora: bool
    start: Literal["zero", "pissa"]

    sharded: ClassVar[Sharded] = "always"
    learns: ClassVar[Said] = "one adapter of rank {rank}, and a classifier's head"

    def peft_options(self) -> dict[str, Any]:
        return super().peft_options() | {
            "use_dora": self.dora,
            "init_lora_weights": "pissa" if self.start == "pissa" else True,
        }

    def adapter_of(self, learner: Learner, task: Task) -> str:
        return name_of(0)

    def count(self, outline: Outline) -> int:
        return 1
