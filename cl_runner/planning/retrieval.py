"""What a method that retrieves values for every text adds to a plan: SLM (ICLR 2024) in numbers, and in its passes.

The values enter an imitation as they enter a model, so that autograd keeps of them what it keeps in a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, PreTrainedModel

from cl_runner.batch import Batch
from cl_runner.config import Encoder
from cl_runner.data.task import Task
from cl_runner.families.loading import locate, readable
from cl_runner.layers.prompts import Prompts, reader_of
from cl_runner.layers.values import Retrieved, Values
from cl_runner.methods.slm import SLM
from cl_runner.planning.imitation import Cost, Imitation, Ledger
from cl_runner.retrieval.encoder import KEY
from cl_runner.retrieval.keys import new_keys, train_keys

#: Tokens of a text that most sentence encoders read, where theirs are not known.
USUAL_TOKENS = 256


@dataclass(frozen=True)
class Retrieval:
    """SLM in numbers.

    Attributes:
        make: what a slot holds, for an architecture.
        width: numbers of a slot's value.
        slots: of a task.
        given: slots that a text is given, at most.
        foreign: whether a text may be given slots of other tasks while a task trains.
        room: tokens that prompts put before each text.
        trained: entries that each task trains, by its name: values and rows of the head.
        keys: entries of a task's keys.
        encoder: makes the sentence encoder's architecture on the meta device.
        encoder_entries: its parameters.
        encoder_tokens: the most that it reads of a text.
        query: numbers of a text's vector.
        key_epochs, key_batch_size: of the keys' training.
        key_step: what a step of it costs.
        assumed: what was not known and taken for granted; empty if nothing.
    """

    make: Callable[[PreTrainedModel], Values]
    width: int
    slots: int
    given: int
    foreign: bool
    room: int
    trained: Mapping[str, int]
    keys: int
    encoder: Callable[[], PreTrainedModel]
    encoder_entries: int
    encoder_tokens: int
    query: int
    key_epochs: int
    key_batch_size: int
    key_step: Cost
    assumed: str

    @property
    def stored(self) -> int:
        """Entries of the keys and values of all tasks, which are there from the beginning."""
        return len(self.trained) * (self.slots * self.width + self.keys)


def retrieval_of(method: SLM, model: PreTrainedModel, tasks: Sequence[Task], restart: bool) -> Retrieval:
    """The numbers of a method.

    Args:
        model: the architecture; only names and shapes are read.
        tasks: their names and labels count, not their examples.
        restart: every task starts from the pretrained weights, and sees its own slots alone.
    """
    encoder, assumed = _encoder(method.encoder)
    query = int(encoder.config.hidden_size)
    values = method.make_values(model)
    nearest = method.top_k * (method.groups if method.aggregate == "per_group" else 1)
    given = min(nearest, method.slots * (1 if method.task_identity or restart else len(tasks)))
    heads = method.make_heads(model, tasks, restart)
    of_head = [sum(p.numel() for p in heads.trained_by(task.index)) if heads else 0 for task in tasks]
    positions = int(getattr(encoder.config, "max_position_embeddings", USUAL_TOKENS))
    return Retrieval(
        make=method.make_values,
        width=values.width,
        slots=method.slots,
        given=given,
        foreign=method.pool != "current" and not method.task_identity and not restart,
        room=given * method.prompt_length if isinstance(values, Prompts) else 0,
        trained={task.name: method.slots * values.width + own for task, own in zip(tasks, of_head, strict=True)},
        keys=method.slots * query,
        encoder=lambda: _encoder(method.encoder)[0],
        encoder_entries=sum(p.numel() for p in encoder.parameters()),
        encoder_tokens=method.encoder.max_length or min(USUAL_TOKENS, positions),
        query=query,
        key_epochs=method.key_epochs,
        key_batch_size=method.key_batch_size,
        key_step=_key_step(method, query),
        assumed=assumed,
    )


def _encoder(options: Encoder) -> tuple[PreTrainedModel, str]:
    """The sentence encoder without weights, and what is assumed of it if nothing of it is on this machine."""
    with contextlib.suppress(ImportError):
        import sentence_transformers  # noqa: F401  # the process of a run holds it
    assumed = ""
    try:
        with readable(options, KEY):
            config: Any = AutoConfig.from_pretrained(
                locate(options, KEY), revision=options.revision or "main", local_files_only=True
            )
    except ValueError:
        config = BertConfig()
        assumed = f"{options.checkpoint} is not on this machine: assumed is an encoder of BERT-base's size"
    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config)
    return model, assumed


def _key_step(method: SLM, query: int) -> Cost:
    """One step of the keys' training, on random queries: it is small enough to be done."""
    generator = torch.Generator().manual_seed(0)
    size = method.key_batch_size
    keys = new_keys(method.groups, method.slots, max(1, query // method.groups), generator)
    queries = torch.randn(size, keys.shape[0] * keys.shape[2], generator=generator)
    with Ledger() as ledger:
        train_keys(
            keys,
            queries,
            top_k=method.top_k,
            mask=method.key_mask,
            epochs=1,
            batch_size=size,
            learning_rate=method.key_learning_rate,
            decay_every=1,
            clip=method.key_clip,
            generator=generator,
        )
    return ledger.cost()


class Retrieving:
    """Passes of an imitation in which every text is given values.

    Args:
        imitation: its model is given the hooks of the values, which do nothing until something is given.
    """

    def __init__(self, imitation: Imitation, numbers: Retrieval):
        self._numbers = numbers
        self._values = numbers.make(imitation.model)
        # What is there for good, and no part of a pass.
        self._learned = nn.Parameter(imitation.empty(numbers.slots, numbers.width))
        self._others = imitation.empty(numbers.slots, numbers.width)
        self._prompts: Tensor | None = None
        if isinstance(self._values, Prompts):  # which looks at the content of ids, and there is none
            reader_of(imitation.model).get_input_embeddings().register_forward_hook(self._put)
        else:
            self._values.attach(imitation.model)

    @contextmanager
    def batch(self, examples: int, learns: bool, later: bool, accumulates: bool = False) -> Iterator[None]:
        """From now on so many texts have been given their values.

        Args:
            learns: whether the values train, nothing else of the model does.
            later: whether there was a task before.
            accumulates: whether there are gradients of a part of the batch before.
        """
        numbers = self._numbers
        given = numbers.given if later or not learns else min(numbers.given, numbers.slots)
        slots = torch.zeros(examples, given, dtype=torch.long)
        if accumulates:
            self._learned.grad = torch.empty_like(self._learned)
        if not learns:
            rows = self._others[slots]
        elif later and numbers.foreign:
            every = torch.arange(examples)[:, None].expand(examples, given), torch.arange(given).expand(examples, given)
            rows = self._others[slots].index_put(every, self._learned[slots])
        else:
            rows = self._learned[slots]
        if isinstance(self._values, Prompts):
            self._prompts = rows.reshape(examples, numbers.room * given // numbers.given, -1)
        else:
            self._values.use(rows, Retrieved(slots, torch.empty(examples, given)), Batch({}))
        del rows
        try:
            yield
        finally:
            self._values.stop()
            self._prompts = None

    def forget(self) -> None:
        """Remove the gradient that a pass has left."""
        self._learned.grad = None

    def _put(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Prompts in the place that the texts have for them."""
        if self._prompts is None or output.shape[1] < self._prompts.shape[1] or len(output) != len(self._prompts):
            return None
        return torch.cat([self._prompts.to(output.dtype), output[:, self._prompts.shape[1] :]], 1)
