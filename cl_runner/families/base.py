"""What every family of models offers: after `forward` no method knows if it is a classifier or a language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cl_runner.batch import Batch, Output
from cl_runner.config import AnswerText, Backbone, FamilyKind, Sampling
from cl_runner.data.example import Example

#: In `labels`: no target.
IGNORED = -100


class Prediction(NamedTuple):
    """What the model answers to one example."""

    text: str  # label name, or generated text
    confidence: float | None  # probability of the answer; None where it is not computed
    logits: bytes = (
        b""  # what it was chosen by, fp32: of all labels, or the largest of a generated answer's first token
    )


def chosen_by(logits: Tensor) -> list[bytes]:
    """`Prediction.logits` of each row of [B, K]."""
    return [row.tobytes() for row in logits.detach().float().cpu().numpy()]


class Unanswerable(Exception):
    """A label that no answer can be.

    Attributes:
        label: its name.
        reason: why, as the end of a sentence.
        key: of the configuration that must grow; None = the label must have another name.
        needed: its smallest value.
    """

    def __init__(self, label: str, reason: str, key: str | None = None, needed: int = 0):
        super().__init__(f"{label!r} {reason}")
        self.label, self.reason, self.key, self.needed = label, reason, key, needed


@dataclass(frozen=True)
class Answering:
    """How the examples of a batch are answered; classifiers know one way only.

    Attributes:
        max_new_tokens: of a generated answer.
        labels: a closed set, of which the most probable one is the answer; empty = generate.
        sampling: decoding by chance; None = greedy.
        slice_by: where the answer begins, by token ids or by cutting the prompt's text off.
        text: what of the generated text is the answer.
        repetition_penalty: of sampling: logits of tokens that were written are divided by it, or multiplied where they
            are negative (Keskar et al. 2019, arXiv:1909.05858).
        raw: the answer is every character that was generated, whatever `slice_by` and `text`: program text needs its
            white space, that of its first token too.
        never: tokens that are not written.
        until: an answer ends where all of them say so of what was generated, as nothing reads on; empty = at its end.
    """

    max_new_tokens: int
    labels: tuple[str, ...] = ()
    sampling: Sampling | None = None
    slice_by: Literal["ids", "prefix"] = "ids"
    text: AnswerText = "spoken"
    repetition_penalty: float = 1.0
    raw: bool = False
    never: tuple[int, ...] = ()
    until: tuple[Callable[[str, Example], bool], ...] = ()


class Family(ABC):
    """Abstract or final: subclasses implement everything and are not subclassed again."""

    #: Which of the built-in families it behaves as: what methods, probes and plans go by.
    kind: ClassVar[FamilyKind]
    #: Whether an example has one target, or one per token of its answer.
    one_target: ClassVar[bool]
    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase

    @abstractmethod
    def build(self, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The untrained starting model; its new weights (a head) depend on `seed` only."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """The same architecture without weights, on the meta device: names and shapes of parameters."""

    @abstractmethod
    def check(self, labels: Sequence[Sequence[str]], max_new_tokens: int) -> None:
        """Raise ValueError if tasks with these label names (none: free text) and answers do not fit the backbone."""

    def verify(self, skeleton: PreTrainedModel) -> Sequence[str]:
        """What of a checkpoint is not used, or drawn anew, as texts worth saying; no weights are loaded.

        Raises:
            ValueError: the checkpoint does not hold what its architecture expects.
        """
        return ()

    def check_labels(self, labels: Sequence[str], max_new_tokens: int | None) -> None:
        """Raise Unanswerable if one of a task's labels can never be answered.

        Args:
            max_new_tokens: of a generated answer; None = one of the labels is chosen.
        """
        return

    def noted(self, examples: Sequence[Example], training: bool = True) -> dict[str, int]:
        """What is worth knowing of examples as the model reads them -> how many: cut ones, special tokens in them.

        Args:
            training: whether it reads them to learn, or to answer.
        """
        return {}

    def save_reader(self, folder: Path) -> None:
        """Write what turns texts into tokens, and pictures into numbers, as from_pretrained reads it.

        Raises:
            OSError: the folder cannot be written.
        """
        self.tokenizer.save_pretrained(folder)

    @abstractmethod
    def tokenize(self, examples: Sequence[Example], cache: Path | None) -> None:
        """Tokenize all examples at once, or read their tokens from the folder `cache`, kept there by content."""

    @abstractmethod
    def lengths(self, examples: Sequence[Example], answers: bool = True) -> list[int]:
        """Tokens of each example after truncation, with or without its answer's."""

    @abstractmethod
    def targets(self, examples: Sequence[Example]) -> list[int]:
        """Positions of each example that have a target: what a mean over several batches is weighted by."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], answers: bool = True) -> Batch:
        """Examples as padded tensors, first dimension = examples; without answers as `answer` needs them."""

    def followed(self, examples: Sequence[Example], text: str) -> Batch:
        """Examples without answers, of language models, with a text after the words of each prompt.

        What the model reads of a prompt is what it reads without the text, of which nothing is cut.

        Args:
            text: `{answer}` in it stands for the example's answer, as long as it is learned.
        """
        raise NotImplementedError

    def answered(self, batch: Batch, answers: Sequence[Sequence[int]]) -> Batch:
        """A batch without answers, of a language model, with these in token ids: as `collate` would make it."""
        raise NotImplementedError

    def write(self, model: nn.Module, batch: Batch, how: Answering) -> list[list[int]]:
        """The answers that a language model writes to a batch without answers, in token ids, with the end it wrote."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Output:
        """One forward pass."""

    @abstractmethod
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """[B, width], fp32: one vector for each text of a batch collated without answers, from its last hidden states.

        The first token's for classifiers, whose head reads it; the mean over the text's tokens for language models.
        """

    def states(self, model: nn.Module, batch: Batch) -> Tensor:
        """[layers + 1, B, width], fp32: of every hidden state what `features` is of the last one, embeddings first.

        Decoders leave the first token out (`tokens.after_first`).
        """
        raise NotImplementedError

    @abstractmethod
    def loss_sum(self, model: nn.Module, batch: Batch, tokens: Literal["mean", "sum"]) -> Tensor:
        """Sum over the batch's examples of each one's loss, the mean or sum over its answer's tokens.

        With "sum" it is -log p(answer | text): the loss of the Fisher information (PE eq. 1).
        """

    @abstractmethod
    def relabel(self, batch: Batch, targets: Tensor) -> Batch:
        """The batch with other targets, as many and in the order of `Output.targets`."""

    @abstractmethod
    def identity(self) -> str:
        """JSON of what turns examples into batches and losses: tells results of two configurations apart."""

    @abstractmethod
    def answer(self, model: nn.Module, batch: Batch, how: Answering) -> list[Prediction]:
        """The model's answers, one per example, to a batch collated without answers."""
