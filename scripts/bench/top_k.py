"""Exact top-k of many scores by streaming (cl_runner.sparse.selection), against torch.topk of the tensors joined.

Aim: the same set, and at most 1/10 of the extra memory. Extra memory is the highest that a fresh process reached
beyond what it held when the selection began, the result included. Where torch.topk does not fit into memory, it is
measured at the largest size that does, and its extra memory scaled, as all of it is per entry.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import arguments, interleaved, keep, peak_rise, ratio, show, spread
from torch import Tensor

from cl_runner.sparse.selection import Selection, select

AIM = 0.1
PART = 1 << 24  # entries of a tensor: a 4096 x 4096 matrix
MEBIBYTE = 1 << 20
COPIES = 4 + 16  # bytes an entry that torch.topk needs beside the scores: their copy, and (on a CPU) pairs to sort


def scores_of(entries: int, device: str) -> dict[str, Tensor]:
    """Positive scores over many orders of magnitude, as a Fisher has them, in tensors of at most PART entries."""
    generator = torch.Generator(device).manual_seed(0)
    scores = {}
    for number, start in enumerate(range(0, entries, PART)):
        normal = torch.randn(min(PART, entries - start), generator=generator, device=device)
        scores[f"w{number:05}"] = normal.mul_(6).exp_()
    return scores


def ours(scores: dict[str, Tensor], fraction: float) -> Selection:
    sizes = {name: score.numel() for name, score in scores.items()}
    return select(scores, sizes, dict.fromkeys(scores, "all"), fraction, "largest", 0)


def joined(scores: dict[str, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Values and positions, unsorted, which is torch.topk at its quickest."""
    values, positions = torch.cat(list(scores.values())).topk(count, sorted=False)
    return values, positions


def first(scores: dict[str, Tensor], entries: int) -> dict[str, Tensor]:
    """The first entries of all."""
    parts = {}
    for name, score in scores.items():
        if entries > 0:
            parts[name] = score[:entries]
        entries -= score.numel()
    return parts


def check(scores: dict[str, Tensor], fraction: float) -> int:
    """Both find the same set; its size. Of scores equal to the last, which is taken is torch.topk's secret."""
    found = ours(scores, fraction)
    values, positions = (tensor.cpu() for tensor in joined(scores, found.count))
    starts = {name: number * PART for number, name in enumerate(scores)}
    mine = torch.cat([index + starts[name] for name, index in found.indices.items()])
    mine_values = torch.cat([scores[name].cpu()[index] for name, index in found.indices.items()])
    last = values.min()
    assert torch.equal(mine[mine_values > last], positions[values > last].sort().values), "another set"
    assert torch.equal(mine_values.sort().values, values.sort().values), "other values"
    return found.count


def available(device: str) -> int:
    """Bytes of memory that are free."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo does not tell the available memory: run this benchmark on Linux")


def memory_of(variant: str, entries: int, fraction: float, device: str) -> int:
    """`peak_rise` of a variant, in this process."""
    scores = scores_of(entries, device)
    count = round(fraction * entries)

    def work(given: dict[str, Tensor], count: int) -> object:
        return ours(given, fraction) if variant == "ours" else joined(given, count)

    work(first(scores, 100_000), 100)  # what a library allocates once
    return peak_rise(lambda: work(scores, count), device)


def in_new_process(variant: str, entries: int, fraction: float, device: str, threads: int) -> int:
    """`memory_of` a variant in a process of its own."""
    options = f"--variant {variant} --entries {entries} --fraction {fraction!r} --device {device} --threads {threads}"
    done = subprocess.run([sys.executable, __file__, *options.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{variant} failed:\n{done.stderr}")
    return int(done.stdout)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = arguments(str(__doc__), entries=100_000_000, fraction=0.001, device=device, variant="")
    if given.variant:  # the new process
        print(memory_of(given.variant, given.entries, given.fraction, given.device))
        return
    room = int(0.8 * available(given.device)) - 4 * given.entries
    if room < 0:
        raise SystemExit(f"{given.entries} fp32 scores do not fit into memory; type a smaller --entries")
    both = min(given.entries, room // COPIES)
    common = (given.fraction, given.device, given.threads)
    mine = in_new_process("ours", given.entries, *common)
    measured = in_new_process("topk", both, *common)
    peer = round(measured * given.entries / both)

    scores = scores_of(given.entries, given.device)
    fitting = first(scores, both)
    count = check(fitting, given.fraction)
    variants: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(fitting, given.fraction),
        "topk": lambda: joined(fitting, count),
    }
    if both < given.entries:
        variants["all"] = lambda: ours(scores, given.fraction)
    seconds = interleaved(variants, given.repeats)
    middle, low, high = ratio(seconds["ours"], seconds["topk"])

    def row(title: str, key: str, entries: int, extra: str) -> list[str]:
        time = spread(seconds[key])["median"]
        return [title, f"{entries:.3g}", f"{time:.3f}", f"{time / entries * 1e9:.2f}", extra]

    rows = [row("torch.topk of the tensors joined", "topk", both, f"{measured / MEBIBYTE:.0f}")]
    if both < given.entries:
        rows.append(["  scaled, as it does not fit", f"{given.entries:.3g}", "", "", f"{peer / MEBIBYTE:.0f}"])
        rows.append(row("ours, at the size where both fit", "ours", both, ""))
    last = "all" if both < given.entries else "ours"
    rows.append(row("ours", last, given.entries, f"{mine / MEBIBYTE:.0f}"))
    title = f"Largest {given.fraction:.2%} of fp32 scores on {given.device}, {given.threads} thread(s): the same set"
    show(title, ["", "entries", "seconds", "ns an entry", "extra MiB"], rows)
    verdict = "met" if mine <= AIM * peer else "MISSED"
    print(f"extra memory: {mine / peer:.4f} of torch.topk's (aim: at most {AIM}): {verdict}")
    print(f"time: {middle:.3f} of torch.topk's (quartiles {low:.3f} to {high:.3f}; no aim)")
    results = {
        "entries": given.entries,
        "entries_of_both": both,
        "fraction": given.fraction,
        "device": given.device,
        "same_set": True,
        "extra_bytes": {"ours": mine, "topk": measured, "topk_scaled_to_entries": peer},
        "memory_ratio": {"median": mine / peer, "aim": AIM, "met": mine <= AIM * peer},
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "time_ratio": {"median": middle, "lower_quartile": low, "upper_quartile": high},
    }
    keep(given.output, results)


if __name__ == "__main__":
    main()
