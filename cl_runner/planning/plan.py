"""The plan of a requested run, and what to type so that it fits."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_runner import distributed
from cl_runner.compose import Request
from cl_runner.config import Config

if TYPE_CHECKING:
    from cl_runner.data.task import Task
    from cl_runner.families.base import Family
    from cl_runner.planning.planner import Plan, Planner
    from cl_runner.planning.setting import Setting


def plan_run(
    request: Request,
    tasks: Sequence[Task] | None,
    family: Family | None,
    calibrates: bool = True,
    processes: int | None = None,
) -> tuple[Planner, Setting, Plan]:
    """As `_plan_run`, whose text says what it returns.

    Raises:
        ValueError: also if the model computes with the content of its tensors, as a mixture of experts does.
    """
    try:
        return _plan_run(request, tasks, family, calibrates, processes)
    except ValueError:
        raise
    except Exception as error:  # torch's imitation of tensors has many errors of its own
        reason = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(
            f"the passes of {request.backbone} cannot be imitated without its weights "
            f"({type(error).__name__}: {reason}); the run itself is not concerned"
        ) from error


def _plan_run(
    request: Request, tasks: Sequence[Task] | None, family: Family | None, calibrates: bool, processes: int | None
) -> tuple[Planner, Setting, Plan]:
    """The plan of a run, and what advice needs.

    Args:
        tasks: None if their data are not at hand; then the task order's numbers count.
        family: with its tokenizer, to know how long the texts are; None = all as long as may be.
        calibrates: whether to measure the speed of this machine where no past run tells it.
        processes: that compute the run; None = those that do now, or the job's.
    """
    import torch

    from cl_runner.data.task import label_union, outlines
    from cl_runner.planning.memory import resident_bytes
    from cl_runner.planning.numbers import counts_of, setting_of, skeleton, text_lengths
    from cl_runner.planning.past import Work, past_seconds
    from cl_runner.planning.planner import Planner
    from cl_runner.planning.sample import sampled
    from cl_runner.planning.seconds import work
    from cl_runner.planning.speed import calibrate
    from cl_runner.planning.tasks import Counts

    config = request.config
    wanted = config.hardware.device
    there = torch.cuda.is_available()
    gpu = wanted == "cuda" or (wanted == "auto" and there)
    labels = len(label_union(outlines(config.task_order, config.task)))
    model = skeleton(config.backbone, labels)
    counts, lengths = counts_of(config, tasks), text_lengths(family, tasks)
    of_job = config.hardware.slurm.processes if config.hardware.slurm is not None else 1
    together = processes or max(distributed.size(), of_job)
    s = setting_of(config, counts, model, "cuda" if gpu else "cpu", lengths, together)
    # An imitation is made in place, and methods change it; of past runs others are asked about the same architecture.
    planner = Planner(lambda: copy.deepcopy(model), 0, price_store(config))
    planner.memory(s)
    if not gpu:
        # After the passes were priced: what that left in the process is in a run's as well.
        planner.base_bytes = resident_bytes()

    def work_of(past: Any, examples: Sequence[Counts]) -> Work:
        return work(setting_of(past, examples, model, s.device, lengths))

    runs = f"*/{request.backbone}/{request.method}/*"
    device = torch.device("cuda" if gpu else "cpu")
    found: tuple[dict[str, float], str] | None = None
    if not gpu or there:
        found = past_seconds(Path(config.root), runs, request.resolved, str(device), work(s), work_of)
    speed = None
    if calibrates and (there or not gpu):
        if config.hardware.threads is not None:
            torch.set_num_threads(config.hardware.threads)
        product = torch.bfloat16 if config.hardware.precision == "bf16" else s.dtype
        rows = s.pass_size(s.tasks[-1]) * s.max_whole
        size = s.dtype.itemsize * planner.architecture.parameters(s)
        calibrated = functools.partial(calibrate, planner.architecture.width(s), rows, product, device, size)
        if found is None and not gpu and s.needs.retrieves is None:
            speed = sampled(planner.prices, lambda: copy.deepcopy(model), s, calibrated)
        else:
            speed = calibrated()
    if found is not None:
        seconds, basis = found[0], f"the pace of {found[1]}"
    elif speed is not None:
        seconds, basis = planner.seconds(s, speed), f"a short calibration of this machine: {speed}"
    else:
        seconds = None
        basis = "no time: " + ("there is no GPU here" if gpu and not there else "no past run of this kind")
    return planner, s, planner.plan(s, seconds, basis, speed.flops_per_second if speed is not None else None)


def price_store(config: Config) -> Path | None:
    """Where runs share what passes cost; None if they share nothing. A plan alone leaves nothing behind."""
    shared = Path(config.root) / "cache"
    return shared / "plans" if config.importance.cache_gb and shared.is_dir() else None


def refusal(request: Request, planner: Planner, s: Setting) -> str | None:
    """Why a run cannot fit into this machine's memory, whatever its passes take, and what to type; None = it may."""
    from cl_runner.planning.memory import device_bytes, gigabytes

    available, (held, of_methods) = device_bytes(s.device), planner.held(s)
    if available is None or held <= available:
        return None
    where = "GPU memory" if s.device == "cuda" else "memory"
    own = f", {gigabytes(of_methods)} of them for what {request.method} keeps" if of_methods else ""
    return (
        f"{request.method} on {request.backbone} holds {gigabytes(held)} of {where} between two steps{own}, and there "
        f"are {gigabytes(available)}. {advise(request, planner, s)}"
    )


def tight(request: Request, planner: Planner, s: Setting) -> list[str]:
    """What to say of a run that may hold what it holds, but whose plan is above this machine's memory."""
    from cl_runner.planning.memory import device_bytes, gigabytes

    available, peak = device_bytes(s.device), max(planner.memory(s).values())
    if available is None or peak <= available:
        return []
    said = f"Its plan says {gigabytes(peak)}, and there are {gigabytes(available)}: memory may run out."
    return [said, advise(request, planner, s)]


def advise(request: Request, planner: Planner, s: Setting, failed: str | None = None, task: int = 0) -> str:
    """What to type so that the run fits into this machine's memory.

    Args:
        failed: the phase in which a run died, as its clock calls it; None = it has not begun.
        task: which was current; -1 = none.
    """
    from cl_runner.planning.memory import advice, device_bytes

    available = device_bytes(s.device)
    if available is None:
        return ""
    if failed == "train":
        failed = f"train {s.tasks[max(0, task)].stage}"
    return advice(planner, s, available, request.command_with, failed)
