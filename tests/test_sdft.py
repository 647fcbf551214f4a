"""SDFT against its definition: who writes, who reads what, which divergence, and how the teacher follows."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import learn, run_command, seeded, tiny, tiny_config, tiny_learner
from torch import Tensor

from cl_runner.batch import Output, Part
from cl_runner.data.task import Task
from cl_runner.families.base import Answering
from cl_runner.learner import Learner
from cl_runner.methods.own_answers import own_answers
from cl_runner.methods.sdft import SDFT, answer_means

SHOWN = "Shown: {answer}. Again:"
OPTIONS = (
    "backbone=tiny_llama",
    "++backbone.architecture={initializer_range: 0.2}",
    "backbone.dropout=0.0",
    "backbone.max_length=14",  # some questions are cut
    "method.sdft.max_new_tokens=5",
    f"method.sdft.demonstration='{SHOWN}'",
)


def begun(root: Path, *overrides: str) -> tuple[Learner, SDFT, list[Task]]:
    """A learner inside its first task, whose teacher is another model than its student by now."""
    said = {option.partition("=")[0]: option for option in ("method=sdft", *OPTIONS, *overrides)}
    learner, method, tasks = tiny_learner(tiny_config(root, *said.values()))
    learner.choose(tasks[0], method.trains(learner, tasks[0]))
    method.before_task(learner, tasks[0])
    found: Any = method.methods["sdft"]
    with torch.no_grad():
        for name, values in found.values.items():
            values += 0.1 * values.std() * torch.randn(values.shape, generator=seeded(len(name)))
    learner.model.train()
    return learner, found, tasks


def exact(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-probabilities [answer tokens, V] in fp64 of one text without padding."""
    ids = torch.tensor([[*prompt, *answer]])
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, -len(answer) - 1 : -1]
    return logits.log_softmax(-1)


@pytest.mark.parametrize(("direction", "skipped"), [("student_to_teacher", 0), ("teacher_to_student", 2)])
def test_the_loss_by_hand(direction: str, skipped: int, tmp_path: Path) -> None:
    """In fp64, text by text: the same in one pass and in several, which hold unequal numbers of tokens."""
    asked = (f"method.sdft.direction={direction}", f"method.sdft.skipped_tokens={skipped}")
    learner, method, tasks = begun(tmp_path, *asked)
    examples = tasks[0].train[:5]
    answers = [[5, 9, 7], [11], [4, 4, 8, 9, 2], [6, 2], [12, 13, 14, 15, 16]]
    part = Part(examples, labels=False, answers=answers)

    def term(rows: list[int]) -> tuple[Tensor, int]:
        given = [examples[i] for i in rows], [answers[i] for i in rows]
        batch = learner.family.answered(learner.collate(given[0], answers=False), given[1])
        batch = method.prepare(learner, part, batch)
        found = method.loss(learner, part, batch, learner.forward(batch))
        assert isinstance(found, Tensor)
        return found, sum(len(answer) for answer in given[1])

    total = sum(map(len, answers))
    whole, _ = term([0, 1, 2, 3, 4])
    passes = [term(rows) for rows in ([2, 0], [3], [1, 4])]
    assert float(sum(t.detach() * n / total for t, n in passes)) == pytest.approx(float(whole.detach()), rel=1e-5)

    model = learner.model.double()
    read = dict(zip(examples, learner.family.lengths(examples, answers=False), strict=True))
    assert max(read.values()) == 14
    expected = torch.zeros((), dtype=torch.float64)
    for example, answer in zip(examples, answers, strict=True):
        question = learner.collate([example], answers=False)["input_ids"][0].tolist()
        shown = learner.family.tokenizer(SHOWN.format(answer=example.answer), add_special_tokens=False)["input_ids"]
        student = exact(model, question, answer)
        now = {name: p.data for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.data = method.values[name].double()
        teacher = exact(model, [*question, *shown], answer)
        for name, p in model.named_parameters():
            p.data = now[name]
        of, to = (student, teacher) if direction == "student_to_teacher" else (teacher, student)
        divergences = (of.exp() * (of - to)).sum(-1)[skipped:]
        expected = expected + (divergences.mean() if len(divergences) else 0.0) / len(examples)
    assert float(whole.detach()) == pytest.approx(float(expected.detach()), rel=1e-4) and float(whole.detach()) > 0.01


def test_the_loss_is_the_released_one() -> None:
    """Its mask, clamp and mean over answers, on logits [B, T, V] as it has them; KL(teacher || student) by default."""
    student, teacher = torch.randn(2, 4, 6, 9, generator=seeded(1), dtype=torch.float64)
    lengths = torch.tensor([6, 2, 4, 5])
    mask = (torch.arange(6) < lengths[:, None]).double()
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    for direction, values in (("teacher_to_student", q.exp() * (q - p)), ("student_to_teacher", p.exp() * (p - q))):
        counted = mask * (torch.arange(6) >= 3)
        released = ((values.sum(-1) * counted).sum(-1) / counted.sum(-1).clamp(min=1.0)).mean()
        rows = mask.nonzero()[:, 0]
        flat = student[mask.bool()]
        output = Output(flat.sum() * 0, flat, torch.zeros(len(flat), dtype=torch.long), rows)
        method: Any = SDFT(direction, 0.01, 3, 1.0, None, 4, "{answer}")  # type: ignore[arg-type]
        learner: Any = type("Logs", (), {"log": lambda self, name, value: None})()
        part = Part([], labels=False, answers=[[0] * int(n) for n in lengths])
        found = method.loss(learner, part, {"sdft": teacher[mask.bool()].log_softmax(-1)}, output)
        torch.testing.assert_close(found, released)


def test_means_of_answers() -> None:
    values, rows = torch.arange(6.0), torch.tensor([0, 0, 0, 1, 2, 2])
    assert answer_means(values, rows, 0).tolist() == [1.0, 3.0, 4.5]
    assert answer_means(values, rows, 1).tolist() == [1.5, 0.0, 5.0]


def test_the_student_writes_from_the_question_alone(tmp_path: Path) -> None:
    """Every token is drawn from its own distribution; no dropout, and no other draw of the step is disturbed."""
    learner, method, tasks = begun(tmp_path, "backbone.dropout=0.5", "method.sdft.temperature=0.7")
    examples = tasks[0].train[:6]
    torch.manual_seed(3)
    untouched = torch.rand(4)
    torch.manual_seed(3)
    ((part, other),) = method.steps(learner, tasks[0], 4, [[Part(examples), Part(examples, kind="old")]])
    assert torch.equal(torch.rand(4), untouched) and learner.model.training
    assert other == Part(examples, kind="old") and not part.labels and part.examples == examples
    assert part.answers is not None and all(1 <= len(answer) <= 5 for answer in part.answers)
    again = method.steps(learner, tasks[0], 4, [[Part(examples)]])[0][0].answers
    assert again == part.answers != method.steps(learner, tasks[0], 5, [[Part(examples)]])[0][0].answers
    for example in examples:  # nothing of the right answer is read
        changed = [dataclasses.replace(example, answer="another")]
        first, second = (
            own_answers(learner, given, Answering(5), 4, seed=1) for given in ([example], changed)
        )  # greedy
        prompt = learner.collate([example], answers=False)["input_ids"]
        learner.model.eval()
        written: list[int] = []
        with torch.no_grad():
            while len(written) < 5 and (not written or written[-1] != learner.family.tokenizer.eos_token_id):
                ids = torch.cat([prompt, torch.tensor([written], dtype=torch.long)], 1)
                written.append(int(learner.model(input_ids=ids).logits[0, -1].argmax()))
        assert first == second == [written]


def test_answers_end_where_the_model_ends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, _, tasks = begun(tmp_path)
    family, end = learner.family, learner.family.tokenizer.eos_token_id
    written = torch.tensor([[7, end, end], [end, 5, 5], [7, 8, 9]])
    monkeypatch.setattr(type(family), "_continued", lambda *_: (written, None))
    batch = family.collate(tasks[0].train[:3], answers=False)
    assert family.write(learner.model, batch, Answering(3)) == [[7, end], [end], [7, 8, 9]]


@pytest.mark.parametrize("chosen", ["method=sdft", "method=[sdft,piece_s]"])
def test_the_teacher_follows(chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the values that the task begins with, by a share of every step; of what trains and of nothing else."""
    more = ["method.piece.fraction=0.01", "method.piece.first_task=selected"] if "piece" in chosen else []
    config = tiny_config(tmp_path, *OPTIONS, chosen, "method.sdft.rate=0.25", "training.max_steps=3", *more)
    learner, method, tasks = tiny_learner(config)
    sdft: Any = method.methods["sdft"]
    positions: dict[str, Tensor] = {}
    seen: list[dict[str, Tensor]] = []
    kept: list[dict[str, Tensor]] = []
    follow = SDFT.after_step

    def after_step(self: SDFT, learner: Learner) -> None:
        follow(self, learner)
        positions.update(learner.selected)
        seen.append({name: value.detach().clone() for name, value in learner.trained.items()})
        kept.append({name: value.clone() for name, value in self.values.items()})

    monkeypatch.setattr(SDFT, "after_step", after_step)
    before = learner.weights()
    learn(learner, method, tasks[0], config)
    assert len(seen) == 3 and not sdft.values
    for name in seen[0]:
        start = before[name]
        if "piece" in chosen:
            start = start.view(-1)[positions[name]]
        expected = start.double()
        for step, values in enumerate(seen):
            expected = 0.75 * expected + 0.25 * values[name].double()
            torch.testing.assert_close(kept[step][name].double(), expected, rtol=1e-5, atol=1e-7)
    assert kept[0].keys() == seen[0].keys()


def test_a_teacher_of_half_precision_moves(tmp_path: Path) -> None:
    """A share of 0.01 of a step is lost in bf16: the moving average is held in fp32, and read in the model's type."""
    learner, method, tasks = begun(tmp_path, "backbone.dtype=bfloat16")
    assert {value.dtype for value in method.values.values()} == {torch.float32}
    ((part,),) = method.steps(learner, tasks[0], 0, [[Part(tasks[0].train[:2])]])
    batch = learner.family.answered(learner.collate(part.examples, answers=False), part.answers or [])
    assert method.prepare(learner, part, batch)["sdft"].isfinite().all()
    assert {p.dtype for p in learner.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("backbone", ["tiny_llama", "tiny_t5"])
def test_the_demonstration_is_whole(backbone: str, tmp_path: Path) -> None:
    """However a question is cut; the teacher reads of it what the student reads."""
    cut = "keep_start" if backbone == "tiny_t5" else "keep_end"
    options = [
        f"backbone={backbone}",
        "backbone.max_length=9",
        "backbone.max_answer_length=10",
        f"backbone.truncation={cut}",
    ]
    learner, _, tasks = tiny_learner(tiny_config(tmp_path, "method=sdft", *options))
    family, examples = learner.family, tasks[0].train[:4]
    examples = (*examples, dataclasses.replace(examples[0], answer="one two three four five six seven eight nine ten"))
    ids = family.tokenizer([example.answer for example in examples], add_special_tokens=False)["input_ids"]
    texts = [SHOWN.format(answer=family.tokenizer.decode(row[:10])) for row in ids]  # cut, as it is learned
    assert texts[-1] != SHOWN.format(answer=examples[-1].answer) and examples[0].answer in texts[0]
    asked, followed = family.collate(examples, answers=False), family.followed(examples, SHOWN)
    for row, text in enumerate(texts):
        question, whole = (b["input_ids"][row][b["attention_mask"][row].bool()].tolist() for b in (asked, followed))
        shown = family.tokenizer(text, add_special_tokens=False)["input_ids"]
        ends = [family.tokenizer.eos_token_id] if backbone == "tiny_t5" else []  # which a T5 reads after its text
        assert whole == [*question[: len(question) - len(ends)], *shown, *ends]


REFUSED = (
    (["method=sdft"], r"sdft supports the families causal, seq2seq, image_text, not classifier"),
    (["method=[sdft,der]", "backbone=tiny_llama"], r"der goes by the right answers. Type: method=sdft \(or method=der"),
    (["method=[masked_kl,sdft,ewc]", "backbone=tiny_llama"], r"masked_kl goes .* Type: method=\[sdft,ewc\] \(or"),
    (["method=[sdft,slm]", "backbone=tiny_llama"], r"slm goes by the words of a question. Type: method=sdft \(or"),
    (["method=sdft", "backbone=tiny_llama", "method.sdft.demonstration=So"], r"demonstration holds \{answer\} once"),
    (["method=sdft", "backbone=tiny_llama", "method.sdft.demonstration='{answer} {x}'"], r"no other braces"),
    (["method=sdft", "backbone=tiny_llama", "method.sdft.rate=1.5"], r"method.sdft.rate"),
    (["method=sdft", "backbone=tiny_llama", "method.sdft.direction=reverse"], r"student_to_teacher"),
    (["method=[sdft,icl]", "backbone=tiny_llama"], r"icl trains nothing, so that sdft .* Type: method=icl"),
)


@pytest.mark.parametrize(
    ("asked", "said"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_refusals(asked: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tiny(tmp_path, *asked)) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reads a question of base, its demonstration .* Type: backbone.max_length="):
        begun(tmp_path, "++backbone.architecture={max_position_embeddings: 30, initializer_range: 0.2}")
