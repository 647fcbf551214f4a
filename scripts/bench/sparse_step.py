"""A sparse training step against its floor, a frozen backbone, and against its peers, side by side on one encoder.

Aims (MiniLM, 32 texts of 64 tokens, 2 cores): largest Fisher <= 1.05 x, scattered <= 1.10 x the frozen step; largest
Fisher <= 0.72 x a dense mask, 0.76 x full, 0.78 x LoRA r=8, and at SHiRA's count <= 0.80 x SHiRA. Bytes saved for
backward <= 1.03 x the frozen step's and <= 0.78 x LoRA's; so is the peak memory of the step.

    python scripts/bench/sparse_step.py --output outputs/published/bench/sparse_step.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers
from harness import arguments, interleaved, keep, peak_rise, ratio, show, spread
from safetensors.torch import load_file, save_file
from steps import (
    Step,
    adapter,
    batches,
    dense_mask,
    encoder,
    frozen,
    important,
    loss_sum,
    ordinary,
    saved_bytes,
    scattered,
    sparse,
)
from torch import Tensor, nn

LINEARS = ["query", "key", "value", "dense"]


def prepare(size: int, length: int, share: float) -> dict[str, Tensor]:
    """Weights after a short training that gives their importance a shape, the batch, and the selections."""
    model, encode = encoder()
    data = list(batches(encode, 8, size, length))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for batch in data:
        loss_sum(model, batch).div(size).backward()
        optimizer.step()
        optimizer.zero_grad()
    prepared = {f"weights/{name}": weight for name, weight in model.state_dict().items()}
    prepared |= {f"batch/{name}": tensor for name, tensor in data[0].items()}
    shares = {"": share, ", SHiRA's count": shira_share(model)}
    for mark, part in shares.items():
        prepared |= {f"large{mark}/{name}": index for name, index in important(model, data[:4], part).items()}
        prepared |= {f"scattered{mark}/{name}": index for name, index in scattered(model, part).items()}
    return prepared


def shira_share(model: nn.Module) -> float:
    """SHiRA of rank 1 trains in + out entries of every matrix."""
    sizes = {name: p for name, p in model.named_parameters() if "embedding" not in name}
    adapted = [p for name, p in sizes.items() if p.dim() == 2 and any(f".{part}." in name for part in LINEARS)]
    return sum(sum(p.shape) for p in adapted) / sum(p.numel() for p in sizes.values())


def builders(prepared: Mapping[str, Tensor]) -> dict[str, Callable[[], Step]]:
    """Every variant from the same weights."""

    def part(kind: str) -> dict[str, Tensor]:
        return {key.partition("/")[2]: t for key, t in prepared.items() if key.partition("/")[0] == kind}

    def fresh() -> nn.Module:
        model, _ = encoder()
        model.load_state_dict(part("weights"))
        return model.train()

    batch = part("batch")

    def floor() -> Step:
        model = fresh()
        return frozen(model, batch, model.bert.embeddings.LayerNorm.weight, model.classifier)

    def lora() -> Step:
        from peft import LoraConfig

        return adapter(fresh(), batch, LoraConfig(r=8, target_modules=LINEARS, modules_to_save=["classifier"]))

    def shira() -> Step:
        from peft import ShiraConfig

        return adapter(fresh(), batch, ShiraConfig(r=1, target_modules=LINEARS, modules_to_save=["classifier"]))

    count = ", SHiRA's count"
    return {
        "frozen backbone": floor,
        "sparse, largest Fisher": lambda: sparse(fresh(), batch, part("large")),
        "sparse, scattered": lambda: sparse(fresh(), batch, part("scattered")),
        "sparse, largest, SHiRA's count": lambda: sparse(fresh(), batch, part("large" + count)),
        "sparse, scattered, SHiRA's count": lambda: sparse(fresh(), batch, part("scattered" + count)),
        "dense mask": lambda: dense_mask(fresh(), batch, part("large")),
        "full fine-tuning": lambda: ordinary(fresh(), batch),
        "PEFT LoRA r=8": lora,
        "PEFT SHiRA r=1": shira,
    }


def peak_mebibytes(step: Step) -> float:
    """Rise of the process's resident memory in a step, after a first one that allocates what stays."""
    step.run()
    return peak_rise(step.run) / 2**20


def main() -> None:
    given = arguments(__doc__ or "", size=32, length=64, share=0.001, variant="", prepared="", memory=True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if given.variant:  # one variant in a process of its own
        print(peak_mebibytes(builders(load_file(given.prepared))[given.variant]()))
        return
    prepared = prepare(given.size, given.length, given.share)
    steps = {name: make() for name, make in builders(prepared).items()}
    saved = {name: saved_bytes(step) for name, step in steps.items()}
    seconds = interleaved({name: step.run for name, step in steps.items()}, given.repeats)
    peaks: dict[str, float | None] = dict.fromkeys(steps)
    if given.memory and sys.platform == "linux":
        # glibc keeps freed blocks; above this size it asks the system anew, and the peak is what is in use.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "prepared.safetensors"
            save_file(prepared, file)
            for name in steps:
                command = [sys.executable, __file__, "--variant", name, "--prepared", str(file)]
                command += ["--threads", str(given.threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                peaks[name] = float(done.stdout.split()[-1])
    floor, first = "frozen backbone", "sparse, largest Fisher"
    results = {}
    rows = []
    for name, step in steps.items():
        middle, low, high = ratio(seconds[name], seconds[floor])
        against = ratio(seconds[first], seconds[name])[0]
        results[name] = {
            "trained": step.trained,
            "seconds": spread(seconds[name]),
            "ratio_to_frozen": {"median": middle, "lower_quartile": low, "upper_quartile": high},
            "sparse_largest_by_this": against,
            "saved_bytes": saved[name],
            "saved_ratio_to_frozen": saved[name] / saved[floor],
            "peak_mebibytes": peaks[name],
        }
        peak = peaks[name]
        rows.append(
            [
                name,
                f"{step.trained:,}",
                f"{spread(seconds[name])['median']:.3f} s",
                f"{middle:.3f} [{low:.3f}, {high:.3f}]",
                f"{against:.3f}",
                f"{saved[name] / 2**20:.1f} MiB ({saved[name] / saved[floor]:.3f})",
                "" if peak is None else f"{peak:.0f} MiB",
            ]
        )
    columns = ("step", "trained", "median", "x frozen [quartiles]", "sparse / this", "saved (x frozen)", "peak rise")
    show(f"{given.size} texts x {given.length} tokens, {given.threads} threads", columns, rows)
    keep(given.output, results)


if __name__ == "__main__":
    main()
