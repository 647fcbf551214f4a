"""What a method that retrieves values for every text adds to a plan: its encoder in numbers, and its passes.

The values enter an imitation as they enter a model, so that autograd keeps of them what it keeps in a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, PreTrainedModel

from cl_runner.batch import Batch
from cl_runner.config import Encoder
from cl_runner.layers.before import reader_of
from cl_runner.layers.prompts import Prompts
from cl_runner.layers.values import Retrieved
from cl_runner.needs import Retrieves
from cl_runner.planning.alike import Cost
from cl_runner.planning.imitation import Imitation, Ledger
from cl_runner.pretrained.places import locate
from cl_runner.pretrained.reading import readable
from cl_runner.retrieval.encoder import KEY
from cl_runner.retrieval.keys import new_keys, train_keys

#: Tokens of a text that most sentence encoders read, where theirs are not known.
USUAL_TOKENS = 256


@dataclass(frozen=True)
class EncoderNumbers:
    """A sentence encoder, and the keys that are trained on its vectors, in numbers.

    Attributes:
        make: makes its architecture on the meta device.
        entries: its parameters.
        tokens: the most that it reads of a text.
        query: numbers of a text's vector.
        key_step: what a step of the keys' training costs.
        assumed: what was not known and taken for granted; empty if nothing.
    """

    make: Callable[[], PreTrainedModel]
    entries: int
    tokens: int
    query: int
    key_step: Cost
    assumed: str


def encoder_of(numbers: Retrieves) -> EncoderNumbers:
    """The encoder that gives texts the vectors by which they retrieve."""
    model, assumed = _encoder(numbers.encoder)
    query = int(model.config.hidden_size)
    positions = int(getattr(model.config, "max_position_embeddings", USUAL_TOKENS))
    return EncoderNumbers(
        make=lambda: _encoder(numbers.encoder)[0],
        entries=sum(p.numel() for p in model.parameters()),
        tokens=numbers.encoder.max_length or min(USUAL_TOKENS, positions),
        query=query,
        key_step=_key_step(numbers, query),
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
                locate(options, KEY),
                revision=options.revision or "main",
                local_files_only=True,
                trust_remote_code=False,
            )
    except ValueError:
        config = BertConfig()
        assumed = f"{options.checkpoint} is not on this machine: assumed is an encoder of BERT-base's size"
    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config)
    return model, assumed


def _key_step(numbers: Retrieves, query: int) -> Cost:
    """One step of the keys' training, on random queries: it is small enough to be done."""
    generator = torch.Generator().manual_seed(0)
    size = numbers.key_batch_size
    keys = new_keys(numbers.groups, numbers.slots, max(1, query // numbers.groups), generator)
    queries = torch.randn(size, keys.shape[0] * keys.shape[2], generator=generator)
    with Ledger() as ledger:  # neither mask nor rate nor clipping change what it costs
        train_keys(
            keys,
            queries,
            top_k=numbers.top_k,
            mask=0.5,
            epochs=1,
            batch_size=size,
            learning_rate=0.1,
            decay_every=1,
            clip=1.0,
            generator=generator,
        )
    return ledger.cost()


class Retrieving:
    """Passes of an imitation in which every text is given values.

    Args:
        imitation: its model is given the hooks of the values, which do nothing until something is given.
    """

    def __init__(self, imitation: Imitation, numbers: Retrieves):
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
