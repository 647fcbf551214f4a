"""Examples that the model writes in the place of kept ones: LAMOL and LFPT5 by hand; no old data; deaths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny import learn, seeded, tiny_config, tiny_learner
from torch import Tensor
from torch.nn import functional

from cl_runner.batch import Part
from cl_runner.data.example import Example, Recital
from cl_runner.data.task import Task
from cl_runner.learner import Learner
from cl_runner.methods.generates import Generates
from cl_runner.passes import Passes, backward

SHORT = ("backbone.max_length=30", "backbone.max_answer_length=10", "method.{0}.max_new_tokens=40")
LFPT5 = ("method=lfpt5", "backbone=tiny_t5", "method.lfpt5.length=5", "method.lfpt5.tries=4")


def made(root: Path, *options: str) -> tuple[Any, Any, list[Task], Any]:
    """A learner, the method alone, its tasks and the configuration."""
    name = next(option for option in options if option.startswith("method=")).partition("=")[2].partition("_")[0]
    config = tiny_config(root, *(option.format(name) for option in SHORT), *options)
    learner, chain, tasks = tiny_learner(config)
    return learner, chain, tasks, config


def begun(learner: Learner, method: Any, task: Task) -> None:
    """A task as far as its first step."""
    learner.grow(task)
    learner.choose(task, method.trains(learner, task))
    method.before_task(learner, task)
    learner.begin()


def write_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the model writes what training has, as no tiny one does."""

    def written(self: Generates, learner: Learner, task: Task, old: Task, count: int) -> Iterator[list[str]]:
        yield [f"it is {old.labels[i % 2]} {i} __ans__ {old.labels[i % 2]}" for i in range(count)]

    monkeypatch.setattr(Generates, "written", written)


# What is learned -------------------------------------------------------------------------------------------------


class Whole:
    """Ids of an example as it is recited, by the tokenizer alone; texts keep both ends where they are cut to 30 or 40.

    Attributes:
        read: its text as a prompt.
        start, text, between, answer: the answer with its end.
    """

    def __init__(self, learner: Learner, example: Example, start: str):
        tokenizer = learner.family.tokenizer
        texts = (example.prompt, "__ans__", example.answer, start)
        text, self.between, answer, begin = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts)
        before, after = ([], [tokenizer.eos_token_id]) if learner.family.kind == "seq2seq" else ([1], [])
        self.answer = [*answer, tokenizer.eos_token_id]
        self.start = [*before, *begin, *after]
        self.read = [*before, *cut(text, 29), *after]
        self.text = cut(text, min(29, 40 - len(self.start) - len(self.between) - len(self.answer)))

    @property
    def written(self) -> list[int]:
        return [*self.text, *self.between, *self.answer]


def cut(ids: list[int], room: int) -> list[int]:
    return ids if len(ids) <= room else [*ids[: room - room // 2], *ids[len(ids) - room // 2 :]]


def causal_losses(learner: Learner, read: Sequence[int], written: Sequence[int]) -> Tensor:
    """Of each token that is written after others, alone in its batch, in fp64."""
    logits = learner.model(torch.tensor([[*read, *written]])).logits[0].double()
    return functional.cross_entropy(logits[len(read) - 1 : -1], torch.tensor(written), reduction="none")


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_lamols_loss_by_hand(micro_batch: int | None, tmp_path: Path) -> None:
    """CE(answer | text) + lambda CE(text, between, answer | start), the latter's mean with `between` weighing more.

    As released: CrossEntropyLoss(weight=TOKENS_WEIGHT) is sum w l / sum w over the tokens of a batch.
    """
    options = ("method=lamol", "backbone=tiny_gpt2", "method.lamol.between_weight=5.0", "backbone.dropout=0.0")
    learner, chain, tasks, _ = made(tmp_path, *options)
    begun(learner, chain, tasks[0])
    examples = tasks[0].train[:3]
    answers, lengths, together = [], [], []
    for example in examples:
        one = Whole(learner, example, "__base__")
        answers.append(causal_losses(learner, one.read, one.answer))
        weights = torch.ones(len(one.written), dtype=torch.float64)
        weights[len(one.text) : len(one.text) + len(one.between)] = 5.0
        together.append(weights * causal_losses(learner, one.start, one.written))
        lengths.append(weights)
    expected = torch.cat(answers).mean() + 0.25 * torch.cat(together).sum() / torch.cat(lengths).sum()
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
    learner.model.zero_grad()
    (parts,) = chain.steps(learner, tasks[0], 0, [[Part(examples)]])
    backward(learner, chain, parts, micro_batch, Passes((), False))
    for name, parameter in learner.model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-6)


def test_a_recital_is_cut_in_its_text_alone(tmp_path: Path) -> None:
    learner, _, tasks, _ = made(tmp_path, "method=lamol", "backbone=tiny_t5", "backbone.max_answer_length=7")
    family = learner.family
    example = dataclasses.replace(tasks[0].train[0], prompt="x" * 99, answer="1 star", recital=Recital("ab", "__ans__"))
    batch = family.collate([example])
    ids = batch["labels"][0].tolist()
    assert len(ids) == 37 - 3 and family.targets([example]) == [34]  # of 30 + 7, the start with its end goes off
    assert family.tokenizer.decode(ids, skip_special_tokens=True) == "x" * 20 + "__ans__" + "1 star"
    assert family.lengths([example]) == [3 + 34] and batch["input_ids"].shape == (1, 3)
    plain = dataclasses.replace(example, recital=None)
    assert family.targets([plain, example, plain]) == [7, 34, 7]


def hand_made(learner: Learner, prompt: Tensor, read: Sequence[int], written: Sequence[int]) -> Tensor:
    """T5's logits in fp64 with a prompt behind what its encoder reads, alone in its batch."""
    embedded = learner.model.get_input_embeddings()(torch.tensor([read]))
    decoder = torch.tensor([[learner.model.config.decoder_start_token_id, *written[:-1]]])
    composed = torch.cat([embedded, prompt[None]], 1)
    mask = torch.ones(composed.shape[:2], dtype=torch.long)
    logits: Tensor = learner.model(inputs_embeds=composed, attention_mask=mask, decoder_input_ids=decoder).logits[0]
    return logits.double()


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_lfpt5s_loss_by_hand(micro_batch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 - kl) (L_task + lambda L_lm) + kl * sum KL(old || new) over the tokens of old tasks' examples in a pass."""
    write_valid(monkeypatch)
    options = ("method.lfpt5.kl=0.3", "method.lfpt5.kl_examples=2", "method.lfpt5.recital=0.25", "backbone.dropout=0.0")
    learner, chain, tasks, config = made(tmp_path, *LFPT5, *options)
    learn(learner, chain, tasks[0], config)
    begun(learner, chain, tasks[1])
    method = chain.methods["lfpt5"]
    written = method.examples(learner, tasks[1], "train")
    assert [e.answer for e in written] == [*tasks[0].labels[:2]] * 2 and {e.task for e in written} == {0}
    new = learner.parameters()["prompts.values.00"]
    old = new.detach().clone()
    with torch.no_grad():
        new += 0.1 * torch.randn(new.shape, generator=seeded())
    examples = [written[0], tasks[1].train[0]]
    answers, recited, divergences = [], [], []
    method.before.stop()
    for example, start in zip(examples, ("classifybase", "classifykettles"), strict=True):
        one = Whole(learner, example, start)
        logits = hand_made(learner, new, one.read, one.answer)
        answers.append(functional.cross_entropy(logits, torch.tensor(one.answer), reduction="none"))
        told = hand_made(learner, new, one.start, one.written)
        recited.append(functional.cross_entropy(told, torch.tensor(one.written), reduction="none"))
        if example is written[0]:
            before = hand_made(learner, old, one.read, one.answer).softmax(-1)
            divergences.append((before * (before.log() - logits.log_softmax(-1))).sum())
    expected = 0.7 * (torch.cat(answers).mean() + 0.25 * torch.cat(recited).mean()) + 0.3 * sum(divergences)
    (wanted,) = torch.autograd.grad(expected, new)
    (parts,) = chain.steps(learner, tasks[1], 0, [[Part(examples)]])
    assert [part.kind for part in parts] == ["new", "lfpt5_recital", "lfpt5_kl"]
    found = backward(learner, chain, parts, micro_batch, Passes((), False))
    assert found.terms["lfpt5_kl"] > 1e-4
    torch.testing.assert_close(new.grad, wanted, rtol=1e-3, atol=1e-5)


def test_lfpt5s_prompt_begins_as_released(tmp_path: Path) -> None:
    """The phrase's mean embedding, the task's, each label's, then embeddings of common tokens."""
    learner, chain, tasks, _ = made(tmp_path, *LFPT5, "method.lfpt5.length=9")
    begun(learner, chain, tasks[0])
    table = learner.model.get_input_embeddings().weight.detach()
    prompt = learner.parameters()["prompts.values.00"].detach()
    named = ["sentence classification", "base", *tasks[0].labels]
    for row, text in enumerate(named):
        ids = learner.family.tokenizer(text, add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(prompt[row], table[ids].mean(0))
    special = {*learner.family.tokenizer.all_special_ids}
    for row in range(len(named), 9):
        places = (table == prompt[row]).all(1).nonzero().flatten().tolist()
        assert places and not special & {*places}


# What is kept of what the model writes ---------------------------------------------------------------------------


def fed(monkeypatch: pytest.MonkeyPatch, batches: Sequence[list[str]]) -> None:
    monkeypatch.setattr(Generates, "written", lambda self, learner, task, old, count: iter(batches))


def test_lfpt5s_filter_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One `between`, behind it a label of the task, letter by letter; two to learn from and two to select by."""
    learner, chain, tasks, _ = made(tmp_path, *LFPT5)
    one, two, three = tasks[0].labels
    first = [f"a {one}", f"b __ans__ {one}", f"__ans__ {one}", f"c __ans__ {one} __ans__ {one}", f"d __ans__ {one}s"]
    first += [f" e __ans__{two} ", f"f __ans__ {two.upper()}", *(f"{i}__ans__{three}" for i in range(5)), "g __ans__ "]
    fed(monkeypatch, [first, [f"h __ans__ {one}"], *([f"{i} __ans__ {label}" for label in (one, two)] for i in "xyz")])
    begun(learner, chain, tasks[1])
    method = chain.methods["lfpt5"]
    kept = [(use, text, answer) for _, use, text, answer in method.made["kept"]]
    assert [each for each in kept if each[2] == one] == [
        ("train", "b", one), ("validation", "h", one), ("train", "x", one), ("validation", "y", one)
    ]  # fmt: skip
    assert [text for _, text, answer in kept if answer == two] == ["e", "x", "y", "z"]
    assert [text for _, text, answer in kept if answer == three] == ["0", "1", "2", "3"]
    assert method.made["reasons"] == {
        "0": {
            "no __ans__": 1,
            "no text": 1,
            "__ans__ more than once": 1,
            "no label of the task": 2,
            "label has enough": 2,
            "no answer": 1,
        }
    }
    assert method.made["asked"] == {"0": len(first) + 1 + 3 * 2}
    own, old = chain.validation(learner, tasks[1], [tasks[1]])
    assert own is tasks[1] and old.name == "base" and len(old.validation) == 6
    (epoch,) = chain.data(learner, tasks[1], [tasks[1].train])
    assert len(epoch) == len(tasks[1].train) + 6 and {e.domain for e in epoch[-6:]} == {"base"}


def test_few_of_a_label_serve_both_uses_as_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There 3 give 2 and 1, 2 give 1 and 1, and one is learned from."""
    learner, chain, tasks, _ = made(tmp_path, *LFPT5)
    method = chain.methods["lfpt5"]
    for count, uses in ((1, (1, 0)), (2, (1, 1)), (3, (2, 1)), (4, (2, 2)), (9, (2, 2))):
        fed(monkeypatch, [[f"{i} __ans__ {tasks[0].labels[0]}" for i in range(count)]])
        begun(learner, chain, tasks[1])
        assert tuple(len(method.examples(learner, tasks[1], use)) for use in ("train", "validation")) == uses
        learner.finish()


@pytest.mark.parametrize(("start", "known"), [("__{task}__", True), ("__gen__", False)])
def test_lamol_writes_as_many_of_each_old_task(
    start: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ceil(gamma n), less what is left when it is shared out; nobody knows whose they are where a start is common."""
    write_valid(monkeypatch)
    options = ("method=lamol", "backbone=tiny_gpt2", "method.lamol.share=0.31", f"method.lamol.start='{start}'")
    learner, chain, tasks, _ = made(tmp_path, *options)
    method = chain.methods["lamol"]
    for task, each in zip(tasks, (0, 8, 4), strict=True):
        begun(learner, chain, task)
        epochs = chain.data(learner, task, [task.train, task.train])
        joined = epochs[1][len(task.train) :]
        assert len(joined) == each * task.index == len(epochs[0]) - len(task.train)
        assert {e.task for e in joined} == ({*range(task.index)} if known else {-1} if task.index else set())
        assert method.made["asked"] == {str(old): each for old in range(task.index)}
        learner.finish()
    recited = [
        chain.methods["lamol"].recited(learner, e, tasks[2]).recital.start for e in (joined[0], tasks[2].train[0])
    ]
    assert recited == (["__base__", "__software__"] if known else ["__gen__"] * 2)


def test_the_model_writes_from_its_start(tmp_path: Path) -> None:
    """The same whenever it is asked, of the model as it stands; batches do not depend on what was drawn before."""
    learner, chain, tasks, _ = made(
        tmp_path, "method=lamol", "backbone=tiny_gpt2", "method.lamol.generation_batch_size=3"
    )
    method = chain.methods["lamol"]
    learner.model.eval()
    found = [*method.written(learner, tasks[2], tasks[0], 7)]
    assert [len(batch) for batch in found] == [3, 3, 1]
    torch.manual_seed(99)
    assert [*method.written(learner, tasks[2], tasks[0], 7)] == found
    assert [*method.written(learner, tasks[1], tasks[0], 7)] != found
    answered: dict[str, Any] = {}

    def answer(batch: Any, how: Any) -> list[Any]:
        answered.update(how=how, ids=batch["input_ids"])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(learner, "answer", answer)
        next(method.written(learner, tasks[2], tasks[1], 2))
    how = answered["how"]
    assert (how.sampling.top_k, how.sampling.temperature, how.repetition_penalty) == (20, 1.0, 1.0)
    assert how.raw and how.max_new_tokens == 40
    assert learner.family.tokenizer.decode(answered["ids"][0], skip_special_tokens=True) == "__kettles__"


class Gone(tuple[Example, ...]):
    """Data of an old task: whoever looks at them fails."""

    _said: ClassVar[str] = "data of an old task were read"

    def __iter__(self) -> Iterator[Example]:
        raise AssertionError(self._said)

    def __getitem__(self, place: Any) -> Any:
        raise AssertionError(self._said)

    def __len__(self) -> int:
        raise AssertionError(self._said)


@pytest.mark.parametrize("options", [("method=lamol_0.2", "backbone=tiny_gpt2"), LFPT5], ids=["lamol", "lfpt5"])
def test_no_example_of_an_old_task_is_read_again(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_valid(monkeypatch)
    learner, chain, tasks, config = made(tmp_path, *options)
    for task in tasks:
        assert learn(learner, chain, task, config)
        chain.describe(learner, task, tmp_path)
        tasks[task.index] = dataclasses.replace(task, train=Gone(), validation=Gone(), test=Gone())
        assert learner.tasks[task.index].train is tasks[task.index].train
    assert len(list((tmp_path / "generated").glob("*.jsonl"))) == 2
