"""What a plan reads of the model: names, shapes, numbers of entries, and the imitations that passes are priced on."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cl_runner.families.freezing import frozen
from cl_runner.needs import Adapts
from cl_runner.planning.imitation import Device, Imitation
from cl_runner.planning.retrieval import Retrieving
from cl_runner.planning.setting import Setting, TaskNumbers
from cl_runner.sparse.layers import WHOLE_INPUT

#: Input columns of a layer that hold its most important entries; measured 2 to 40 of 384 (scripts/bench).
CLUSTERED_SHARE = 0.1


class Architecture:
    """A model without weights.

    Args:
        skeleton: makes the architecture on the meta device.
        imitates: makes of it what passes are priced on.
    """

    def __init__(
        self,
        skeleton: Callable[[], PreTrainedModel],
        imitates: Callable[[PreTrainedModel, torch.dtype, Device], Imitation] = Imitation,
    ):
        def imitate(dtype: torch.dtype, device: Device, adapts: Adapts | None) -> Imitation:
            model = skeleton()
            if adapts is not None:
                adapts(model)
            return imitates(model, dtype, device)

        def trainable(imitation: Imitation) -> dict[str, int]:
            never = frozen(imitation.model)
            return {name: size for name, size in imitation.sizes().items() if name not in never}

        self._imitation = functools.cache(imitate)
        # Asked for every task and every stage, and for all tasks before each: of each model once.
        self._sizes = functools.cache(lambda imitation: imitation.sizes())
        self._trainable = functools.cache(trainable)
        self._retrieving: dict[tuple[torch.dtype, Device], Retrieving] = {}

    def imitation(self, s: Setting) -> Imitation:
        """The same model for all settings with its type of weights and device, and what their methods add to it."""
        return self._imitation(s.dtype, s.device, s.needs.adapts)

    def retrieving(self, s: Setting) -> Retrieving:
        """What gives the texts of an imitation their values."""
        key = (s.dtype, s.device)
        assert s.needs.retrieves is not None
        if key not in self._retrieving:
            self._retrieving[key] = Retrieving(self.imitation(s), s.needs.retrieves)
        return self._retrieving[key]

    # entries
    def sizes(self, s: Setting) -> dict[str, int]:
        """Entries of every parameter by name, tied ones once."""
        return self._sizes(self.imitation(s))

    def parameters(self, s: Setting) -> int:
        """Number of the model's parameters."""
        return sum(self.sizes(s).values())

    def trainable(self, s: Setting) -> dict[str, int]:
        """Entries of all tensors but those that the backbone freezes."""
        return self._trainable(self.imitation(s))

    def measured(self, s: Setting) -> Mapping[str, int]:
        """Entries of what importance is measured of, by parameter name."""
        assert s.needs.measured != "selected", "a chain's needs name the candidates"
        return self.trainable(s) if s.needs.measured is None else s.needs.measured

    def measured_names(self, s: Setting) -> Collection[str]:
        """Names of parameters of which something is measured, as far as they are told."""
        return () if s.needs.measured is None or s.needs.measured == "selected" else s.needs.measured.keys()

    def blocks(self, s: Setting) -> tuple[int, int]:
        """Entries of the largest of the numbered blocks of the model, and of what lies outside of them."""
        found: dict[str, int] = {}
        for name, size in self.sizes(s).items():
            numbered = re.match(r".*?\.\d+(?=\.)", name)
            place = numbered[0] if numbered else ""
            found[place] = found.get(place, 0) + size
        outside = found.pop("", 0)
        return max(found.values(), default=0), outside

    def width(self, s: Setting) -> int:
        """Width of the model: inputs of its median product."""
        modules = self.imitation(s).model.modules()
        widths = sorted(m.weight.shape[1] for m in modules if isinstance(m, nn.Linear | Conv1D))
        return int(widths[len(widths) // 2])

    def in_products(self, s: Setting, among: Collection[str]) -> int:
        """Entries of the weights that inputs are multiplied with: all but embeddings, norms and biases."""
        modules = self.imitation(s).model.named_modules()
        found = {f"{name}.weight": m.weight.numel() for name, m in modules if isinstance(m, nn.Linear | Conv1D)}
        return sum(size for name, size in found.items() if name in among)

    def kept_columns(self, s: Setting) -> dict[str, int | None]:
        """Input columns that each layer with selected entries keeps for backward; None = its whole input.

        K entries drawn at random from a weight with D columns lie in about D (1 - (1 - 1/D)^K) of them.
        """
        columns: dict[str, int | None] = {}
        for name, module in self.imitation(s).model.named_modules():
            if not isinstance(module, nn.Linear | Conv1D) or f"{name}.weight" not in s.needs.candidates:
                continue
            inputs = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
            entries = s.needs.fraction * module.weight.numel()
            number = inputs * (1 - (1 - 1 / inputs) ** entries)
            if s.needs.clustered:
                number = min(number, CLUSTERED_SHARE * inputs)
            columns[name] = None if number > WHOLE_INPUT * inputs else round(number)
        return columns

    # what trains
    def trained(self, s: Setting, task: TaskNumbers) -> int:
        """Entries that a task trains."""
        match task.trains:
            case "all":
                return sum(self.trainable(s).values())
            case "selected":
                return round(s.needs.fraction * sum(s.needs.candidates.values()))
            case "listed":
                return sum(s.needs.listed.values())
            case "retrieved":
                assert s.needs.retrieves is not None
                return s.needs.retrieves.trained[task.name]
            case "nothing":
                return 0

    def kept_bytes(self, s: Setting, task: TaskNumbers) -> int:
        """What the methods hold at a task of those up to it, by what trained there: start values and directions."""
        before = s.tasks[: s.tasks.index(task)] if task.later and s.needs.directions else ()
        held = sum(min(s.needs.directions, each.examples) * self.touched(s, each) for each in before)
        return self._start_bytes(s, task) + 4 * held

    def touched(self, s: Setting, task: TaskNumbers) -> int:
        """Entries of the tensors of which something trains in a task."""
        return sum(s.needs.candidates.values()) if task.trains == "selected" else self.trained(s, task)

    def _start_bytes(self, s: Setting, task: TaskNumbers) -> int:
        """Of what trained up to a task, as it was before the first one, where the methods hold that."""
        if not s.needs.start_values:
            return 0
        whole, some = 0, 0
        for each in s.tasks[: s.tasks.index(task) + 1]:
            trained = self.trained(s, each)
            if each.trains in ("all", "listed"):
                whole = max(whole, s.dtype.itemsize * trained)
            else:  # others in every task: their positions, and values
                some += (8 + s.dtype.itemsize if each.trains == "selected" else 4) * trained
        return whole if whole >= s.dtype.itemsize * self.parameters(s) else whole + some

    def largest(self, s: Setting, task: TaskNumbers) -> int:
        """Entries of the largest tensor that trains; selected ones count together."""
        match task.trains:
            case "all":
                return max(self.sizes(s).values())
            case "listed":
                return max(s.needs.listed.values())
            case _:
                return self.trained(s, task)

    def shapes(self, s: Setting, task: TaskNumbers) -> list[Sequence[int]]:
        """Of the tensors that the optimizer of a task holds; selected entries are vectors."""
        if task.trains in ("all", "listed"):
            names = self.trainable(s) if task.trains == "all" else s.needs.listed
            return [tuple(p.shape) for name, p in self.imitation(s).model.named_parameters() if name in names]
        trained = self.trained(s, task)
        if task.trains == "retrieved":
            assert s.needs.retrieves is not None
            values = (s.needs.retrieves.slots, s.needs.retrieves.width)
            return [values, (trained - values[0] * values[1],)]
        return [(trained,)]
