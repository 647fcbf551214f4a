"""What the passes of a run cost, each measured once on an imitation of the model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

import cl_runner
from cl_runner.batch import Output
from cl_runner.digests import Damaged, replace_file, sealed, unsealed
from cl_runner.needs import ProbePass
from cl_runner.planning import passes
from cl_runner.planning.alike import Cost
from cl_runner.planning.architecture import Architecture
from cl_runner.planning.imitation import Imitation, checkpointing, keeping_inputs
from cl_runner.planning.retrieval import EncoderNumbers
from cl_runner.planning.setting import Setting, TaskNumbers
from cl_runner.retrieval.encoder import AT_ONCE


class Prices:
    """Costs of passes with one architecture; those that were priced once are remembered.

    Args:
        store: a folder that remembers them for other processes, too, since of many layers they take seconds; or None.
    """

    def __init__(self, architecture: Architecture, store: Path | None = None):
        self.architecture = architecture
        self._store = store
        self._known: dict[object, list[Cost]] = {}

    def _costs(self, s: Setting, key: object, stages: Sequence[passes.Stage]) -> list[Cost]:
        key = (key, s.dtype, s.device, s.precision, s.max_length, s.answers, s.family)
        if key not in self._known:
            place = self.place(s, key)
            found = None if place is None else _stored(place)
            if found is None:
                imitation = self.architecture.imitation(s)
                if s.needs.retrieves is None:
                    names = (s.needs.listed, s.needs.candidates, self.architecture.measured_names(s))
                    found = imitation.costs(stages, (*names, self.architecture.trainable(s)))
                else:  # whose values enter some layers only
                    found = imitation.costs(stages, folds=False)
                if place is not None:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    replace_file(place, sealed({"costs": [dataclasses.astuple(cost) for cost in found]}))
            self._known[key] = found
        return self._known[key]

    def place(self, s: Setting, key: object) -> Path | None:
        """Where what was found of an architecture lies, by all that it depends on, or None.

        No key tells what methods add to a model.
        """
        if self._store is None or s.needs.retrieves is not None or s.needs.adapts is not None:
            return None
        config = self.architecture.imitation(s).model.config
        depends = (
            *(cl_runner.__version__, torch.__version__, transformers.__version__),
            *(config.to_json_string(use_diff=False), config._attn_implementation),
            *(sorted(self.architecture.trainable(s).items()), sorted(s.needs.listed.items())),
            key,
        )
        return self._store / f"{hashlib.sha256(repr(depends).encode()).hexdigest()[:32]}.json"

    def _cost(self, s: Setting, key: object, *stages: passes.Stage) -> Cost:
        """Of stages as one."""
        return together(self._costs(s, key, stages))

    @contextmanager
    def _given(self, s: Setting, examples: int, **how: bool) -> Iterator[None]:
        """Inside, so many texts have been given what they retrieve, if they retrieve anything."""
        if s.needs.retrieves is None:
            yield
            return
        with self.architecture.retrieving(s).batch(examples, **how):
            yield

    def train(self, s: Setting, task: TaskNumbers) -> Cost:
        """One forward and backward pass of training a task, with the gradients it leaves."""
        s = s.within(task).learning()
        trains, later, examples, accumulates = task.trains, task.later, s.pass_size(task), s.accumulates(task)
        columns = self.architecture.kept_columns(s) if trains == "selected" else {}
        half = s.dtype.itemsize < 4
        compares = later or s.needs.teaches_first or (task.several_parts and s.needs.teacher == "kept")
        teacher = s.needs.teacher if compares else None
        trainable = self.architecture.trainable(s)

        def compared(logits: Tensor) -> Tensor:
            if teacher == "log_probabilities":
                return logits.log_softmax(-1)
            return logits.softmax(-1) if teacher == "probabilities" else logits

        def difference(new: Tensor, old: Tensor) -> Tensor:
            if teacher == "log_probabilities":
                return functional.kl_div(old, new, reduction="none", log_target=True)
            return (new - old).square()

        stack = ExitStack()  # what is there while a pass goes on

        def begin(model: PreTrainedModel, given: Any) -> None:
            if trains == "selected":
                layers = {m: columns[name] for name, m in model.named_modules() if name in columns}
                stack.enter_context(keeping_inputs(model, layers, room=False))
            elif trains == "retrieved":
                model.requires_grad_(False)
                stack.enter_context(self._given(s, examples, learns=True, later=later, accumulates=accumulates))
            else:
                whole(model)
            stack.enter_context(checkpointing(model, s.gradient_checkpointing))

        def whole(model: PreTrainedModel) -> None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in (s.needs.listed if trains == "listed" else trainable))
            learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
            full: dict[Tensor, Tensor] = {}  # gradients of half-precision weights are kept in fp32
            if accumulates and not s.offload:  # there are gradients of the part of the batch before
                for parameter in learning:
                    if half:
                        full[parameter] = torch.empty_like(parameter, dtype=torch.float32)
                    else:
                        parameter.grad = torch.empty_like(parameter)

            def collect(parameter: Tensor) -> None:
                assert parameter.grad is not None
                if not s.offload:
                    gradient = parameter.grad.float()
                    full[parameter] = full[parameter].add_(gradient) if accumulates else gradient
                parameter.grad = None

            for parameter in learning if half or s.offload else ():
                stack.callback(parameter.register_post_accumulate_grad_hook(collect).remove)

        def ask(model: PreTrainedModel, given: Any) -> None:
            model.eval()
            with torch.no_grad():
                self._output(model, s, examples)

        def teach(model: PreTrainedModel, given: Any) -> Tensor:
            model.eval()
            with torch.no_grad():
                return compared(self._output(model, s.teaching(), examples).logits)

        def learn(model: PreTrainedModel, old: Tensor | None) -> tuple[Any, ...]:
            model.train()
            output = self._output(model, s, examples)
            if teacher == "kept":
                old = torch.empty_like(output.logits)
            loss = output.loss
            if old is not None:
                loss = loss + difference(compared(output.logits), old).sum(-1).mean()
            return old, output, loss

        def back(model: PreTrainedModel, given: tuple[Any, ...]) -> None:
            given[-1].backward()
            stack.close()

        stages: list[passes.Stage] = [begin]
        stages += [ask] * s.needs.queries + [teach] * (teacher not in (None, "kept")) + [learn, back]
        how = (s.gradient_checkpointing, s.offload)
        key = ("train", trains, examples, accumulates, *how, teacher, s.needs.writes)
        with stack:
            if trains == "retrieved":
                retrieving = self.architecture.retrieving(s)
                found = self._cost(s, (*key, later), *stages)
                retrieving.forget()
                return found
            return self._cost(s, (*key, tuple(columns.items())), *stages)

    def importance(self, s: Setting) -> Cost:
        """One forward and backward pass of the importance phase, without its sums."""
        s = s.measuring()
        examples = s.importance_pass

        def square(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.float()
            gradient * gradient
            parameter.grad = None

        measured = self.architecture.measured(s)

        stack = ExitStack()

        def forward(model: PreTrainedModel, _: Any) -> Tensor:
            model.eval()
            wanted = [parameter for name, parameter in model.named_parameters() if name in measured]
            if s.per_example:
                found = set(wanted)
                layers = (m for m in model.modules() if found.intersection(m.parameters(recurse=False)))
                kept = {m: None for m in layers if not isinstance(m, nn.Embedding)}
                stack.enter_context(keeping_inputs(model, kept, room=True))
                return self._loss_sum(model, s, examples)
            stack.enter_context(checkpointing(model, s.gradient_checkpointing))
            if s.gradient_checkpointing:
                for module in model.modules():  # as cl_runner/sparse/importance.py has them recompute
                    module.training = isinstance(module, GradientCheckpointingLayer)
            model.requires_grad_(False)
            for parameter in wanted:
                parameter.requires_grad_(True)
                stack.callback(parameter.register_post_accumulate_grad_hook(square).remove)
            return self._loss_sum(model, s, examples) if examples == 1 else self._output(model, s, examples).loss

        def back(model: PreTrainedModel, loss: Tensor) -> None:
            loss.backward()
            stack.close()

        with stack:
            return self._cost(
                s, ("importance", s.per_example, examples, s.gradient_checkpointing, tuple(measured)), forward, back
            )

    def _output(self, model: nn.Module, s: Setting, examples: int) -> Output:
        """A forward pass over the longest examples, in the run's precision."""
        # The imitation lies on the CPU, whatever the run's device.
        with torch.autocast("cpu", torch.bfloat16, enabled=s.precision == "bf16"):
            return passes.outputs(model, s, examples)

    def _loss_sum(self, model: nn.Module, s: Setting, examples: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=s.precision == "bf16"):
            return passes.loss_sum(model, s, examples)

    def evaluate(self, s: Setting) -> dict[str, list[Cost]]:
        """The stages of each way to evaluate a batch."""

        def without_gradient(stage: passes.Stage) -> passes.Stage:
            def work(model: PreTrainedModel, given: Any) -> Any:
                model.eval()
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=s.precision == "bf16"):
                    if s.needs.queries and given is None:  # the first stage
                        stage(model, given)
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
        if s.needs.retrieves is None:
            return stage
        retrieving = self.architecture.retrieving(s)

        def work(model: PreTrainedModel, given: Any) -> Any:
            stack.enter_context(retrieving.batch(s.evaluation_batch, learns=False, later=True))
            return stage(model, given)

        return work

    def probe(self, s: Setting, probe: ProbePass, at_mean: bool = False) -> list[Cost]:
        """The stages of a batch of a probe: reading the texts; where they are completed, room, and one more token.

        Args:
            at_mean: for time; else texts that are the tasks' own have the greatest length.
        """
        s = s.probing(probe, at_mean)
        if probe.generated:
            return self.evaluate(s)["generate"]

        def work(model: PreTrainedModel, _: Any) -> None:
            model.eval()
            with torch.no_grad(), ExitStack() as stack:
                if s.needs.retrieves is not None:
                    stack.enter_context(self._given(s, probe.batch_size, learns=False, later=True))
                self._output(model, s, probe.batch_size)

        return self._costs(s, ("probe", probe.batch_size), [work])

    def encode(self, s: Setting, encoder: EncoderNumbers) -> Cost:
        """A pass of the sentence encoder over its longest texts."""

        def work(model: PreTrainedModel) -> None:
            model.eval()
            with torch.no_grad():
                ids = torch.zeros(min(AT_ONCE, s.encoded), s.encoder_length, dtype=torch.long)
                model(input_ids=ids, attention_mask=torch.zeros_like(ids))

        key = ("encode", s.encoded, s.encoder_length, s.device)
        if key not in self._known:
            self._known[key] = [Imitation(encoder.make(), torch.float32, s.device).cost(work)]
        return self._known[key][0]

    def forward_flops(self, s: Setting, retrieves: bool = False) -> float:
        """FLOPs of the model's products in a forward pass, per token of examples of the mean length."""
        mean = s.at_mean()
        if retrieves:
            self.architecture.retrieving(s)

        def work(model: PreTrainedModel, _: Any) -> None:
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
        forward = self.forward_flops(s)
        if task.trains == "retrieved":  # of their own products both gradients are computed
            return 2 * forward + 3 * (self.forward_flops(s, retrieves=True) - forward)
        return (3 if task.trains == "all" else 2) * forward


def together(costs: Sequence[Cost]) -> Cost:
    """The cost of all stages of a pass."""
    return Cost(
        max(cost.peak_bytes for cost in costs),
        *(sum(getattr(cost, name) for cost in costs) for name in ("flops", "moved_bytes", "operations", "seconds")),
    )


def _stored(place: Path) -> list[Cost] | None:
    """Costs that another process priced; what is damaged is priced anew."""
    if not place.is_file():
        return None
    try:
        return [Cost(*numbers) for numbers in unsealed(place)["costs"]]
    except Damaged:
        return None
