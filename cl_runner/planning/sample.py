"""A small real model of the run's architecture: which share of a machine's rates its passes reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from cl_runner.digests import Damaged, replace_file, sealed, unsealed
from cl_runner.planning.alike import Cost
from cl_runner.planning.architecture import Architecture
from cl_runner.planning.imitation import Device, Imitation, Ledger
from cl_runner.planning.passes import Stage
from cl_runner.planning.prices import Prices
from cl_runner.planning.setting import Setting
from cl_runner.planning.speed import Speed, now
from cl_runner.tracking.environment import describe_environment

CPU = torch.device("cpu")
#: Layers of each stack that a sample has.
LAYERS = 2
#: Seconds that a timed pass may take by the rates, as if layers and embeddings took alike; a longer one has fewer
#: examples, then fewer tokens. By the clock it is two to five times as long.
PASS_SECONDS = 0.06
#: Examples that are left of a pass at least: products of a single one go other ways.
FEWEST = 2
#: Tokens that are left of a text at least.
SHORT = 16
#: Seconds by the rates of the shortest pass that is still timed; of billions of weights in few layers and embeddings it
#: takes minutes.
LONGEST = 1.0
#: Tokens that are generated to find out what one costs beside its pass.
TOKENS = 6


Noted = TypeVar("Noted")


def shortened(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the first layers of each of its stacks alone."""
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for name in list(module._modules)[LAYERS:]:
                del module._modules[name]
    return model


class Sample(Imitation):
    """A model with weights, all alike, on the CPU.

    Args:
        skeleton: the architecture on the meta device, which is given weights.
    """

    def __init__(self, skeleton: PreTrainedModel, dtype: torch.dtype, device: Device):
        self.model = skeleton
        nn.Module.to(skeleton.to_empty(device="cpu"), dtype)
        skeleton.tie_weights()  # which new tensors are not
        self.device = device
        self._stack = None
        with torch.no_grad():
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                tensor.fill_(0.01 if tensor.is_floating_point() else 0)

    def costs(self, stages: Sequence[Stage], chosen: object = (), folds: bool = True) -> list[Cost]:
        """Each stage, counted and timed at once, which warms up, and timed once more; the quicker time counts."""
        ledger = Ledger()
        with ledger:
            first = self._done(stages, lambda began: (now(CPU) - began, ledger.cost()))
        again = self._done(stages, lambda began: now(CPU) - began)
        pairs = zip(first, again, strict=True)
        return [dataclasses.replace(cost, seconds=min(slow, quick)) for (slow, cost), quick in pairs]

    def _done(self, stages: Sequence[Stage], note: Callable[[float], Noted]) -> list[Noted]:
        """What is noted of each stage, from the time when it began."""
        kept: Any = None
        found = []
        for stage in stages:
            began = now(CPU)
            kept = stage(self.model, kept)
            found.append(note(began))
        for parameter in self.model.parameters():
            parameter.grad = None
        return found


def sampled(
    prices: Prices, skeleton: Callable[[], PreTrainedModel], s: Setting, calibrated: Callable[[], Speed]
) -> Speed:
    """The speed of this CPU with what passes of the architecture reach of it, measured on few of its layers.

    Processes that share prices share it as well.

    Args:
        prices: of the whole architecture.
        skeleton: makes the architecture on the meta device.
        calibrated: the rates.
    """
    hardware = describe_environment("", "cpu")["hardware"]
    here = (*(hardware[key] for key in ("cpu", "cores")), torch.get_num_threads())
    batches = (*s.micro_batch.items(), s.importance_batch, s.importance_micro_batch, s.evaluation_batch, s.probes)
    kinds = {task.trains for task in s.tasks}, any(task.measured for task in s.tasks)
    place = prices.place(s, ("speed", *here, *batches, sorted(kinds[0]), kinds[1]))
    if place is not None and place.is_file():
        with suppress(Damaged):
            return Speed(**unsealed(place)["speed"])
    speed = calibrated()
    try:
        speed = _sampled(prices, skeleton, s, speed)
    except Exception as error:  # what a cut architecture cannot do, the whole one may: the plan says so
        speed = dataclasses.replace(speed, untimed=f"{type(error).__name__}: {' '.join(str(error).split())}")
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, sealed({"speed": dataclasses.asdict(speed)}))
    return speed


def _sampled(prices: Prices, skeleton: Callable[[], PreTrainedModel], s: Setting, speed: Speed) -> Speed:
    short = 6 * FEWEST * SHORT * shortened(skeleton()).num_parameters() / speed.flops_per_second
    if short > LONGEST:
        return dataclasses.replace(speed, untimed=f"their shortest pass takes {short:,.0f} s here")
    real = Prices(Architecture(lambda: shortened(skeleton()), Sample))
    entries = real.architecture.parameters(s)
    part = entries / prices.architecture.parameters(s)
    training = [task for task in s.tasks if task.trains != "nothing"]
    way = next(iter(prices.evaluate(s)))
    kinds: dict[str, Callable[[Prices, Setting], Cost]] = {"read": lambda of, few: of.evaluate(few)[way][0]}
    if training:
        kinds["train"] = lambda of, few: of.train(few, training[-1])
    if any(each.measured for each in s.tasks):
        kinds["importance"] = lambda of, few: of.importance(few)
    reads = [number for number, probe in enumerate(s.probes) if not probe.generated]
    if reads:
        most = max(reads, key=lambda number: s.probes[number].texts * (s.probes[number].tokens or s.mean_whole))
        kinds["probe"] = lambda of, few: of.probe(few, few.probes[most], at_mean=True)[0]
    reached = {}
    for kind, price in kinds.items():
        cost = price(real, smaller(s, part * speed.seconds(price(prices, s))))
        reached[kind] = speed.seconds(cost) / cost.seconds
    if way != "generate" or s.answers is None:
        return dataclasses.replace(speed, reached=reached)
    # A batch's whole cache, most of it not read but given: how much of it lies in the processor's matters.
    beyond = max(0, s.max_length - SHORT)
    said = dataclasses.replace(s.answers, generated=s.answers.generated + beyond)
    few = dataclasses.replace(s, max_length=s.max_length - beyond, answers=said)
    token = real.evaluate(few)[way][-1]
    planned = speed.seconds(token) + s.dtype.itemsize * entries / speed.streams
    reached["token"] = planned / token.seconds
    few = dataclasses.replace(few, evaluation_batch=FEWEST)
    beside = _generated(real.architecture.imitation(s).model, few) - real.evaluate(few)[way][-1].seconds
    return dataclasses.replace(speed, reached=reached, seconds_per_token=max(0.0, beside))


def smaller(s: Setting, seconds: float) -> Setting:
    """The same run with so few examples in a pass, and so short ones, that it takes no longer than may be.

    Args:
        seconds: of the pass as it is.
    """
    share = PASS_SECONDS / seconds
    if share >= 1:
        return s
    largest = max(*s.micro_batch.values(), s.importance_pass, s.evaluation_batch)

    def less(size: int) -> int:
        return min(size, max(FEWEST, int(share * size)))

    return dataclasses.replace(
        s,
        micro_batch={stage: less(size) for stage, size in s.micro_batch.items()},
        importance_batch=less(s.importance_batch),
        importance_micro_batch=less(s.importance_micro_batch),
        evaluation_batch=less(s.evaluation_batch),
        probes=tuple(probe._replace(batch_size=less(probe.batch_size)) for probe in s.probes),
        max_length=max(SHORT, int(s.max_length * min(1.0, share * largest))),
    )


def _generated(model: PreTrainedModel, s: Setting) -> float:
    """Seconds of a token of a batch that the library generates."""
    ids = torch.ones(s.evaluation_batch, s.max_length, dtype=torch.long)
    special = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": None}

    def seconds(tokens: int) -> float:
        asked = GenerationConfig(max_new_tokens=tokens, do_sample=False, num_beams=1, **special)
        began = now(CPU)
        with torch.no_grad():
            model.generate(ids, attention_mask=ids, generation_config=asked)  # type: ignore[operator]
        return now(CPU) - began

    model.eval()
    seconds(1)
    return (seconds(TOKENS) - seconds(1)) / (TOKENS - 1)
