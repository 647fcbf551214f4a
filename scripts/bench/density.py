"""Cost of a sparse step against the selected share (0.01 % to 10 %) and against the size of the model.

Random BERTs of three widths; selections scatter at random, the dearest case, or fill whole input columns, as important
entries tend to. Every cell is the paired ratio to the frozen backbone's step.

    python scripts/bench/density.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import arguments, interleaved, keep, ratio, show
from steps import Step, frozen, ordinary, scattered, sparse
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

DENSITIES = (0.0001, 0.001, 0.01, 0.1)
WIDTHS = (128, 384, 768)


def columns(model: nn.Module, share: float) -> dict[str, Tensor]:
    """Whole input columns of every matrix, a share of them; at least one."""
    found = {}
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embedding" not in name:
            outputs, inputs = weight.shape
            chosen = torch.randperm(inputs, generator=torch.Generator().manual_seed(0))[: max(1, round(share * inputs))]
            found[name] = (torch.arange(outputs).view(-1, 1) * inputs + chosen.sort().values).view(-1)
    return found


def main() -> None:
    given = arguments(__doc__ or "", size=16, length=64, layers=4)
    results = {}
    rows = []
    for width in WIDTHS:
        configuration = BertConfig(
            hidden_size=width,
            num_hidden_layers=given.layers,
            num_attention_heads=width // 32,
            intermediate_size=4 * width,
            num_labels=5,
        )

        def fresh(configuration: BertConfig = configuration) -> nn.Module:
            torch.manual_seed(0)
            return BertForSequenceClassification(configuration).train()

        generator = torch.Generator().manual_seed(0)
        batch = {
            "input_ids": torch.randint(1000, 20000, (given.size, given.length), generator=generator),
            "attention_mask": torch.ones(given.size, given.length, dtype=torch.int64),
            "labels": torch.randint(0, 5, (given.size,), generator=generator),
        }
        model = fresh()
        floor = frozen(model, batch, model.bert.embeddings.LayerNorm.weight, model.classifier)
        steps: dict[str, Step] = {"frozen": floor, "full": ordinary(fresh(), batch)}
        for density in DENSITIES:
            model = fresh()
            steps[f"scattered {density:.2%}"] = sparse(model, batch, scattered(model, density))
            model = fresh()
            steps[f"columns {density:.2%}"] = sparse(model, batch, columns(model, density))
        work: dict[str, Callable[[], object]] = {name: step.run for name, step in steps.items()}
        seconds = interleaved(work, given.repeats)
        size = sum(p.numel() for p in model.parameters())
        found = {}
        for name, step in steps.items():
            middle, low, high = ratio(seconds[name], seconds["frozen"])
            found[name] = {"trained": step.trained, "ratio_to_frozen": [middle, low, high]}
            rows.append(
                [
                    f"width {width}, {size / 1e6:.1f} M",
                    name,
                    f"{step.trained:,}",
                    f"{middle:.3f} [{low:.3f}, {high:.3f}]",
                ]
            )
        results[str(width)] = found
    show(f"{given.size} x {given.length} tokens, {given.layers} layers", ("model", "step", "trained", "x frozen"), rows)
    keep(given.output, results)


if __name__ == "__main__":
    main()
