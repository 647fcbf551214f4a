"""What a run under way asks of its plan: plan.json, the work that is to come, and advice when memory ran out."""

from __future__ import annotations

from collections.abc import Callable

from cl_runner.compose import Request
from cl_runner.digests import read_json
from cl_runner.planning import fitting
from cl_runner.planning.memory import DoesNotFit, Options
from cl_runner.planning.plan import advise, plan_run, refusal, tight
from cl_runner.planning.planner import write_plan
from cl_runner.prepared import Prepared
from cl_runner.tracking.clock import Clock


def plan_once(request: Request, prepared: Prepared, say: Callable[[str], None]) -> Options:
    """plan.json, which the report sets beside what was measured; a resumed run has it already.

    Returns:
        Options by which the run computes so that it fits, beside what was asked.

    Raises:
        DoesNotFit: what the run holds is more than there is; the text says what to type.
    """
    path = request.folder / "plan.json"
    if path.is_file():
        return dict(read_json(path).get("fitted", {}))
    say("Planning memory and time (of billions of weights this takes some seconds)")
    try:
        planner, setting, plan = plan_run(request, prepared.own_tasks, prepared.family)
    except ValueError as error:  # what cannot be planned can be run
        say(f"No plan of this run: {error}")
        return {}
    refused = refusal(request, planner, setting)
    if refused is not None:
        raise DoesNotFit(refused)
    options = fitting.options_of(request, planner, setting)
    if options:
        say(fitting.told(options, fitting.free_bytes(setting.device, request.config.hardware.memory_gb) or 0))
        request = fitting.applied(request, options)
        planner, setting, plan = plan_run(request, prepared.own_tasks, prepared.family)
    for line in tight(request, planner, setting):
        say(line)
    write_plan(request.folder, plan, options)
    return options


def memory_advice(request: Request, prepared: Prepared, clock: Clock) -> str:
    """What to type after memory ran out."""
    try:
        planner, setting, _ = plan_run(request, prepared.own_tasks, prepared.family, calibrates=False)
    except ValueError as error:
        return f"Out of memory, and no advice: {error}"
    return advise(request, planner, setting, clock.failed, clock.current)
