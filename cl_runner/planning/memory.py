"""Memory of this machine, and the smallest change of options with which a run fits into it."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from cl_runner.needs import with_lever
from cl_runner.own_cards import CUDA_CONTEXT_BYTES
from cl_runner.planning.planner import Planner
from cl_runner.planning.setting import Setting

#: What failed did not fit, whatever the plan says: the next try must need so much less than the plan said.
MARGIN = 0.8
#: Texts are not cut shorter than this.
LEAST_LENGTH = 16


class DoesNotFit(ValueError):
    """A run holds more than there is, before a pass takes anything."""


#: Options that come last, as do those that a method's memory is sized by; the others
#: leave the results as they are but for rounding and the draws of dropout.
CHANGES_RESULTS = {"backbone.max_length", "backbone.dtype"}


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a lack of memory: of a GPU, of Python or of torch's CPU allocator."""
    while error is not None:
        text = str(error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, RuntimeError) and ("you tried to allocate" in text or "CUBLAS_STATUS_ALLOC" in text):
            return True
        if isinstance(error, OSError) and error.errno == 12:  # ENOMEM, of a memory-mapped file
            return True
        error = error.__cause__ or error.__context__
    return False


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def device_bytes(device: str) -> int | None:
    """What a run can have: of the GPU all but its context, of the machine what the system or a container grants.

    None if the run's device is a GPU and there is none here.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            return None
        return torch.cuda.get_device_properties(0).total_memory - CUDA_CONTEXT_BYTES
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if platform.system() == "Linux":
        for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
            path = Path(name)
            if path.is_file() and path.read_text().strip().isdigit():
                limits.append(int(path.read_text()))
    return min(limits)


Options = dict[str, str]


def _halvings(value: int, least: int = 1) -> Iterator[int]:
    while value > least:
        value = max(least, -(-value // 2))
        yield value


def with_options(s: Setting, options: Mapping[str, str]) -> Setting:
    """The setting under changed options of the configuration."""
    for key, value in options.items():
        match key.split("."):
            case ["training", stage, "micro_batch"]:
                s = dataclasses.replace(s, micro_batch={**s.micro_batch, stage: int(value)})
            case ["task_order", "tasks", index, "training", "micro_batch"]:
                s = dataclasses.replace(s, micro_batch={**s.micro_batch, f"tasks.{index}": int(value)})
            case ["importance", "batch_size"]:
                s = dataclasses.replace(s, importance_batch=int(value))
            case ["importance", "accumulate"]:
                s = dataclasses.replace(s, accumulate="cpu")
            case ["importance", "passes"]:
                s = dataclasses.replace(s, passes=int(value))
            case ["evaluation", "batch_size"]:
                s = dataclasses.replace(s, evaluation_batch=int(value))
            case ["hardware", "gradient_checkpointing"]:
                s = dataclasses.replace(s, gradient_checkpointing=True)
            case ["hardware", "offload"]:
                s = dataclasses.replace(s, offload=True)
            case ["backbone", "max_length"]:
                length = int(value)
                s = dataclasses.replace(s, max_length=length, mean_length=min(s.mean_length, length))
            case ["backbone", "dtype"]:
                s = dataclasses.replace(s, dtype=getattr(torch, value))
            case ["method", _, _]:
                s = dataclasses.replace(s, needs=with_lever(s.needs, key, int(value)))
            case _:
                raise AssertionError(f"{key} is no option of memory")
    return s


def _training_ladder(s: Setting, stage: str) -> Iterator[Options]:
    """Options for the training of a stage, the least costly first.

    Smaller passes; then activations that are computed again; then steps in main memory.
    """
    of_a_task = stage.startswith("tasks.")
    key = f"task_order.{stage}.training.micro_batch" if of_a_task else f"training.{stage}.micro_batch"
    start = s.micro_batch[stage]
    sizes = [start, *_halvings(start)]
    plain = [{} if size == start else {key: str(size)} for size in sizes]
    yield from plain[1:]
    if not s.gradient_checkpointing:
        plain = [{**options, "hardware.gradient_checkpointing": "true"} for options in plain]
        yield from plain
    whole = any(task.stage == stage and task.trains in ("all", "listed") for task in s.tasks)
    if whole and s.device == "cuda" and s.offloads and not s.offload:
        yield from ({**options, "hardware.offload": "optimizer"} for options in plain)


def _importance_ladder(s: Setting) -> Iterator[Options]:
    options: Options = {}
    if s.per_example:
        for size in _halvings(s.importance_batch):
            options = {"importance.batch_size": str(size)}
            yield options
    # Passes of single examples, or of a micro-batch, keep activations as training does, or compute them again.
    recomputing: list[Options] = [{}] if s.gradient_checkpointing else [{}, {"hardware.gradient_checkpointing": "true"}]
    places: list[Options] = [{}]
    if s.device == "cuda" and s.accumulate == "device":  # on the CPU there is nowhere else to put the sums
        # Another pass computes everything again; sums in main memory are copied for every tensor of every batch: of a
        # model of 7 B on an H200 a pass took 0.17 s an example of 1,024 tokens, and such copies 6 s.
        in_passes: list[Options] = [{"importance.passes": str(times * s.passes)} for times in (2, 4, 8, 16)]
        for recomputed in recomputing:
            yield from ({**options, **recomputed, **place} for place in [{}, *in_passes] if recomputed or place)
        places = [{"importance.accumulate": "cpu"}]
    for recomputed in recomputing:
        yield from ({**options, **recomputed, **place} for place in places if recomputed or place)


def _evaluation_ladder(s: Setting) -> Iterator[Options]:
    yield from ({"evaluation.batch_size": str(size)} for size in _halvings(s.evaluation_batch))


def ladders(s: Setting, phase: str) -> Iterator[Options]:
    """All options for one phase, each needing less memory or costing more than the one before."""
    if phase.startswith("train "):
        same = list(_training_ladder(s, phase.removeprefix("train ")))
    elif phase == "importance":
        same = list(_importance_ladder(s))
    else:
        same = list(_evaluation_ladder(s)) if phase in ("select", "evaluate") else []
    yield from same
    options = same[-1] if same else {}
    if phase != "load":
        for lever in s.needs.levers:
            for value in _halvings(lever.value):
                options = {**options, lever.key: str(value)}
                yield options
        for length in _halvings(s.max_length, LEAST_LENGTH):
            options = {**options, "backbone.max_length": str(length)}
            yield options
    if s.dtype == torch.float32:
        yield {**options, "backbone.dtype": "bfloat16"}


def smallest_change(
    planner: Planner, s: Setting, available: int, failed: str | None = None
) -> tuple[Options, dict[str, int]]:
    """The least costly options with which every phase fits, and the peaks of the phases that no option makes fit.

    Args:
        available: bytes.
        failed: the phase in which a run died, whatever its plan said, such as "importance" or "train base"; another
            name = unknown, so the largest one.
    """
    limits = _limits(planner, s, available, failed)
    chosen: Options = {}
    hopeless: dict[str, int] = {}
    for phase, limit in limits.items():
        if planner.peak(with_options(s, chosen), phase) <= limit:
            continue
        ladder = [{**chosen, **options} for options in ladders(s, phase)]
        same = [options for options in ladder if not changing(options)]
        least = planner.peak(with_options(s, ladder[-1] if ladder else chosen), phase)
        if least > available:
            hopeless[phase] = least
        elif least > limit and same:  # of a run that died: as little as can be
            chosen = same[-1]
        else:
            chosen = next((o for o in ladder if planner.peak(with_options(s, o), phase) <= limit), chosen)
    if not hopeless and changing(chosen):
        # What was chosen for one phase may have made an option for another needless.
        for key in [key for key in chosen if key not in changing(chosen)]:
            fewer = {other: value for other, value in chosen.items() if other != key}
            if all(planner.peak(with_options(s, fewer), phase) <= limit for phase, limit in limits.items()):
                chosen = fewer
    return chosen, hopeless


def changing(options: Options) -> list[str]:
    """Those of some options that change the results."""
    return sorted(key for key in options if key in CHANGES_RESULTS or key.startswith("method."))


def _limits(planner: Planner, s: Setting, available: int, failed: str | None) -> dict[str, int]:
    peaks = planner.memory(s)
    limits = dict.fromkeys(peaks, available)
    if failed is not None:
        guilty = [phase for phase in peaks if phase == failed] or [max(peaks, key=lambda p: peaks[p])]
        limits |= {phase: min(available, int(MARGIN * peaks[phase])) for phase in guilty}
    return limits


def advice(
    planner: Planner,
    s: Setting,
    available: int,
    command: Callable[[Mapping[str, str]], str],
    failed: str | None = None,
) -> str:
    """What to type so that a run fits into memory: the smallest sufficient change of options, or by how much none is.

    Args:
        available: bytes that the run can have.
        command: the line to type for changed options, by key.
        failed: the phase in which a run died, whatever its plan said, such as "importance" or "train base"; another
            name = unknown, so the largest one.
    """
    options, hopeless = smallest_change(planner, s, available, failed)
    if hopeless:
        phase, least = max(hopeless.items(), key=lambda item: item[1])
        parameters = planner.architecture.parameters(s) / 1e6
        room = max(0.0, (available - planner.base_bytes) / (least - planner.base_bytes))
        return (
            f"No change of options makes {phase} fit: it needs {gigabytes(least)} at least, "
            f"{gigabytes(least - available)} more than the {gigabytes(available)} there are (loading alone takes "
            f"{gigabytes(planner.peak(s, 'load'))}). Choose a backbone of at most about {room * parameters:,.0f} M "
            f"parameters (this one has {parameters:,.0f} M), a method that trains fewer weights, or a machine with "
            "more memory."
        )
    if not options:
        peak = gigabytes(max(planner.memory(s).values()))
        if failed is None:
            return f"It fits: the peak is {peak} of {gigabytes(available)}."
        return f"Its plan says {peak}, and no option takes less: something else fills the {gigabytes(available)}."
    changed = changing(options)
    change = "change" if len(changed) > 1 else "changes"
    results = (
        f"{' and '.join(changed)} {change} the results" if changed else "the results stay, but for rounding and dropout"
    )
    return f"The smallest change that fits ({results}):\n{command(options)}"


def gigabytes(size: float) -> str:
    """10^9 bytes as people read them."""
    return f"{size / 1e9:.3g} GB"
