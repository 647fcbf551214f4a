"""Optimizers over what a task trains: AdamW, Adafactor and SGD, with a rate for every parameter."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

import torch
from torch import nn
from transformers.optimization import Adafactor

from cl_runner.config import OptimizerName, Training


def decays(name: str) -> bool:
    """Whether weight decay applies: not to biases and normalisation weights."""
    # GPT-2 calls its normalisations ln_1, ln_2 and ln_f.
    return not re.search(r"bias(\.|$)|norm|\bln_", name.lower())


def rate_of(name: str, rates: Mapping[str, float]) -> float | None:
    """The rate of the first pattern that fits a parameter's name; None: of none."""
    return next((rate for pattern, rate in rates.items() if fnmatch.fnmatchcase(name, pattern)), None)


def unused_patterns(rates: Mapping[str, float], names: list[str]) -> list[str]:
    """Patterns that fit no parameter."""
    return [pattern for pattern in rates if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    training: Training,
    rate: float,
    rates: Mapping[str, float] | None = None,
    name: OptimizerName | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over these parameters; it holds nothing else, so it can move nothing else.

    Args:
        parameters: by the names of the tensors that they stand for.
        rate: the peak rate.
        rates: peaks by pattern of names, in the place of `rate`. Those of `training` come before them.
        name: in the place of the training's.
    """
    own = training.rates or {}
    peaks = {**own, **{p: r for p, r in (rates or {}).items() if p not in own}}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for decayed in (True, False):
        for key, parameter in parameters.items():
            if decays(key) == decayed:
                found = rate_of(key, peaks)
                groups.setdefault((decayed, rate if found is None else found), []).append(parameter)
    given = [
        {"params": held, "weight_decay": training.weight_decay if decayed else 0.0, "peak": peak}
        for (decayed, peak), held in groups.items()
    ]
    match name or training.optimizer:
        case "adamw":
            betas = (training.betas[0], training.betas[1])
            adamw = torch.optim.AdamW(given, lr=0.0, betas=betas, eps=training.epsilon, fused=True)
            return adamw if training.bias_correction else _without_bias_correction(adamw)
        case "adafactor":  # torch's scales every step by the weights' own size, which LFPT5's does not
            return Adafactor(given, lr=0.0, scale_parameter=False, relative_step=False, warmup_init=False)
        case "sgd":
            return torch.optim.SGD(given, lr=0.0, momentum=training.momentum)


def step(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """One step at `factor` times the peak rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _without_bias_correction(optimizer: torch.optim.AdamW) -> torch.optim.AdamW:
    """The plain mean of gradients over the plain root of the mean of squares, as in UER and BERT's first optimizer.

    torch divides by 1 - b^t whatever it is told. An optimizer that has taken 2^24 steps divides by 1.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.tensor(float(2**24), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
    return optimizer
