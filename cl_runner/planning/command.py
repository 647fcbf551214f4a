"""The command `plan`: what a run will cost, before it is started, without its weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cl_runner.arguments import Parser
from cl_runner.compose import Request, compose
from cl_runner.overrides import check_once

if TYPE_CHECKING:
    from cl_runner.data.task import Task
    from cl_runner.planning.planner import Plan, Planner
    from cl_runner.planning.setting import Setting


def main(arguments: Sequence[str]) -> int:
    """Run `plan`.

    Returns:
        0 the plan is printed; 2 the request is wrong.
    """
    parser = Parser(prog="python -m cl_runner plan", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="GROUP=OPTION | KEY=VALUE", help="as of the run")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path, metavar="DIR")
    parser.add_argument("--processes", type=int, metavar="N", help="that compute the run, for hardware.shard=true")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    try:
        asked = parser.parse_intermixed_args(arguments)
        check_once(asked.overrides, asked.config_dir)
        request = compose(asked.overrides, asked.config_dir)
        for line in request.replaced:
            print(line, file=sys.stderr)
        planned = planned_run(request, processes=asked.processes)
    except ValueError as error:
        print(f"cl_runner: {error}", file=sys.stderr)
        return 2
    if asked.json:
        print(json.dumps(_content(request, *planned), indent=1))
    else:
        _show(request, *planned)
    return 0


def planned_run(
    request: Request, tasks: Sequence[Task] | None = None, processes: int | None = None
) -> tuple[Planner, Setting, Plan]:
    """The plan of a run, and what it was made of.

    Args:
        tasks: that were read already.
        processes: that compute the run; None = those that do now, or the job's.

    Raises:
        ValueError: a mistake in data or backbone, or no plan can be made of them.
    """
    with Console(stderr=True).status(f"Planning {request.method} on {request.backbone} ..."):
        _quiet()
        import cl_runner.journal  # noqa: F401  # the process of a run holds all this
        from cl_runner.planning.numbers import local_family, local_tasks
        from cl_runner.planning.plan import plan_run

        found = local_tasks(request.config) if tasks is None else tasks
        family = local_family(request.config.backbone, found)
        return plan_run(request, found, family, processes=processes)


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()


def _content(request: Request, planner: Planner, s: Setting, plan: Plan) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    from cl_runner.own_cards import CUDA_CONTEXT_BYTES
    from cl_runner.planning.fitting import options_of
    from cl_runner.planning.memory import device_bytes
    from cl_runner.planning.plan import advise
    from cl_runner.planning.planner import plan_json

    content = plan_json(plan)
    for name, phase in plan.phases.items():
        content["phases"][name] |= {"tokens": phase.tokens}
    available = device_bytes(s.device)
    over = available is not None and max(phase.bytes for phase in plan.phases.values()) > available
    return content | {
        "device": s.device,
        "available_bytes": available,
        "cuda_context_bytes": CUDA_CONTEXT_BYTES if s.device == "cuda" else 0,
        "peak_bytes": planner.memory(s),
        "parameters": plan.parameters,
        "trainable_by_task": plan.trainable,
        "optimizer_steps": plan.steps,
        "disk": plan.disk,
        "longest_text": s.max_length,
        "longest_answer": None if s.answers is None else s.answers.max_length,
        "longest_generated": None if s.answers is None else s.answers.generated,
        "assumed": "" if s.encoder is None else s.encoder.assumed,
        "folder": str(request.folder),
        "advice": advise(request, planner, s) if over else None,
        "fitted": options_of(request, planner, s),
    }


def _show(request: Request, planner: Planner, s: Setting, plan: Plan) -> None:
    """Tables for people; sizes in 10^9 bytes."""
    from rich.table import Table

    from cl_runner.own_cards import CUDA_CONTEXT_BYTES
    from cl_runner.planning.fitting import free_bytes, options_of, overfull, sharded_cards, smallest_card, told
    from cl_runner.planning.memory import gigabytes, with_options
    from cl_runner.planning.plan import advise, refusal
    from cl_runner.tracking.pace import duration

    console = Console(soft_wrap=True, highlight=False)
    where = "GPU memory" if s.device == "cuda" else "memory"
    table = Table(title=f"{request.method} on {request.backbone}, {request.task_order}")
    table.add_column("phase")
    for column in (f"peak {where}", "examples", "tokens", "time"):
        table.add_column(column, justify="right")
    for name, phase in plan.phases.items():
        counted = (f"{phase.examples:,}", f"{phase.tokens:,}") if phase.examples else ("", "")
        table.add_row(name, gigabytes(phase.bytes), *counted, "" if phase.seconds is None else duration(phase.seconds))
    console.print(table)
    known = [phase.seconds for phase in plan.phases.values() if phase.seconds is not None]
    console.print(f"Time: {duration(sum(known))} from {plan.basis}" if known else f"Time: {plan.basis}")
    trained = list(plan.trainable.values())
    least, most = min(trained), max(trained)
    share = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    console.print(
        f"Trains {share} of {plan.parameters:,} parameters ({100 * most / plan.parameters:.3g} % at most) of type "
        f"{str(s.dtype).removeprefix('torch.')}, in {len(trained)} tasks and {plan.steps:,} optimizer steps; "
        + _texts(s)
    )
    if s.device == "cuda":
        host = planner.in_main_memory(s)
        loading = f"{gigabytes(plan.phases['load'].bytes)} while loading" + (
            f", {gigabytes(host)} then" if host else ""
        )
        if s.shards > 1:
            reads = gigabytes(planner.in_first_process(s))
            loading = f"of the first process, which reads and writes weights for all, {reads}"
            loading += f"; of each {gigabytes(host)}" if host else ""
        console.print(
            f"Beside it: about {gigabytes(CUDA_CONTEXT_BYTES)} of GPU memory for CUDA itself; in main memory {loading}"
        )
    if s.encoder is not None and s.encoder.assumed:
        console.print(f"Note: {s.encoder.assumed}")
    for name in plan.unsaid:
        console.print(f"Not in this plan: {name}, which does not say what it needs")
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in plan.disk.items())
    console.print(f"Disk: {gigabytes(sum(plan.disk.values()))} at most ({parts}); {gigabytes(plan.kept_bytes)} stays")
    hardware = request.config.hardware
    if s.device == "cuda":
        console.print(smallest_card(request, planner, s), markup=False)
        for line in sharded_cards(request, planner, s):
            console.print(line, markup=False)
    available = free_bytes(s.device, hardware.memory_gb)
    if available is None:
        console.print("There is no GPU here to compare with: hardware.memory_gb=N tells of one.")
        return
    options = options_of(request, planner, s)
    over = [name for name, phase in plan.phases.items() if phase.bytes > available]
    if over:
        console.print(f"[bold]This does not fit[/bold]: {', '.join(over)} of {gigabytes(available)} here.")
        if options and not overfull(planner, s, options, available):
            console.print(told(options, available), markup=False)
            peaks = planner.memory(with_options(s, options))
            host = planner.in_main_memory(with_options(s, options))
            beside = f"; {gigabytes(host)} of main memory" if host else ""
            console.print("Then: " + ", ".join(f"{name} {gigabytes(size)}" for name, size in peaks.items()) + beside)
            return
        refused = refusal(request, planner, s)
        console.print(advise(request, planner, s) if refused is None else f"A run is refused: {refused}", markup=False)
    else:
        console.print(f"It fits: there are {gigabytes(available)} here.")


def _texts(s: Setting) -> str:
    if s.answers is None:
        return f"texts of at most {s.max_length} tokens"
    said = f"prompts of at most {s.max_length} tokens, answers of {s.answers.max_length} in training"
    if s.answers.by_label:
        said += f", one of {s.answers.labels} labels chosen by likelihood"
    return said + (f", of {s.answers.generated} generated" if s.answers.generated else "")
