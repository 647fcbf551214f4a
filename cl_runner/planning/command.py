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
from cl_runner.parts import family_kind

if TYPE_CHECKING:
    from cl_runner.data.task import Task
    from cl_runner.families.base import Family
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
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    try:
        asked = parser.parse_intermixed_args(arguments)
        request = compose(asked.overrides, asked.config_dir)
        for line in request.replaced:
            print(line, file=sys.stderr)
        with Console(stderr=True).status(f"Planning {request.method} on {request.backbone} ..."):
            _quiet()
            from cl_runner.planning.numbers import local_family, local_tasks

            tasks = local_tasks(request.config)
            planned = plan_run(request, tasks, local_family(request.config.backbone, tasks))
    except ValueError as error:
        print(f"cl_runner: {error}", file=sys.stderr)
        return 2
    if asked.json:
        print(json.dumps(_content(request, *planned), indent=1))
    else:
        _show(request, *planned)
    return 0


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()


def plan_run(
    request: Request, tasks: Sequence[Task] | None, family: Family | None, calibrates: bool = True
) -> tuple[Planner, Setting, Plan]:
    """As `_plan_run`, whose text says what it returns.

    Raises:
        ValueError: also if the model computes with the content of its tensors, as a mixture of experts does.
    """
    if family_kind(request.config.backbone.family) == "image_text":
        raise ValueError("plans know texts alone, no pictures yet; the run itself is not concerned")
    try:
        return _plan_run(request, tasks, family, calibrates)
    except ValueError:
        raise
    except Exception as error:  # torch's imitation of tensors has many errors of its own
        reason = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(
            f"the passes of {request.backbone} cannot be imitated without its weights "
            f"({type(error).__name__}: {reason}); the run itself is not concerned"
        ) from error


def _plan_run(
    request: Request, tasks: Sequence[Task] | None, family: Family | None, calibrates: bool
) -> tuple[Planner, Setting, Plan]:
    """The plan of a run, and what advice needs.

    Args:
        tasks: None if their data are not at hand; then the task order's numbers count.
        family: with its tokenizer, to know how long the texts are; None = all as long as may be.
        calibrates: whether to measure the speed of this machine where no past run tells it.
    """
    import torch

    import cl_runner.run  # noqa: F401  # the process of a run holds all this
    from cl_runner.planning.memory import resident_bytes
    from cl_runner.planning.numbers import Counts, counts_of, label_count, setting_of, skeleton, text_lengths
    from cl_runner.planning.past import Work, past_seconds
    from cl_runner.planning.planner import Planner
    from cl_runner.planning.speed import calibrate

    config = request.config
    wanted = config.hardware.device
    there = torch.cuda.is_available()
    gpu = wanted == "cuda" or (wanted == "auto" and there)
    labels = label_count(config, tasks)
    model = skeleton(config.backbone, labels)
    counts, lengths = counts_of(config, tasks), text_lengths(family, tasks)
    s = setting_of(config, counts, labels, model, "cuda" if gpu else "cpu", lengths)
    made = [model]  # another one is only needed for weights of another type
    planner = Planner(lambda: made.pop() if made else skeleton(config.backbone, labels), 0)
    planner.memory(s)
    if not gpu:
        # After the passes were priced: what that left in the process is in a run's as well.
        planner.base_bytes = resident_bytes()

    def work_of(past: Any, examples: Counts) -> Work:
        return planner.work(setting_of(past, examples, labels, model, s.device, lengths))

    runs = f"*/{request.backbone}/{request.method}/*"
    device = torch.device("cuda" if gpu else "cpu")
    found: tuple[dict[str, float], str] | None = None
    if not gpu or there:
        found = past_seconds(Path(config.root), runs, request.resolved, str(device), planner.work(s), work_of)
    speed = None
    if calibrates and (there or not gpu):
        if config.hardware.threads is not None:
            torch.set_num_threads(config.hardware.threads)
        product = torch.bfloat16 if config.hardware.precision == "bf16" else s.dtype
        speed = calibrate(planner.width(s), s.micro_batch["incremental"] * s.max_whole, product, device)
    if found is not None:
        seconds, basis = found[0], f"the pace of {found[1]}"
    elif speed is not None:
        seconds, basis = planner.seconds(s, speed.useful), f"a short calibration of this machine: {speed}"
    else:
        seconds = None
        basis = "no time: " + ("there is no GPU here" if gpu and not there else "no past run of this kind")
    return planner, s, planner.plan(s, seconds, basis, speed.flops_per_second if speed is not None else None)


def advise(request: Request, planner: Planner, s: Setting, failed: str | None = None) -> str:
    """What to type so that the run fits into this machine's memory."""
    from cl_runner.planning.memory import advice, device_bytes

    available = device_bytes(s.device)
    if available is None:
        return ""
    return advice(planner, s, available, request.command_with, failed)


def _content(request: Request, planner: Planner, s: Setting, plan: Plan) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    from cl_runner.planning.memory import device_bytes
    from cl_runner.planning.planner import CUDA_CONTEXT_BYTES, plan_json

    content = plan_json(plan)
    for name, phase in plan.phases.items():
        content["phases"][name] |= {"examples": phase.examples, "tokens": phase.tokens}
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
        "assumed": s.memory.retrieval.assumed if s.memory.retrieval is not None else "",
        "folder": str(request.folder),
        "advice": advise(request, planner, s) if over else None,
    }


def _show(request: Request, planner: Planner, s: Setting, plan: Plan) -> None:
    """Tables for people; sizes in 10^9 bytes."""
    from rich.table import Table

    from cl_runner.planning.memory import device_bytes, gigabytes
    from cl_runner.planning.planner import CUDA_CONTEXT_BYTES
    from cl_runner.tracking.console import duration

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
        console.print(
            f"Beside it: about {gigabytes(CUDA_CONTEXT_BYTES)} of GPU memory for CUDA itself; in main memory "
            f"{gigabytes(plan.phases['load'].bytes)} while loading"
        )
    if s.memory.retrieval is not None and s.memory.retrieval.assumed:
        console.print(f"Note: {s.memory.retrieval.assumed}")
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in plan.disk.items())
    console.print(f"Disk: {gigabytes(sum(plan.disk.values()))} at most ({parts}); {gigabytes(plan.kept_bytes)} stays")
    available = device_bytes(s.device)
    if available is None:
        console.print("There is no GPU here to compare with.")
        return
    over = [name for name, phase in plan.phases.items() if phase.bytes > available]
    if over:
        console.print(f"[bold]This does not fit[/bold]: {', '.join(over)} of {gigabytes(available)} here.")
        console.print(advise(request, planner, s), markup=False)
    else:
        console.print(f"It fits: there are {gigabytes(available)} here.")


def _texts(s: Setting) -> str:
    if s.answers is None:
        return f"texts of at most {s.max_length} tokens"
    said = f"prompts of at most {s.max_length} tokens, answers of {s.answers.max_length} in training"
    if s.answers.by_label:
        said += f", one of {s.answers.labels} labels chosen by likelihood"
    return said + (f", of {s.answers.generated} generated" if s.answers.generated else "")
