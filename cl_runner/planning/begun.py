"""What a run under way asks of its plan: plan.json, the work that is to come, and advice when memory ran out."""

from __future__ import annotations

from collections.abc import Callable

from cl_runner.compose import Request
from cl_runner.planning.memory import DoesNotFit
from cl_runner.planning.plan import advise, plan_run, refusal, tight
from cl_runner.planning.planner import write_plan
from cl_runner.prepared import Prepared
from cl_runner.tracking.clock import Clock


def plan_once(request: Request, prepared: Prepared, say: Callable[[str], None]) -> None:
    """plan.json, which the report sets beside what was measured; a resumed run has it already.

    Raises:
        DoesNotFit: what the run holds is more than there is; the text says what to type.
    """
    if (request.folder / "plan.json").is_file():
        return
    say("Planning memory and time (of billions of weights this takes some seconds)")
    try:
        planner, setting, plan = plan_run(request, prepared.own_tasks, prepared.family)
    except ValueError as error:  # what cannot be planned can be run
        say(f"No plan of this run: {error}")
        return
    refused = refusal(request, planner, setting)
    if refused is not None:
        raise DoesNotFit(refused)
    for line in tight(request, planner, setting):
        say(line)
    write_plan(request.folder, plan)


def memory_advice(request: Request, prepared: Prepared, clock: Clock) -> str:
    """What to type after memory ran out."""
    try:
        planner, setting, _ = plan_run(request, prepared.own_tasks, prepared.family, calibrates=False)
    except ValueError as error:
        return f"Out of memory, and no advice: {error}"
    return advise(request, planner, setting, clock.failed, clock.current)
