"""What a run under way asks of its plan: plan.json, the work that is to come, and advice when memory ran out."""

from __future__ import annotations

from collections.abc import Callable

from cl_runner.compose import Request
from cl_runner.planning.plan import advise, plan_run
from cl_runner.planning.planner import write_plan
from cl_runner.prepared import Prepared
from cl_runner.tracking.clock import Clock


def plan_once(request: Request, prepared: Prepared, say: Callable[[str], None]) -> None:
    """plan.json, which the report sets beside what was measured; a resumed run has it already."""
    if (request.folder / "plan.json").is_file():
        return
    say("Planning memory and time (of billions of weights this takes some seconds)")
    try:
        write_plan(request.folder, plan_run(request, prepared.own_tasks, prepared.family)[2])
    except ValueError as error:  # what cannot be planned can be run
        say(f"No plan of this run: {error}")


def memory_advice(request: Request, prepared: Prepared, clock: Clock) -> str:
    """What to type after memory ran out."""
    try:
        planner, setting, _ = plan_run(request, prepared.own_tasks, prepared.family, calibrates=False)
    except ValueError as error:
        return f"Out of memory, and no advice: {error}"
    return advise(request, planner, setting, clock.failed, clock.current)
