"""Self-distillation fine-tuning (Shenfeld et al. 2026, arXiv:2601.19897): who is shown the answer teaches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cl_runner.batch import Batch, Output, Part
from cl_runner.config import Count, Fraction, Positive, Sampling, Whole
from cl_runner.data.task import Task
from cl_runner.families.base import IGNORED, Answering
from cl_runner.learner import Learner
from cl_runner.methods.base import Method
from cl_runner.methods.own_answers import own_answers
from cl_runner.methods.teacher import output_at
from cl_runner.needs import Needs, Outline, Writes
from cl_runner.said import Said


def answer_means(values: Tensor, rows: Tensor, skipped: int) -> Tensor:
    """The mean [examples] of each answer's values [N] after its first `skipped` ones; 0 of an answer without more.

    Args:
        rows: [N], which example each value belongs to, in order.
    """
    counts = rows.bincount()
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    kept = (places >= skipped).to(values.dtype)
    sums, numbers = (values.new_zeros(len(counts)).index_add(0, rows, each) for each in (values * kept, kept))
    return sums / numbers.clamp(min=1)


@dataclass
class SDFT(Method):
    """L = mean over answers of the mean over their tokens of KL(p || q), the answers y sampled from p itself.

    p(. | x, y before) is the student, the model that reads the question x alone. q(. | x, c, y before) is the teacher:
    the same model at a moving average of what trains, which reads the right answer as a demonstration c after the
    question. The data's answers enter nowhere else. The teacher's values begin as the task does, and go by
    v <- (1 - rate) v + rate w after every step of the optimizer; what does not train is held once.

    As its release: the sum over the whole vocabulary at every token of the answer, the mean over answers (not over all
    tokens of a batch), a teacher without dropout or gradient. Its two settings that differ from the paper's equation
    are options: KL(q || p), and the first three tokens left out.
    """

    direction: Literal["student_to_teacher", "teacher_to_student"]
    rate: Fraction
    skipped_tokens: Whole
    temperature: Positive
    max_new_tokens: Count | None
    batch_size: Count
    demonstration: str

    state: ClassVar[tuple[str, ...]] = ("values",)
    families: ClassVar[tuple[str, ...]] = ("causal", "seq2seq", "image_text")
    measures: ClassVar[bool] = False
    reads_chats: ClassVar[bool] = False  # the demonstration stands behind a question that is one text
    writes: ClassVar[bool] = True
    keeps: ClassVar[Said] = "while a task trains, the teacher's values of what trains: 4 bytes per trained weight"
    old_data: ClassVar[Said] = ""
    told: ClassVar[Said] = ""

    def __post_init__(self) -> None:
        self.values: dict[str, Tensor] = {}  # of the teacher, by name, in the shape of `part`, fp32

    def check(self, skeleton: nn.Module, longest: int) -> None:
        key = f"method.{self.node}.demonstration"
        try:
            shown = self.demonstration.format(answer="")
        except (KeyError, IndexError, ValueError):
            shown = None
        if shown is None or "{answer}" not in self.demonstration:
            raise ValueError(
                f"{key} holds {{answer}} once, where the right answer stands, and no other braces; a brace itself is "
                f"{{{{ or }}}}. Type: '{key}=\"Answer: {{answer}}. Answer again:\"'"
            )

    def needs(self, skeleton: nn.Module, outline: Outline) -> Needs:
        # About four letters are a token; the right answer is one of the task's own.
        shown = outline.targets + -(-len(self.demonstration) // 4)
        return Needs(
            teacher="log_probabilities",
            teaches_first=True,
            task_bytes=4,
            writes=Writes(self.max_new_tokens, self.batch_size, shown),
        )

    def before_task(self, learner: Learner, task: Task) -> None:
        if task.index == 0 or learner.restart:
            self._check_room(learner)
        self.values = {name: learner.part(name, p.detach()).float().clone() for name, p in learner.params().items()}

    def after_step(self, learner: Learner) -> None:
        for name, value in learner.trained.items():
            self.values[name].lerp_(value.detach().float(), self.rate)

    def after_task(self, learner: Learner, task: Task) -> None:
        self.values = {}

    def steps(self, learner: Learner, task: Task, step: int, steps: list[list[Part]]) -> list[list[Part]]:
        seed = learner.seed_of("sdft", task.index, step)

        def written(part: Part) -> Part:
            if part.kind != "new":
                return part
            answers = own_answers(learner, part.examples, self._how(learner, task), self.batch_size, seed)
            return dataclasses.replace(part, labels=False, answers=answers)

        return [[written(part) for part in parts] for parts in steps]

    def prepare(self, learner: Learner, part: Part, batch: Batch) -> Batch:
        if part.answers is None or part.kind != "new":
            return batch
        answers = [row[row != IGNORED].tolist() for row in batch["labels"]]
        asked = learner.family.followed(batch.examples, self.demonstration).to(learner.device)
        types = {name: parameter.dtype for name, parameter in learner.params().items()}
        values = {name: value.to(types[name]) for name, value in self.values.items()}
        taught = output_at(learner, learner.family.answered(asked, answers), values)
        return batch | {"sdft": taught.logits.log_softmax(-1)}

    def loss(self, learner: Learner, part: Part, batch: Batch, output: Output) -> Tensor | float:
        if "sdft" not in batch:
            return 0.0
        assert part.answers is not None
        student, teacher = output.logits.log_softmax(-1), batch["sdft"]
        found, wanted = (teacher, student) if self.direction == "student_to_teacher" else (student, teacher)
        divergences = functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)  # KL(wanted || found)
        tokens = sum(len(answer) for answer in part.answers)
        # A pass counts as much as it has of the part's tokens, and is to count as much as it has of its answers.
        weight = tokens / (len(output.rows) * len(part.answers))
        term = answer_means(divergences, output.rows, self.skipped_tokens).sum() * weight
        learner.log("sdft", float(term.detach()))
        learner.log("sdft/tokens", tokens / len(part.answers))
        return term

    def _how(self, learner: Learner, task: Task) -> Answering:
        most = learner.answering(task).max_new_tokens
        return Answering(
            max_new_tokens=min(most, self.max_new_tokens or most),
            sampling=Sampling(temperature=self.temperature, top_k=None, top_p=None),
        )

    def _check_room(self, learner: Learner) -> None:
        """The teacher reads question, demonstration and answer at once."""
        model = learner.model
        assert isinstance(model, PreTrainedModel)
        config: Any = model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        if positions is None or config.model_type in ("t5", "mt5"):
            return
        answers = learner.family.kind != "seq2seq"  # whose decoder has positions of its own
        for task in learner.tasks:
            asked = learner.family.followed(task.train, self.demonstration)["attention_mask"].sum(1)
            longest = int(asked.max()) + answers * self._how(learner, task).max_new_tokens
            if longest > positions:
                fits = learner.family.backbone.max_length - (longest - positions)
                raise ValueError(
                    f"method.{self.node}: the teacher reads a question of {task.name}, its demonstration and an answer "
                    f"in up to {longest} tokens, and the backbone reads {positions}. "
                    f"Type: backbone.max_length={max(1, fits)} (or a smaller method.{self.node}.max_new_tokens)"
                )
