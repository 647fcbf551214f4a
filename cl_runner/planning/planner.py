"""The plan of a run: memory of each phase, disk, counts and time, from numbers and an architecture without weights.

Memory is what the process (on a GPU: its allocator) holds at the peak of a phase: what stays there (weights, optimizer
state, what methods remember) is added up here, what a pass allocates is measured on an `Imitation`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cl_runner.batch import Output
from cl_runner.checkpoint import replace_file
from cl_runner.families.freezing import frozen
from cl_runner.planning import passes
from cl_runner.planning.imitation import Cost, Device, Imitation, checkpointing, keeping_inputs
from cl_runner.planning.retrieval import Retrieval, Retrieving
from cl_runner.planning.setting import Setting, TaskNumbers, Trains
from cl_runner.planning.speed import Speed
from cl_runner.retrieval.encoder import AT_ONCE
from cl_runner.sparse.layers import WHOLE_INPUT

#: A CUDA context and its kernels, which torch's allocator does not count.
CUDA_CONTEXT_BYTES = 500_000_000
#: Input columns of a layer that hold its most important entries; measured 2 to 40 of 384 (scripts/bench).
CLUSTERED_SHARE = 0.1
#: Bytes of a line in predictions/*.jsonl, and of each token in it.
PREDICTION_BYTES = 100
TOKEN_BYTES = 4
#: glibc's heap grows beyond what lives in it while a pass keeps and frees tensors by turns: 1.15 to 1.45 times where
#: that was measured, on MiniLM; language models that read prompts: 1.2 to 1.8.
HEAP_SHARE = 1.35
PROMPT_HEAP_SHARE = 1.75
#: Reads and writes of AdamW and of clipping, in bytes per trained fp32 entry and step.
OPTIMIZER_TRAFFIC = 40


@dataclass(frozen=True)
class Phase:
    """The peak memory and the time of one phase; seconds are None where nothing says how fast the device is."""

    bytes: int
    seconds: float | None
    examples: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Attributes:
        phases: load, importance, train, evaluate.
        kept_bytes: of the finished run's folder; `disk` also says what is there while it runs.
        trainable: entries that train, by task.
        flops_per_token: of training, by task: of the model's products, forward and backward, for one token.
        flops_per_second: products of this device, calibrated; None where that was not done.
        basis: what the seconds are based on.
    """

    phases: dict[str, Phase]
    disk: dict[str, int]
    kept_bytes: int
    parameters: int
    trainable: dict[str, int]
    flops_per_token: dict[str, float]
    flops_per_second: float | None
    steps: int
    basis: str


class Planner:
    """Plans of runs with one architecture; passes that were priced once are remembered.

    Args:
        skeleton: makes the architecture on the meta device.
        base_bytes: of the process before there is a model; on a GPU 0, as its allocator counts.
    """

    def __init__(self, skeleton: Callable[[], PreTrainedModel], base_bytes: int):
        self.base_bytes = base_bytes
        self._imitation = functools.cache(lambda dtype, device: Imitation(skeleton(), dtype, device))
        self._retrieving: dict[object, Retrieving] = {}
        self._priced: dict[object, list[Cost]] = {}

    # passes

    def _costs(self, s: Setting, key: object, stages: Sequence[passes.Stage]) -> list[Cost]:
        key = (key, s.dtype, s.device, s.precision, s.max_length, s.answers)
        if key not in self._priced:
            self._priced[key] = self._imitation(s.dtype, s.device).costs(stages)
        return self._priced[key]

    def _cost(self, s: Setting, key: object, work: Callable[[PreTrainedModel], object]) -> Cost:
        return self._costs(s, key, [lambda model, _: work(model)])[0]

    @contextmanager
    def _given(self, s: Setting, examples: int, **how: bool) -> Iterator[None]:
        """Inside, so many texts have been given what they retrieve, if they retrieve anything."""
        if s.memory.retrieval is None:
            yield
            return
        with self._retrieval(s).batch(examples, **how):
            yield

    def _retrieval(self, s: Setting) -> Retrieving:
        key = (s.dtype, s.device)
        assert s.memory.retrieval is not None
        if key not in self._retrieving:
            self._retrieving[key] = Retrieving(self._imitation(*key), s.memory.retrieval)
        return self._retrieving[key]

    def _train(self, s: Setting, stage: str, trains: Trains, later: bool) -> Cost:
        """One forward and backward pass of training, with the gradients it leaves.

        Args:
            later: whether there was a task before.
        """
        examples, accumulates = s.micro_batch[stage], s.micro_batch[stage] < s.batch_size[stage]
        columns = self._columns(s) if trains == "selected" else {}
        half = s.dtype.itemsize < 4
        teacher = s.memory.teacher if later else None
        trainable = self._trainable(s)

        def of_teacher(logits: Tensor) -> Tensor:
            return logits if teacher == "logits" else logits.softmax(-1)

        def run(model: PreTrainedModel) -> None:
            with checkpointing(model, s.gradient_checkpointing):
                old = None
                if teacher is not None:
                    model.eval()
                    with torch.no_grad():
                        old = of_teacher(self._output(model, s, examples).logits)
                model.train()
                output = self._output(model, s, examples)
                loss = output.loss
                if old is not None:
                    loss = loss + (of_teacher(output.logits) - old).square().sum(-1).mean()
                loss.backward()

        def work(model: PreTrainedModel) -> None:
            if trains == "selected":
                layers = {model.get_submodule(name): number for name, number in columns.items()}
                with keeping_inputs(model, layers, room=False):
                    run(model)
                return
            if trains == "retrieved":
                model.requires_grad_(False)
                with self._given(s, examples, learns=True, later=later, accumulates=accumulates):
                    run(model)
                return
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in (s.memory.listed if trains == "listed" else trainable))
            learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
            full: dict[Tensor, Tensor] = {}  # gradients of half-precision weights are kept in fp32
            if accumulates:  # there are gradients of the part of the batch before
                for parameter in learning:
                    if half:
                        full[parameter] = torch.empty_like(parameter, dtype=torch.float32)
                    else:
                        parameter.grad = torch.empty_like(parameter)

            def collect(parameter: Tensor) -> None:
                assert parameter.grad is not None
                gradient = parameter.grad.float()
                full[parameter] = full[parameter].add_(gradient) if accumulates else gradient
                parameter.grad = None

            handles = [p.register_post_accumulate_grad_hook(collect) for p in learning if half]
            try:
                run(model)
            finally:
                for handle in handles:
                    handle.remove()

        key = ("train", trains, examples, accumulates, s.gradient_checkpointing, teacher)
        if trains == "retrieved":
            retrieval = self._retrieval(s)
            found = self._cost(s, (*key, later), work)
            retrieval.forget()
            return found
        return self._cost(s, (*key, tuple(columns.items())), work)

    def _columns(self, s: Setting) -> dict[str, int | None]:
        """Input columns that each layer with selected entries keeps for backward; None = its whole input.

        K entries drawn at random from a weight with D columns lie in about D (1 - (1 - 1/D)^K) of them.
        """
        columns: dict[str, int | None] = {}
        for name, module in self._imitation(s.dtype, s.device).model.named_modules():
            if not isinstance(module, nn.Linear | Conv1D) or f"{name}.weight" not in s.memory.candidates:
                continue
            inputs = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
            entries = s.memory.fraction * module.weight.numel()
            number = inputs * (1 - (1 - 1 / inputs) ** entries)
            if s.memory.clustered:
                number = min(number, CLUSTERED_SHARE * inputs)
            columns[name] = None if number > WHOLE_INPUT * inputs else round(number)
        return columns

    def _importance(self, s: Setting) -> Cost:
        """One forward and backward pass of the importance phase, without its sums."""
        examples = s.importance_batch if s.per_example else s.importance_micro_batch

        def square(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.float()
            gradient * gradient
            parameter.grad = None

        measured = self._measured(s)

        def work(model: PreTrainedModel) -> None:
            model.eval()
            wanted = [parameter for name, parameter in model.named_parameters() if name in measured]
            if s.per_example:
                found = set(wanted)
                layers = (m for m in model.modules() if found.intersection(m.parameters(recurse=False)))
                with keeping_inputs(model, {m: None for m in layers if not isinstance(m, nn.Embedding)}, room=True):
                    self._loss_sum(model, s, examples).backward()
                return
            model.requires_grad_(False)
            for parameter in wanted:
                parameter.requires_grad_(True)
            handles = [parameter.register_post_accumulate_grad_hook(square) for parameter in wanted]
            try:
                if s.importance_micro_batch == 1:
                    self._loss_sum(model, s, examples).backward()
                else:
                    self._output(model, s, examples).loss.backward()
            finally:
                for handle in handles:
                    handle.remove()

        return self._cost(s, ("importance", s.per_example, examples, tuple(measured)), work)

    def _output(self, model: nn.Module, s: Setting, examples: int) -> Output:
        """A forward pass over the longest examples, in the run's precision."""
        # The imitation lies on the CPU, whatever the run's device.
        with torch.autocast("cpu", torch.bfloat16, enabled=s.precision == "bf16"):
            return passes.outputs(model, s, examples)

    def _loss_sum(self, model: nn.Module, s: Setting, examples: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=s.precision == "bf16"):
            return passes.loss_sum(model, s, examples)

    def _evaluate(self, s: Setting) -> dict[str, list[Cost]]:
        """The stages of each way to evaluate a batch."""

        def without_gradient(stage: passes.Stage) -> passes.Stage:
            def work(model: PreTrainedModel, given: Any) -> Any:
                model.eval()
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=s.precision == "bf16"):
                    return stage(model, given)

            return work

        found = {}
        for way, stages in passes.answers(s).items():
            works = [without_gradient(stage) for stage in stages]
            with ExitStack() as stack:  # what a batch retrieves serves all its stages
                works[0] = self._giving(s, works[0], stack)
                found[way] = self._costs(s, (way, s.evaluation_batch), works)
        return found

    def _giving(self, s: Setting, stage: passes.Stage, stack: ExitStack) -> passes.Stage:
        """A stage of evaluation that begins with what its texts retrieve, which is there until `stack` ends."""
        if s.memory.retrieval is None:
            return stage
        retrieval = self._retrieval(s)

        def work(model: PreTrainedModel, given: Any) -> Any:
            stack.enter_context(retrieval.batch(s.evaluation_batch, learns=False, later=True))
            return stage(model, given)

        return work

    def _encode(self, s: Setting, r: Retrieval) -> Cost:
        """A pass of the sentence encoder over its longest texts."""

        def work(model: PreTrainedModel) -> None:
            model.eval()
            with torch.no_grad():
                ids = torch.zeros(min(AT_ONCE, s.encoded), s.encoder_length, dtype=torch.long)
                model(input_ids=ids, attention_mask=torch.zeros_like(ids))

        key = ("encode", s.encoded, s.encoder_length, s.device)
        if key not in self._priced:
            self._priced[key] = [Imitation(r.encoder(), torch.float32, s.device).cost(work)]
        return self._priced[key][0]

    def _forward_flops(self, s: Setting, retrieves: bool = False) -> float:
        """FLOPs of the model's products in a forward pass, per token of examples of the mean length."""
        mean = s.at_mean()
        if retrieves:
            self._retrieval(s)

        def work(model: PreTrainedModel) -> None:
            model.eval()
            with torch.no_grad(), ExitStack() as stack:
                if retrieves:
                    stack.enter_context(self._given(s, 1, learns=False, later=True))
                self._output(model, mean, 1)

        return self._cost(mean, ("forward", retrieves), work).flops / mean.max_whole

    def flops_per_token(self, s: Setting, task: TaskNumbers) -> float:
        """FLOPs of training for one token that is no padding, products and attention, as a share of a peak counts them.

        Backward computes the gradients of inputs, and of whole weights as well: each costs what the forward pass does
        (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). What is computed twice to save memory counts once.
        """
        if task.trains == "nothing":
            return 0.0
        forward = self._forward_flops(s)
        if task.trains == "retrieved":  # of their own products both gradients are computed
            return 2 * forward + 3 * (self._forward_flops(s, retrieves=True) - forward)
        return (3 if task.trains == "all" else 2) * forward

    # sums

    def _in_products(self, s: Setting, among: Collection[str]) -> int:
        """Entries of the weights that inputs are multiplied with: all but embeddings, norms and biases."""
        modules = self._imitation(s.dtype, s.device).model.named_modules()
        found = {f"{name}.weight": m.weight.numel() for name, m in modules if isinstance(m, nn.Linear | Conv1D)}
        return sum(size for name, size in found.items() if name in among)

    def _without_rule(self, s: Setting) -> bool:
        """Whether the importance pass must go through single examples as well, for T5's table of positions."""
        return any(name.endswith("relative_attention_bias.weight") for name in self._measured(s))

    def _measured(self, s: Setting) -> Mapping[str, int]:
        """Entries of what importance is measured of, by parameter name."""
        return self._trainable(s) if s.memory.measured is None else s.memory.measured

    def _trainable(self, s: Setting) -> Mapping[str, int]:
        """Entries of all tensors but those that the backbone freezes."""
        never = frozen(self._imitation(s.dtype, s.device).model)
        return {name: size for name, size in self._sizes(s).items() if name not in never}

    def _sizes(self, s: Setting) -> dict[str, int]:
        return self._imitation(s.dtype, s.device).sizes()

    def parameters(self, s: Setting) -> int:
        """Number of the model's parameters."""
        return sum(self._sizes(s).values())

    def width(self, s: Setting) -> int:
        """Width of the model: inputs of its median product."""
        modules = self._imitation(s.dtype, s.device).model.modules()
        widths = sorted(m.weight.shape[1] for m in modules if isinstance(m, nn.Linear | Conv1D))
        return int(widths[len(widths) // 2])

    def trained(self, s: Setting, task: TaskNumbers) -> int:
        """Entries that a task trains."""
        match task.trains:
            case "all":
                return sum(self._trainable(s).values())
            case "selected":
                return round(s.memory.fraction * sum(s.memory.candidates.values()))
            case "listed":
                return sum(s.memory.listed.values())
            case "retrieved":
                assert s.memory.retrieval is not None
                return s.memory.retrieval.trained[task.name]
            case "nothing":
                return 0

    def phases(self, s: Setting) -> list[str]:
        """The phases of a run that take memory of their own, training by stage."""
        stages = dict.fromkeys(f"train {task.stage}" for task in s.tasks if task.trains != "nothing")
        importance = ["importance"] if any(task.measured for task in s.tasks) else []
        retrieval = ["queries", "keys"] if s.memory.retrieval is not None else []
        return ["load", *importance, *retrieval, *stages, "evaluate"]

    def peak(self, s: Setting, phase: str) -> int:
        """Peak bytes of one of `phases`."""
        entries = self.parameters(s)
        copies = 2 if s.restart else 1
        fixed = self.base_bytes + entries * s.dtype.itemsize * copies
        r = s.memory.retrieval
        if r is not None:
            fixed += 4 * r.stored * copies
        if phase == "load":
            return fixed + (0 if r is None else 4 * r.stored)  # tasks' values, before they lie in one tensor
        if r is not None:
            fixed += 4 * (r.encoder_entries + (s.encoded * r.query if s.device == "cpu" else 0))
            if phase == "queries":
                return fixed + _held_by_pass(self._encode(s, r), s.device)
            if phase == "keys":
                return fixed
        fixed += s.memory.weight_bytes * entries
        if phase.startswith("train "):
            tasks = [(n, t) for n, t in enumerate(s.tasks) if phase == f"train {t.stage}" and t.trains != "nothing"]
            return fixed + max(self._training(s, task, number > 0) for number, task in tasks)
        # What the methods held for a task is there until they hold it for the next one.
        fixed += max((self._held(s, task) for task in s.tasks[1:]), default=0)
        if phase == "evaluate":
            costs = [cost for stages in self._evaluate(s).values() for cost in stages]
            share = HEAP_SHARE if s.answers is None else PROMPT_HEAP_SHARE
            return fixed + max(_held_by_pass(cost, s.device, share) for cost in costs)
        work, mean = _held_by_pass(self._importance(s), s.device), s.memory.mean_bytes * sum(self._measured(s).values())
        # The mean comes after the pass, whose memory only a GPU's allocator uses again for tensors of that size.
        return fixed + self._sums(s) + (max(work, mean) if s.device == "cuda" else work + mean)

    def memory(self, s: Setting) -> dict[str, int]:
        """Peak bytes of each of `phases`."""
        return {phase: self.peak(s, phase) for phase in self.phases(s)}

    def _held(self, s: Setting, task: TaskNumbers) -> int:
        """Bytes that the methods hold for a task after the first."""
        entry = s.memory.entry_bytes + (s.dtype.itemsize if s.memory.teacher is not None else 0)
        return entry * self.trained(s, task) + s.memory.example_bytes * task.examples

    def _sums(self, s: Setting) -> int:
        """Bytes of the sums of the importance pass on the run's device (cl_runner/sparse/importance.py)."""
        sizes = self._measured(s)
        of_a_weight = s.memory.sums * s.memory.sum_item
        if s.device == "cpu" or (s.accumulate == "device" and s.passes == 1):
            return of_a_weight * sum(sizes.values())
        largest = max(sizes.values())
        if s.accumulate == "cpu":  # one tensor's at a time
            return of_a_weight * largest
        return of_a_weight * max(largest, sum(sizes.values()) // s.passes)

    def _training(self, s: Setting, task: TaskNumbers, later: bool) -> int:
        """What training a task adds to the weights and to what the methods hold for good."""
        sizes, item = self._sizes(s), 4 if task.trains == "retrieved" else s.dtype.itemsize
        trained = self.trained(s, task)
        held = item * trained  # their values before the task
        held += 8 * trained  # AdamW's moments, fp32
        held += self._held(s, task) if later else 0
        step = _held_by_pass(self._train(s, task.stage, task.trains, later), s.device)
        if task.trains == "selected":
            held += (4 + 8) * trained  # current values and positions
            step += 4 * trained  # gradients of the values
            largest = trained
        else:
            held += 4 * trained if item < 4 else 0  # fp32 copies
            tensors = {"listed": s.memory.listed, "retrieved": {task.name: trained}}.get(task.trains, sizes)
            largest = max(tensors.values())
        penalty = 4 * (trained + 3 * largest) if later and s.memory.entry_bytes else 0
        return held + max(step, penalty, self._state(s, task, later))

    def _state(self, s: Setting, task: TaskNumbers, later: bool) -> int:
        """Bytes of a checkpoint inside a task: what trains, its moments, what the methods need to go on."""
        trained = self.trained(s, task)
        state = 12 * trained + s.memory.weight_bytes * self.parameters(s)
        if later:  # of the two that EWC holds, the anchor follows from the weights
            state += s.memory.entry_bytes // 2 * trained + s.memory.example_bytes * task.examples
        return state + (8 * trained if task.trains == "selected" else 0)

    def disk(self, s: Setting) -> dict[str, int]:
        """Bytes on disk: "snapshots" and "predictions" stay, "state while running" goes when the run is done."""
        item = s.dtype.itemsize
        said = 0.0 if s.answers is None else s.answers.mean_length + s.answers.mean_generated
        kept, hidden, state = 0, 0, 0
        for number, task in enumerate(s.tasks):
            trained = self.trained(s, task)
            # A sparse snapshot holds a position (mostly a 16-bit gap) and old and new value in one word.
            change = trained * (2 + item) if task.trains == "selected" else trained * item
            if s.memory.retrieval is not None:
                change = 4 * (trained + s.memory.retrieval.keys)
            whole = task.trains in ("all", "listed")
            if s.snapshots == "all" or (s.snapshots == "sparse" and not (whole and number)):
                kept += change
            else:
                hidden = max(hidden, change)
            state = max(state, self._state(s, task, number > 0))
        r = s.memory.retrieval
        queries = {} if r is None else {"cached queries": 4 * r.query * s.encoded if s.cache_bytes else 0}
        return {
            "snapshots": kept,
            "cached importance": self._cached(s),
            **queries,
            "predictions": round(s.evaluated * (PREDICTION_BYTES + TOKEN_BYTES * said)),
            "state while running": 2 * state + hidden,  # the state before goes when the next one is complete
        }

    def _cached(self, s: Setting) -> int:
        """Bytes of the sums that are kept for other runs, at most."""
        sums = s.memory.sums * s.memory.sum_item * sum(self._measured(s).values())
        passes = sum(task.measured > 0 for task in s.tasks)
        return min(s.cache_bytes, passes * sums) if sums <= s.cache_bytes else 0

    def work(self, s: Setting) -> dict[str, tuple[int, float]]:
        """Examples of importance, train and evaluate, and the tokens they hold with their padding.

        Of an answer that is generated all tokens count that it may have.
        """
        examples = {
            "importance": sum(task.measured for task in s.tasks),
            "train": sum(self._passes(s, task) for task in s.tasks if task.trains != "nothing"),
            "evaluate": s.evaluated,
        }
        length = {"evaluate": s.mean_length + (0.0 if s.answers is None else s.answers.mean_generated)}
        r = s.memory.retrieval
        if r is not None:
            examples |= {"queries": s.encoded, "keys": r.key_epochs * sum(task.examples for task in s.tasks)}
            length |= {"queries": min(s.mean_length, s.encoder_length), "keys": 0.0}  # of vectors
        return {phase: (number, number * length.get(phase, s.mean_whole)) for phase, number in examples.items()}

    @staticmethod
    def _passes(s: Setting, task: TaskNumbers) -> int:
        """Examples that go through training; the last batch of an epoch may be smaller."""
        per_epoch = max(1, -(-task.examples // s.batch_size[task.stage]))
        return min(task.steps * s.batch_size[task.stage], round(task.steps / per_epoch * task.examples))

    def seconds(self, s: Setting, speed: Speed) -> dict[str, float]:
        """Seconds of importance, train and evaluate on a device as fast as `speed`.

        At most, where answers are generated: as if each had all the tokens it may have.
        """
        share = s.mean_whole / s.max_whole  # of the cost at the greatest length
        found = {"train": 0.0, "importance": 0.0}
        for number, task in enumerate(s.tasks):
            if task.trains != "nothing":
                cost = self._train(s, task.stage, task.trains, number > 0)
                found["train"] += speed.seconds(cost, share) * self._passes(s, task) / s.micro_batch[task.stage]
                found["train"] += task.steps * OPTIMIZER_TRAFFIC * self.trained(s, task) / speed.bytes_per_second
            if task.measured:
                size = s.importance_batch if s.per_example else s.importance_micro_batch
                cost = self._importance(s)
                # Each example's (or micro-batch's) weight gradients are formed, squared and added by themselves.
                entries = self._in_products(s, self._measured(s)) if s.per_example else sum(self._measured(s).values())
                products = 2 * entries * task.measured * s.mean_whole if s.per_example else 0.0
                traffic = 4 + 2 * s.memory.sums * s.memory.sum_item
                found["importance"] += s.passes * (
                    speed.seconds(cost, share) * task.measured / size
                    + products / speed.flops_per_second
                    + traffic * entries * task.measured / s.importance_micro_batch / speed.bytes_per_second
                )
                if s.per_example and self._without_rule(s):
                    single = self._importance(dataclasses.replace(s, importance_batch=1))
                    found["importance"] += s.passes * speed.seconds(single, share) * task.measured
        found["evaluate"] = self._evaluation_seconds(s, speed)
        r = s.memory.retrieval
        if r is not None:
            share = min(1.0, s.mean_length / s.encoder_length)
            found["queries"] = speed.seconds(self._encode(s, r), share) * s.encoded / min(AT_ONCE, s.encoded)
            steps = sum(r.key_epochs * -(-task.examples // r.key_batch_size) for task in s.tasks)
            found["keys"] = speed.seconds(r.key_step) * steps
        return found

    def _evaluation_seconds(self, s: Setting, speed: Speed) -> float:
        share = s.mean_length / s.max_length
        ways = self._evaluate(s)
        if s.answers is None:
            return speed.seconds(ways["forward"][0], share) * s.evaluated / s.evaluation_batch
        seconds = 0.0
        if "generate" in ways:
            prompt, _, token = ways["generate"]
            # For every token all weights are read, which longer passes hide behind their products.
            read = s.dtype.itemsize * self.parameters(s) / speed.bytes_per_second
            tokens = s.answers.mean_generated * s.evaluated / (s.evaluated - s.answers.by_label)
            batches = (s.evaluated - s.answers.by_label) / s.evaluation_batch
            seconds += batches * (speed.seconds(prompt, share) + tokens * (speed.seconds(token) + read))
        if "labels" in ways:
            prompt, labels = ways["labels"]
            seconds += (speed.seconds(prompt, share) + speed.seconds(labels)) * s.answers.by_label / s.evaluation_batch
        return seconds

    def plan(
        self, s: Setting, seconds: Mapping[str, float] | None, basis: str, flops_per_second: float | None = None
    ) -> Plan:
        """Everything at once.

        Args:
            seconds: of each phase; None where nothing says how fast the device is.
            basis: what the seconds are based on.
            flops_per_second: of the device, calibrated.
        """
        memory, work = self.memory(s), self.work(s)
        peaks: dict[str, int] = {}
        for name, size in memory.items():
            phase = name.split()[0]
            peaks[phase] = max(peaks.get(phase, 0), size)
        phases = {}
        for phase, size in peaks.items():
            examples, tokens = work.get(phase, (0, 0.0))
            known = None if seconds is None else seconds.get(phase)
            phases[phase] = Phase(size, known, examples, round(tokens))
        disk = self.disk(s)
        return Plan(
            phases,
            disk,
            disk["snapshots"] + disk["predictions"],
            self.parameters(s),
            {task.name: self.trained(s, task) for task in s.tasks},
            {task.name: self.flops_per_token(s, task) for task in s.tasks},
            flops_per_second,
            sum(task.steps for task in s.tasks if task.trains != "nothing"),
            basis,
        )


def _held_by_pass(cost: Cost, device: Device, share: float = HEAP_SHARE) -> int:
    """Bytes that the process holds for what lives in a pass."""
    return round(share * cost.peak_bytes) if device == "cpu" else cost.peak_bytes


def plan_json(plan: Plan) -> dict[str, Any]:
    """The content of plan.json."""
    return {
        "phases": {name: {"bytes": phase.bytes, "seconds": phase.seconds} for name, phase in plan.phases.items()},
        "disk_bytes": plan.kept_bytes,
        "trainable": list(plan.trainable.values()),
        "flops_per_token": list(plan.flops_per_token.values()),
        "flops_per_second": plan.flops_per_second,
        "basis": plan.basis,
    }


def write_plan(folder: Path, plan: Plan) -> None:
    """plan.json in a run's folder, which the report sets beside what was measured."""
    replace_file(folder / "plan.json", json.dumps(plan_json(plan), indent=1))
