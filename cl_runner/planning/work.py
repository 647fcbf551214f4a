"""The work that a run announces, so that its time left can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_runner.config import Config
from cl_runner.planning.numbers import asked_after, counts_of
from cl_runner.planning.tasks import task_numbers
from cl_runner.prepared import Prepared

#: What an example costs beside one that trains, where no plan tells it: a forward pass, and one with every weight's
#: gradient by itself.
EVALUATED = 1 / 3
MEASURED = 1.2


def units(config: Config, prepared: Prepared, plan: Mapping[str, Any] | None = None) -> dict[str, float]:
    """`<task>/<phase>`, or `<phase>` before the first task -> expected cost, in examples that train.

    Args:
        plan: the content of plan.json.
    """
    costs = _planned(plan or {})
    measuring, evaluating = costs.get("importance", MEASURED), costs.get("evaluate", EVALUATED)
    reading, answering = costs.get("probe", EVALUATED), costs.get("answers", EVALUATED)
    counts = counts_of(config, prepared.own_tasks)
    needs = prepared.needs
    sizes = [each.evaluated for each in counts]
    seen = config.evaluation.tasks == "seen"
    passes = [each for probe in prepared.probes.values() for each in probe.passes(sizes) or ()]
    probing = {each.name: reading * each.texts for each in passes}
    again = {each.name: probing[each.name] for each in passes if not each.once}
    found = {"evaluate": 0.0 if seen else evaluating * sum(sizes), **probing}
    asked = [sum(texts) for texts in asked_after(config, needs, counts)]
    for number, task in enumerate(task_numbers(config, needs, counts), 1):
        if task.measured:
            found[f"{task.name}/importance"] = measuring * config.importance.passes * task.measured
        if task.trains != "nothing":
            found[f"{task.name}/train"] = task.passed + evaluating * (task.validated + task.curve[1])
        if asked[number - 1]:
            found[f"{task.name}/answer old prompts"] = answering * asked[number - 1]
        found[f"{task.name}/evaluate"] = evaluating * sum(sizes[:number] if seen else sizes)
        found |= {f"{task.name}/{name}": cost for name, cost in again.items()}
    return found


def _planned(plan: Mapping[str, Any]) -> dict[str, float]:
    """What an example of each phase costs, in examples that train, as far as a plan says how long they take."""
    each = {}
    for name, phase in plan.get("phases", {}).items():
        if phase.get("seconds") and phase.get("examples"):
            each[name] = phase["seconds"] / phase["examples"]
    return {name: seconds / each["train"] for name, seconds in each.items()} if "train" in each else {}
