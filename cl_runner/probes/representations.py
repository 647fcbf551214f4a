"""What becomes of the tasks' texts inside the model: hidden states (PIECE, figure 4), and linear CKA with the start's.

Kornblith et al. 2019, Similarity of neural network representations revisited, arXiv:1905.00414.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cl_runner.config import Count
from cl_runner.data.example import Example
from cl_runner.digests import Damaged, read, write
from cl_runner.learner import Learner
from cl_runner.needs import ProbePass
from cl_runner.probes.base import Probe, at_rest

#: What the centred products of the untouched model's states lie in, one matrix a block.
PRODUCTS = "products.safetensors"


@dataclass
class Representations(Probe):
    """Linear CKA of each block's output with that of the untouched model, 1 = the same up to rotation and scale.

    A text is one vector in each block: the first token's of a classifier, whose head reads it, or the mean over the
    tokens of a language model's prompt, in a model of two stacks the encoder's, without a decoder's first token
    (`Family.states`). All texts together are one representation; with few texts beside the width of a vector CKA is
    near 1 for whatever is nearly as it was.
    """

    families: ClassVar[tuple[str, ...]] = ("classifier", "causal", "seq2seq", "image_text")
    unit: ClassVar[str] = "linear CKA"
    layers: Annotated[list[int], Field(min_length=1)] | None
    texts: Annotated[int, Field(ge=4, le=1024)]  # products of all pairs are kept, block by block
    batch_size: Count

    def prepare(self, learner: Learner, folder: Path) -> None:
        """The untouched model's products.

        Raises:
            ValueError: a layer is asked for that the model has not; the text says what to type.
        """
        states = self._states(learner, "representations of the untouched model")
        self._chosen(len(states))
        kept = {name: products(block) for name, block in _named(states).items()}
        write(folder / PRODUCTS, save(kept))

    def measure(self, learner: Learner, folder: Path, after: str) -> dict[str, float]:
        """`cka/mean`, then `cka/layer_01` and so on; states_<after>.safetensors keeps the states of the chosen blocks.

        The file has layer_<number> -> [texts, width], fp32, and as metadata the texts' SHA-256 and how many there are
        of each task, in this order.
        """
        start = _read(folder / PRODUCTS)
        states = self._states(learner, "representations")
        named = _named(states)
        found = {f"cka/{name}": similarity(start[name], products(block)) for name, block in named.items()}
        kept = {name: named[name].contiguous() for name in (_name(number) for number in self._chosen(len(states)))}
        said = {"texts": self._digest(learner), "tasks": json.dumps([[n, len(of)] for n, of in self._texts(learner)])}
        write(folder / f"states_{after}.safetensors", save(kept, said))
        return {"cka/mean": mean(found.values()), **found}

    def passes(self, evaluated: Sequence[int]) -> Sequence[ProbePass]:
        """Every text is read, by the untouched model twice."""
        texts = sum(min(number, self._each(len(evaluated))) for number in evaluated)
        again = ProbePass("representations", texts, None, 0, self.batch_size)
        return [again._replace(name="representations of the untouched model", once=True), again]

    def _each(self, tasks: int) -> int:
        """Texts of each task."""
        return max(1, self.texts // tasks)

    def _texts(self, learner: Learner) -> list[tuple[str, Sequence[Example]]]:
        """The first texts that each task is scored on."""
        each = self._each(len(learner.tasks))
        return [(task.name, learner.scored_on(task)[:each]) for task in learner.tasks]

    def _digest(self, learner: Learner) -> str:
        """Tells texts of two runs apart."""
        content = [example.content() for _, examples in self._texts(learner) for example in examples]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _chosen(self, blocks: int) -> list[int]:
        """Numbers of the blocks whose states are kept, from 1.

        Raises:
            ValueError: there is none of such a number.
        """
        asked = [(blocks + 1) // 2, blocks] if self.layers is None else self.layers
        for number in asked:
            if not 1 <= abs(number) <= blocks:
                raise ValueError(
                    f"probe.{self.node}.layers has {number}, and the model has the blocks 1 to {blocks} "
                    f"(-1 is the last). Type: probe.{self.node}.layers=[{(blocks + 1) // 2},{blocks}]"
                )
        return sorted({number if number > 0 else blocks + 1 + number for number in asked})

    def _states(self, learner: Learner, phase: str) -> Tensor:
        """[blocks, texts, width], fp32 on the CPU."""
        examples = [example for _, of_task in self._texts(learner) for example in of_task]
        found: list[Tensor | None] = [None] * len(examples)
        done = 0
        with at_rest(learner.model):
            for positions in learner.by_length(examples, self.batch_size, answers=False):
                batch = learner.collate([examples[i] for i in positions], answers=False)
                with learner.in_precision():
                    read = learner.method.before_forward(learner, batch)
                    states = learner.family.states(learner.model, read)[1:].cpu()
                for place, position in enumerate(positions):
                    found[position] = states[:, place]
                done += len(positions)
                learner.progress(phase, done, len(examples))
        return torch.stack([each for each in found if each is not None], 1)


def products(states: Tensor) -> Tensor:
    """[texts, texts], fp64: inner products of the states [texts, width] of all pairs of texts, their mean taken off."""
    centred = states.double() - states.double().mean(0)
    return centred @ centred.T


def similarity(one: Tensor, other: Tensor) -> float:
    """Linear CKA of two representations of the same texts, from their `products`.

    ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F) of centred X and Y, which is <XX', YY'>_F / (||XX'||_F ||YY'||_F). Where all
    texts have one vector it is not defined: 1 if they have in both, else 0.
    """
    norms = float(one.norm()), float(other.norm())
    return float((one * other).sum()) / (norms[0] * norms[1]) if all(norms) else float(norms[0] == norms[1])


def _name(number: int) -> str:
    return f"layer_{number:02d}"


def _named(states: Tensor) -> dict[str, Tensor]:
    """Each block's states by its name."""
    return {_name(number): block for number, block in enumerate(states, 1)}


def _read(path: Path) -> Mapping[str, Tensor]:
    content = read(path)
    try:
        return load(content)
    except SafetensorError as error:
        raise Damaged(path, f"cannot be read ({error})") from None
