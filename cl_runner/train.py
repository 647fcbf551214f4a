"""The only training loop."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cl_runner.config import Stage, Training
from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.learner import Learner, derive_seed
from cl_runner.masters import Masters
from cl_runner.methods.base import Method


@dataclass
class Progress:
    """Where training stands inside a task, and the optimizer: what a checkpoint needs besides the method's state."""

    step: int  # optimizer steps done in this task
    steps: int  # of the whole task
    owned: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer


def number_of_steps(examples: int, stage: Stage, max_steps: int | None) -> int:
    """Optimizer steps of a task; the last, smaller batch of an epoch counts."""
    steps = math.ceil(examples / stage.batch_size) * stage.epochs
    return steps if max_steps is None else min(steps, max_steps)


def learning_rate_factor(step: int, steps: int, schedule: str, warmup: float) -> float:
    """Share of the peak learning rate at `step` (0-based) of `steps`; `warmup` is their share or number that rises."""
    rising = warmup * steps if warmup <= 1 else min(warmup, steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (steps - step) / max(1.0, steps - rising) if schedule == "linear" else 1.0


def epoch_order(
    seed: int, task: int, epoch: int, examples: int, lengths: Sequence[int] | None = None, batch: int = 1
) -> list[int]:
    """The order of examples in an epoch: a function of its arguments only, so that it survives a resume.

    Args:
        lengths: of the examples, to put such of similar length into one batch: the shuffled order is cut into
            stretches of 50 batches, each is sorted by length, and the batches are shuffled again.
        batch: examples of one step.
    """
    generator = random.Random(derive_seed(seed, "order", task, epoch))
    order = list(range(examples))
    generator.shuffle(order)
    if lengths is None:
        return order
    batches: list[list[int]] = []
    for start in range(0, examples, 50 * batch):
        stretch = sorted(order[start : start + 50 * batch], key=lambda i: -lengths[i])
        batches += [stretch[i : i + batch] for i in range(0, len(stretch), batch)]
    whole, rest = batches[: examples // batch], batches[examples // batch :]
    generator.shuffle(whole)  # the smaller batch stays last, where an unsorted epoch has it
    return [i for part in [*whole, *rest] for i in part]


def decays(name: str) -> bool:
    """Whether weight decay applies: not to biases and normalisation weights."""
    # GPT-2 calls its normalisations ln_1, ln_2 and ln_f.
    return not re.search(r"bias(\.|$)|norm|\bln_", name.lower())


def build_optimizer(
    owned: dict[str, nn.Parameter], weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """AdamW over what is owned; it holds nothing else, so it can move nothing else."""
    groups = [
        {"params": [p for name, p in owned.items() if decays(name)], "weight_decay": weight_decay},
        {"params": [p for name, p in owned.items() if not decays(name)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, fused=True)


def train_task(
    learner: Learner,
    method: Method,
    task: Task,
    stage: Stage,
    training: Training,
    resume: dict[str, Any] | None,
    on_step: Callable[[Progress, dict[str, float]], None],
) -> int:
    """Train one task; `task.train` is its data.

    Args:
        resume: "step", "owned" and "optimizer" of a checkpoint inside this task, or None.
        on_step: called after every step with the progress and the step's numbers; may raise to stop.

    Returns:
        The number of entries that trained.

    Raises:
        FloatingPointError: the loss or the gradient is not finite.
    """
    examples: Sequence[Example] = method.data(task, task.train)
    masters = Masters(method.owned(learner, learner.params()))
    learner.trained = masters.parameters
    if not learner.trained:
        return 0
    optimizer = build_optimizer(learner.trained, training.weight_decay, (training.betas[0], training.betas[1]))
    steps = number_of_steps(len(examples), stage, training.max_steps)
    progress = Progress(0, steps, learner.trained, optimizer)
    if resume is not None:
        _restore(progress, resume)
        masters.write_through()
        method.after_step(learner)  # compact values go through to the model's tensors
    peak = method.peak_learning_rate(task, stage.learning_rate)
    per_epoch = math.ceil(len(examples) / stage.batch_size)
    parameters = list(learner.trained.values())
    lengths = learner.family.lengths(examples)
    weights = learner.family.targets(examples)
    by_length = lengths if training.group_by_length else None
    learner.model.train()

    for step in range(progress.step, steps):
        started = time.perf_counter()
        epoch, within = divmod(step, per_epoch)
        if within == 0 or step == progress.step:
            order = epoch_order(learner.seed, task.index, epoch, len(examples), by_length, stage.batch_size)
        positions = order[within * stage.batch_size : (within + 1) * stage.batch_size]
        # Every step has its own seed, so that dropout after a resume is the same without saving random states.
        torch.manual_seed(derive_seed(learner.seed, "step", task.index, step))
        loss, padded = 0.0, 0
        terms: dict[str, float] = {}
        size = stage.micro_batch or len(positions)
        if size < len(positions):  # texts of similar length share a pass
            positions = sorted(positions, key=lambda i: (-lengths[i], i))
        targets = sum(weights[i] for i in positions)
        for start in range(0, len(positions), size):
            part = positions[start : start + size]
            share = sum(weights[i] for i in part) / targets  # of the batch's mean over its targets
            learner.terms = {}
            batch = method.prepare(learner, learner.collate(examples, part))
            output = learner.forward(batch)
            ((output.loss + method.loss(learner, batch, output)) * share).backward()
            loss += share * float(output.loss.detach())
            terms = {name: terms.get(name, 0.0) + share * value for name, value in learner.terms.items()}
            padded += sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)
        learner.terms = terms
        method.grads(learner)
        norm = nn.utils.clip_grad_norm_(parameters, training.clip if training.clip is not None else math.inf)
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            what = "loss" if not math.isfinite(loss) else "gradient norm"
            raise FloatingPointError(
                f"{what} is not finite at step {step + 1} of task {task.name}; "
                f"lower the learning rate (now at most {peak:g})"
            )
        rate = peak * learning_rate_factor(step, steps, training.schedule, training.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        masters.write_through()
        method.after_step(learner)
        progress.step = step + 1
        tokens = sum(lengths[i] for i in positions)
        on_step(
            progress,
            {
                "epoch": (step + 1) / per_epoch,
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": float(norm),
                **learner.terms,
                "tokens": tokens,
                "padding_share": 1 - tokens / padded,
                "tokens_per_second": tokens / (time.perf_counter() - started),
            },
        )
    masters.release()
    return sum(p.numel() for p in parameters)


@torch.no_grad()
def _restore(progress: Progress, resume: dict[str, Any]) -> None:
    progress.step = resume["step"]
    for name, values in resume["owned"].items():
        progress.owned[name].copy_(values)
    progress.optimizer.load_state_dict(resume["optimizer"])
