"""A sparse step of a LLaMA-2-7B-shaped model in bf16, random weights, 2 x 512 tokens, beside its floor and LoRA r=8.

Aim on a GPU: 0.1 % trained in weights + activations + 2 GB, at most 1.1 x the frozen step and below LoRA. The
positions are the global top 0.1 % of Fisher scores measured over random tokens (--importance), or fill a few input
columns of every matrix. With --layers the model is shorter; `--layers 2 --width 64` runs anywhere.

    python scripts/bench/llama_step.py --device cuda --importance true --output outputs/published/bench/llama_step.json
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from density import columns
from harness import arguments, keep, show, spread
from steps import Step, adapter, dense_mask, frozen, saved_bytes, scattered, sparse
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from cl_runner.sparse.groups import layer_groups
from cl_runner.sparse.importance import measure
from cl_runner.sparse.selection import select


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean over tokens."""
    loss: Tensor = model(**batch).loss
    return loss


def main() -> None:
    given = arguments(
        __doc__ or "", device="cpu", layers=32, width=4096, length=512, size=2, share=0.001, importance=False
    )
    device = torch.device(given.device)
    cuda = device.type == "cuda"
    heads = max(1, given.width // 128)
    configuration = LlamaConfig(
        hidden_size=given.width,
        intermediate_size=11 * given.width // 4 - given.width // 16,
        num_hidden_layers=given.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=32000,
    )
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM._from_config(configuration, dtype=torch.bfloat16).train()
        ids = torch.randint(0, 32000, (given.size, given.length))
    batch = {"input_ids": ids, "labels": ids}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    results: dict[str, Any] = {
        "weights_bytes": weights,
        "trainable_weights": sum(p.numel() for p in model.parameters()),
    }

    chosen = columns(model, given.share)
    if given.importance:
        # Two bytes of weights and four of F for each parameter: on a smaller GPU the sums lie in main memory.
        free = torch.cuda.mem_get_info()[0] if cuda else 1 << 62
        place = "device" if free > 2.2 * weights else "cpu"
        began = time.perf_counter()
        names = [name for name, _ in model.named_parameters()]
        found = measure(model, lambda: iter([batch]), mean_loss, names, micro_batch=given.size, accumulate=place)
        measured = time.perf_counter()
        sizes = {name: score.numel() for name, score in found.fisher.items() if "embed" not in name}
        chosen = select(found.fisher, sizes, layer_groups(list(sizes), "global"), given.share, "largest", 0).indices
        results["importance_seconds"] = measured - began
        results["selection_seconds"] = time.perf_counter() - measured
        del found

    def lora() -> Step:
        from peft import LoraConfig

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        return adapter(model, batch, LoraConfig(r=8, target_modules=targets))

    made: dict[str, Callable[[], Step]] = {
        "frozen backbone": lambda: frozen(model, batch, model.model.layers[0].input_layernorm.weight, nn.Module()),
        "sparse, important": lambda: sparse(model, batch, chosen),
        "sparse, scattered": lambda: sparse(model, batch, scattered(model, given.share)),
        "dense mask": lambda: dense_mask(model.requires_grad_(True), batch, chosen),
        "PEFT LoRA r=8": lora,
    }
    # One at a time, as no GPU holds two such models; the floor comes twice to show the drift. LoRA changes the model.
    for name in [*list(made)[:-1], "frozen backbone", "PEFT LoRA r=8"]:
        step = None
        try:
            step = made[name]()
            saved = saved_bytes(step)
            seconds = []
            for number in range(given.repeats + 2):
                if cuda:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
                step.run()
                if cuda:
                    torch.cuda.synchronize()
                if number > 1:
                    seconds.append(time.perf_counter() - began)
            label = name if name not in results else f"{name} (again)"
            peak = torch.cuda.max_memory_allocated() if cuda else None
            results[label] = {"trained": step.trained, "seconds": spread(seconds), "saved": saved, "peak_bytes": peak}
        except torch.OutOfMemoryError as error:
            results[name] = {"out_of_memory": str(error).splitlines()[0]}
        if step is not None:
            step.release()
        model.zero_grad(set_to_none=True)
        del step
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    floor = statistics.mean(results[n]["seconds"]["median"] for n in ("frozen backbone", "frozen backbone (again)"))
    rows = []
    for name, found_row in results.items():
        if not isinstance(found_row, dict):
            rows.append([name, f"{found_row:,.2f}", "", "", "", ""])
        elif "seconds" in found_row:
            middle = found_row["seconds"]["median"]
            peak = found_row["peak_bytes"]
            extra = "" if peak is None else f"{(peak - weights - found_row['saved']) / 1e9:.2f} GB"
            shown = f"{found_row['trained']:,}", f"{middle:.3f} s", f"{middle / floor:.3f}"
            rows.append([name, *shown, f"{found_row['saved'] / 1e9:.2f} GB", extra])
        else:
            rows.append([name, "out of memory", "", "", "", ""])
    columns_shown = ("step", "trained", "median", "x frozen", "saved", "peak - weights - saved")
    show(f"LLaMA {weights / 1e9:.1f} GB, {given.size} x {given.length} tokens on {device}", columns_shown, rows)
    keep(given.output, results)


if __name__ == "__main__":
    main()
