"""What a run that does not fit does otherwise by itself: options that change its memory and not its results."""

from __future__ import annotations

import copy
import dataclasses
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from cl_runner.build import build_method
from cl_runner.compose import Request, check
from cl_runner.overrides import key_of
from cl_runner.own_cards import CUDA_CONTEXT_BYTES
from cl_runner.planning import memory
from cl_runner.planning.memory import Options, changing, gigabytes, ladders, resident_bytes, with_options
from cl_runner.planning.numbers import skeleton
from cl_runner.planning.planner import Planner
from cl_runner.planning.setting import Setting
from cl_runner.shard_checks import cannot_always

#: GPUs that there are, by their memory in 10^9 bytes.
PROCESSES = (2, 4, 8, 16, 32, 64)
OFFLOAD = "hardware.offload"
CARDS = (8, 12, 16, 20, 24, 32, 40, 48, 80, 141, 192)


def free_bytes(device: str, most_gb: float | None = None) -> int | None:
    """What a run can have now; None if its device is a GPU and there is none here.

    Args:
        most_gb: that it may have, in 10^9 bytes.
    """
    most = None if most_gb is None else int(most_gb * 1e9)
    if device == "cuda":
        if torch.cuda.is_available():
            free = torch.cuda.mem_get_info()[0]
            return free if most is None else min(free, most - CUDA_CONTEXT_BYTES)
        return None if most is None else most - CUDA_CONTEXT_BYTES
    there = memory.device_bytes(device)
    assert there is not None, "every machine has memory"
    found = Path("/proc/meminfo")
    if platform.system() == "Linux" and found.is_file():
        lines = dict(line.split(":", 1) for line in found.read_text(encoding="ascii").splitlines())
        there = min(there, 1024 * int(lines["MemAvailable"].split()[0]) + resident_bytes())
    return there if most is None else min(there, most)


def drops_out(model: nn.Module) -> bool:
    """Whether a pass of training draws random numbers, so that other passes learn something else."""
    of_modules = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    said = getattr(model, "config", None)
    named = {} if said is None else said.to_dict()
    return of_modules or any("dropout" in k and isinstance(v, float) and v > 0 for k, v in named.items())


def fitted(
    planner: Planner, s: Setting, available: int, typed: Collection[str], passes: bool, main_memory: int | None = None
) -> tuple[Options, dict[str, int]]:
    """The least costly options that change no result with which every phase fits, and the peaks of those that do not.

    Args:
        available: bytes.
        typed: keys that a person has set, which stay.
        passes: whether training may take a batch in smaller passes.
        main_memory: bytes of it that a run on a GPU can have beside; None = as much as it takes.
    """
    chosen: Options = {}
    too_large: dict[str, int] = {}
    for phase in planner.memory(s):
        if planner.peak(with_options(s, chosen), phase) <= available:
            continue
        before = chosen
        for options in ladders(s, phase):
            if changing(options):
                break
            mine = (key for key in options if key not in typed and (passes or not key.endswith(".micro_batch")))
            tried = {**before, **{key: options[key] for key in mine}}
            if main_memory is not None and planner.in_main_memory(with_options(s, tried)) > main_memory:
                continue
            chosen = tried
            if planner.peak(with_options(s, chosen), phase) <= available:
                break
        peak = planner.peak(with_options(s, chosen), phase)
        if peak > available:
            too_large[phase] = peak
    return chosen, too_large


def _settable(request: Request) -> tuple[set[str], bool]:
    """The keys that were typed, which stay, and whether training may take a batch in smaller passes."""
    return {key_of(override) for override in request.overrides}, not drops_out(skeleton(request.config.backbone, 2))


def options_of(request: Request, planner: Planner, s: Setting) -> Options:
    """What this run does otherwise so that it fits; nothing if it does, or if it may not."""
    hardware = request.config.hardware
    available = free_bytes(s.device, hardware.memory_gb)
    if not hardware.fit or available is None or max(planner.memory(s).values()) <= available:
        return {}
    beside = free_bytes("cpu") if s.device == "cuda" and torch.cuda.is_available() else None
    return fitted(planner, s, available, *_settable(request), beside)[0]


def overfull(planner: Planner, s: Setting, options: Options, available: int) -> bool:
    """Whether a run is too large with these options as well."""
    return max(planner.memory(with_options(s, options)).values()) > available


def applied(request: Request, options: Mapping[str, str]) -> Request:
    """The same run, which computes with these options; its identity and what was asked stay."""
    if not options:
        return request
    values = copy.deepcopy(request.resolved)
    for key, value in options.items():
        *path, last = key.split(".")
        node: Any = values
        for name in path:
            node = node[int(name)] if isinstance(node, list) else node[name]
        node[last] = yaml.safe_load(value)
    return dataclasses.replace(request, config=check(values, request.folders))


def _listed(options: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())


def told(options: Mapping[str, str], available: int) -> str:
    """One line for the user."""
    return (
        f"To fit {gigabytes(available)}: {_listed(options)} (results stay, but for rounding; typed values are kept, "
        "and hardware.fit=false changes nothing)"
    )


def smallest_card(request: Request, planner: Planner, s: Setting) -> str:
    """Which GPU is large enough, with what has to be done otherwise on it."""
    typed, passes = _settable(request)
    found, too_large = _smallest(planner, s, typed, passes)
    if found is not None:
        beside = _smallest(planner, s, typed | {OFFLOAD}, passes)[0] if f" {OFFLOAD}=" in found else None
        return f"Smallest GPU: {found}" + (f"\nWith all of it on the GPU: {beside}" if beside else "")
    phase, least = max(too_large.items(), key=lambda item: item[1])
    return f"No GPU is large enough: {phase} takes {gigabytes(least)} at least on one process"


def _smallest(planner: Planner, s: Setting, typed: Collection[str], passes: bool) -> tuple[str | None, dict[str, int]]:
    """The smallest GPU as people read it, or None and what does not fit on any."""
    too_large: dict[str, int] = {}
    for card in CARDS:
        options, too_large = fitted(planner, s, int(card * 1e9) - CUDA_CONTEXT_BYTES, typed, passes)
        if not too_large:
            peak = max(planner.memory(with_options(s, options)).values()) + CUDA_CONTEXT_BYTES
            how = f", by {_listed(options)}" if options else ""
            host = planner.in_main_memory(with_options(s, options))
            how += f", with {gigabytes(host)} of main memory" if host else ""
            return f"{card} GB, of which it takes {gigabytes(peak)}{how}", {}
    return None, too_large


def sharded_cards(request: Request, planner: Planner, s: Setting) -> list[str]:
    """The smallest GPU for several processes that each hold a part of the weights, where that needs a smaller one."""
    chain = build_method(request.config.method)
    if s.shards > 1 or not all(each.sharded for each in chain.methods.values()):
        return []
    typed, passes = _settable(request)
    typed |= {OFFLOAD}  # it is not what several processes are for
    known = _smallest(planner, s, typed, passes)[0]
    never_whole = cannot_always(request.config, chain) is None
    lines = []
    for processes in PROCESSES:
        for value in ("true", "always") if never_whole else ("true",):
            tried = dataclasses.replace(s, shards=processes, always=value == "always")
            found = _smallest(planner, tried, typed, passes)[0]
            if found is not None and found.split(",")[0] != (known or "").split(",")[0]:
                lines.append(f"Of each of {processes} processes with hardware.shard={value}: {found}")
                known = found
    return lines
