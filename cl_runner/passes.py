"""The passes that an optimizer step is made of: forward and backward of its parts, dealt out over the processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from cl_runner import distributed
from cl_runner.batch import Batch, Output, Part
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.families.base import IGNORED
from cl_runner.learner import Learner, derive_seed
from cl_runner.loss_course import MOST_TURNS, TURN
from cl_runner.methods.base import Method


@dataclass
class Step:
    """What one optimizer step was made of."""

    loss: float = 0.0  # of the batch that the loop drew, where it is part of the step
    norm: float = 0.0
    examples: int = 0
    tokens: int = 0
    padded: int = 0
    terms: dict[str, float] = field(default_factory=dict)
    turns: dict[int, tuple[float, int]] = field(
        default_factory=dict
    )  # of chats -> the sum of its tokens' losses, how many

    def by_turn(self) -> dict[str, float]:
        """`loss_turn_1` and so on: the mean loss of the tokens of each turn of the assistant, where there are chats."""
        return {f"{TURN}{turn}": loss / count for turn, (loss, count) in sorted(self.turns.items())}

    def check(self, number: int, task: Task, peak: float) -> None:
        for what, value in (("loss", self.loss), ("gradient norm", self.norm)):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{what} is not finite at step {number + 1} of task {task.name}; "
                    f"lower the learning rate (now at most {peak:g})"
                )

    def add(self) -> None:
        """What the passes of all processes were; examples and tokens were counted of all of them."""
        every = distributed.gathered([self.loss, self.padded, self.terms, self.turns])
        self.loss, self.padded = sum(one[0] for one in every), sum(one[1] for one in every)
        names = dict.fromkeys(name for one in every for name in one[2])
        self.terms.update({name: sum(one[2].get(name, 0.0) for one in every) for name in names})
        self.turns = {}
        for one in every:
            _join(self.turns, one[3])


class Passes:
    """The passes of a batch, by their number: each has its own random numbers, and is done by one process.

    So 1, 2 and 4 processes draw the same dropout, where `micro_batch` cuts the batch alike.

    Args:
        seed: of the batch, which the first pass has.
        kept: a method keeps what passes show, so that every process does all of them.
        together: a pass needs all processes, which bring its weights together.
    """

    def __init__(self, seed: Sequence[object], kept: bool, together: bool = False):
        assert not (kept and together), "what every process sees would count as often as there are processes"
        self._seed = seed
        self.dealt = distributed.size() > 1 and not kept
        self._together = together
        self._begun = 0
        self._turn = 0  # of the passes of a part, where all make theirs together

    def next(self) -> bool:
        """The next pass begins: whether this process does it."""
        number, self._begun = self._begun, self._begun + 1
        turn, self._turn = self._turn, self._turn + 1
        if self.dealt and not distributed.mine(turn if self._together else number):
            return False
        if number:
            torch.manual_seed(derive_seed(*self._seed, "pass", number))
        return True

    def waits(self) -> bool:
        """A part is over: whether others have made a pass more, so that this process makes one that counts nothing."""
        turns, self._turn = self._turn, 0
        return self._together and any(
            distributed.mine(missing) for missing in range(turns, -(-turns // distributed.size()) * distributed.size())
        )

    def over(self) -> None:
        """What draws from now on draws the same wherever passes were done."""
        torch.manual_seed(derive_seed(*self._seed, "after", self._begun))

    def size(self, examples: int, micro_batch: int | None) -> int:
        """Examples of a pass: a batch that nothing cuts is cut over the processes."""
        return micro_batch or (math.ceil(examples / distributed.size()) if self.dealt else examples)


@torch.no_grad()
def _by_turn(batch: Batch, output: Output) -> dict[int, tuple[float, int]]:
    """The sum of the losses of each turn's tokens, and how many there are."""
    turns = batch["turns"][batch["labels"] != IGNORED].clamp(max=MOST_TURNS)
    losses = functional.cross_entropy(output.logits, output.targets, reduction="none").double()
    found: dict[int, tuple[float, int]] = {}
    for turn in turns.unique().tolist():
        found[turn] = (float(losses[turns == turn].sum()), int((turns == turn).sum()))
    return found


def _join(into: dict[int, tuple[float, int]], more: Mapping[int, tuple[float, int]]) -> None:
    for turn, (loss, count) in more.items():
        before = into.get(turn, (0.0, 0))
        into[turn] = (before[0] + loss, before[1] + count)


def _number(term: Tensor | float) -> float:
    return float(term.detach()) if isinstance(term, Tensor) else term


def _sizes(learner: Learner, part: Part) -> tuple[list[int], list[int]]:
    """Tokens and targets of each example of a part."""
    family, examples = learner.family, part.examples
    if part.answers is None:
        return family.lengths(examples), family.targets(examples)
    targets = [len(answer) for answer in part.answers]
    prompts = family.lengths(examples, answers=False)
    return [prompt + answer for prompt, answer in zip(prompts, targets, strict=True)], targets


def _collated(learner: Learner, part: Part, rows: Sequence[int]) -> Batch:
    """Some examples of a part, by their places in it."""
    examples = [part.examples[i] for i in rows]
    if part.answers is None:
        return learner.collate(examples)
    return learner.family.answered(learner.collate(examples, answers=False), [part.answers[i] for i in rows])


def backward(learner: Learner, method: Method, parts: Sequence[Part], micro_batch: int | None, passes: Passes) -> Step:
    """Forward and backward of all parts of a step, each in passes of `micro_batch`; gradients add up."""
    done = Step()
    for part in parts:
        examples: Sequence[Example] = part.examples
        if not examples:
            continue
        lengths, weights = _sizes(learner, part)
        size = passes.size(len(examples), micro_batch)
        places = list(range(len(examples)))
        if size < len(places):  # texts of similar length share a pass
            places.sort(key=lambda i: (-lengths[i], examples[i].task, examples[i].row))
        rows: list[int] = []
        for start in range(0, len(places), size):
            rows = places[start : start + size]
            if passes.next():
                share = sum(weights[i] for i in rows) / sum(weights)  # of the part's mean over its targets
                _pass(learner, method, part, rows, share, done)
        if passes.waits():
            _pass(learner, method, part, rows, 0.0, Step())
        done.examples += len(examples)
        learner.count_replayed(examples)
        done.tokens += sum(lengths)
    learner.terms = done.terms
    return done


def _pass(learner: Learner, method: Method, part: Part, rows: Sequence[int], share: float, done: Step) -> None:
    """Forward and backward of some examples of a part, by their places in it."""
    learner.terms = {}
    batch = method.prepare(learner, part, _collated(learner, part, rows))
    output = learner.forward(batch)
    extra = method.loss(learner, part, batch, output)
    loss = output.loss + extra if part.labels else extra
    if isinstance(loss, Tensor) and loss.requires_grad:
        (loss * (share * part.weight)).backward()
        learner.collect()
    if part.kind == "new":
        done.loss += share * _number(output.loss if part.labels else extra)
        if "turns" in batch:
            _join(done.turns, _by_turn(batch, output))
    for name, value in learner.terms.items():
        done.terms[name] = done.terms.get(name, 0.0) + share * value
    done.padded += sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)


def idle_pass(learner: Learner, example: Example) -> Callable[[], object]:
    """A pass whose result nobody wants, for weights in parts (`Shards.wait`)."""
    return lambda: learner.forward(learner.collate([example]))
