"""Logits of the last positions of each row by weights that do not train, as a slice and as one block of memory.

torch takes the product of a slice with such weights from a copy of them for each row; a language model's head here
reads one block (cl_runner.families.language). The vocabulary and width are SmolLM2's. Aim: not slower than a head that
trains, whose product of a slice is one.

    python scripts/bench/head.py --threads 1 --repeats 3 --clock processor --output outputs/published/bench/head.json
"""

from __future__ import annotations

import torch
from harness import arguments, interleaved, keep, ratio, show, spread
from torch.nn import functional


def main() -> None:
    """Measure both precisions."""
    given = arguments(__doc__ or "", rows=16, positions=96, last=10, width=576, vocabulary=49_152)
    results, table = {}, []
    for dtype in (torch.float32, torch.bfloat16):
        states = torch.randn(given.rows, given.positions, given.width, dtype=dtype)
        frozen = torch.randn(given.vocabulary, given.width, dtype=dtype)
        trains = frozen.clone().requires_grad_(True)
        last = states[:, -given.last :]
        with torch.no_grad():
            seconds = interleaved(
                {
                    "a slice, weights that train": lambda last=last, weight=trains: functional.linear(last, weight),
                    "a slice": lambda last=last, weight=frozen: functional.linear(last, weight),
                    "one block": lambda last=last, weight=frozen: functional.linear(last.contiguous(), weight),
                },
                given.repeats,
            )
        name = str(dtype).removeprefix("torch.")
        results[name] = {way: spread(taken) for way, taken in seconds.items()}
        for way, taken in seconds.items():
            compared = ratio(taken, seconds["one block"])[0]
            table.append([f"{name}, {way}", f"{spread(taken)['median']:.3f} s", f"{compared:.1f}"])
    show("logits of the last positions", ("", "time", "by one block"), table)
    keep(given.output, results)


if __name__ == "__main__":
    main()
