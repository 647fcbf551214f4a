"""What to type where a task's loss did not move: a rate, more weights, or less of what holds on to old tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_runner.data.task import Task
from cl_runner.methods.base import Chain, Method
from cl_runner.trained import Trained

#: steps x rate from which on a weight may have moved by as much as weights are large.
FAR = 0.05


def loss_note(
    detail: Mapping[str, Any],
    task: Task,
    method: Method,
    what: Trained,
    stage_rate: float,
    options: Mapping[str, Mapping[str, Any]],
) -> str | None:
    """What to say of a task whose loss did not fall, in a line; None if it fell, or nothing is known.

    Args:
        detail: with what `courses` found.
        what: trained.
        stage_rate: the training's peak in this task.
        options: of each method, by its node.
    """
    went = detail.get("loss_went")
    if went not in ("nowhere", "up"):
        return None
    first, last, steps = (detail[name] for name in ("loss_first", "loss_last", "steps"))
    medians = f"{first:.3g} in the first third of {steps} steps, {last:.3g} in the last"
    rate = stage_rate if what.learning_rate is None else what.learning_rate
    far = detail["steps_times_rate"]
    medians += f", at a rate of {rate:.3g} (steps x rate {far:.2g})"
    chooser = method.chooser if isinstance(method, Chain) else None
    own = options.get(chooser or "", {})
    key = _rate_key(task, what, chooser, own)
    if went == "up":
        return (
            f"Note: the loss of {task.name} rose: {medians}. For less {_set(key, rate / 3)}{_looser(method, options)}"
        )
    said = f"Note: the loss of {task.name} did not move: {medians}. Unless the task was known before, "
    if what.selected and far >= FAR and "fraction" in own:
        more = f"method.{chooser}.fraction={min(1.0, 10 * own['fraction']):g}"
        return f"{said}train other weights, or more of them, as these may already move by their own size: type {more}"
    # A few weights have to move further than all of them, to the same effect.
    factor = 10 if what.selected or what.names is not None else 3
    return f"{said}{_set(key, factor * rate)}, or train more steps{_looser(method, options)}"


def _rate_key(task: Task, what: Trained, chooser: str | None, own: Mapping[str, Any]) -> str | None:
    """The option that is the rate of what trained; None = it stands in the order, with the task."""
    some = bool(what.selected) or what.names is not None
    if chooser is not None and (what.learning_rate is not None or ("learning_rate" in own and some)):
        return f"method.{chooser}.learning_rate"
    if task.training is not None and task.training.learning_rate is not None:
        return None
    return f"training.{'incremental' if task.index else 'base'}.learning_rate"


def _set(key: str | None, rate: float) -> str:
    if key is None:
        return f"set learning_rate to about {rate:.1g} where the order has this task"
    return f"type {key}={rate:.1g}"


def _looser(method: Method, options: Mapping[str, Mapping[str, Any]]) -> str:
    """The strengths of what holds on to old tasks, which may hold too much."""
    methods = method.methods if isinstance(method, Chain) else {}
    keys = [
        f"method.{name}.strength"
        for name, each in methods.items()
        if each.protects and options.get(name, {}).get("strength")
    ]
    return f", or a smaller {' or '.join(keys)}" if keys else ""
