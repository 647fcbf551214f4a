"""The work that a run announces, so that its time left can be told."""

from __future__ import annotations

from cl_runner.config import Config
from cl_runner.planning.numbers import asked_after, counts_of
from cl_runner.planning.tasks import task_numbers
from cl_runner.prepared import Prepared

#: What an example costs beside one that trains: a forward pass, and one with every weight's gradient by itself.
EVALUATED = 1 / 3
MEASURED = 1.2


def units(config: Config, prepared: Prepared) -> dict[str, float]:
    """`<task>/<phase>`, or `<phase>` before the first task -> expected cost, in examples that train."""
    counts = counts_of(config, prepared.own_tasks)
    needs = prepared.needs
    sizes = [each.evaluated for each in counts]
    seen = config.evaluation.tasks == "seen"
    passes = [each for probe in prepared.probes.values() for each in probe.passes(sizes) or ()]
    probing = {each.name: EVALUATED * each.texts for each in passes}
    again = {each.name: probing[each.name] for each in passes if not each.once}
    found = {"evaluate": 0.0 if seen else EVALUATED * sum(sizes), **probing}
    asked = [sum(texts) for texts in asked_after(config, needs, counts)]
    for number, task in enumerate(task_numbers(config, needs, counts), 1):
        if task.measured:
            found[f"{task.name}/importance"] = MEASURED * config.importance.passes * task.measured
        if task.trains != "nothing":
            found[f"{task.name}/train"] = task.passed + EVALUATED * task.validated
        if asked[number - 1]:
            found[f"{task.name}/answer old prompts"] = EVALUATED * asked[number - 1]
        found[f"{task.name}/evaluate"] = EVALUATED * sum(sizes[:number] if seen else sizes)
        found |= {f"{task.name}/{name}": cost for name, cost in again.items()}
    return found
