"""Memory of the token ids of many texts: flat buffers, and a mapped file, against a list of numbers per text.

Texts of 64 words of 5,000, of a tokenizer of words. What is counted is the process' own memory beyond the texts, at
the end and at most; pages of a mapped file are the system's, which can have them back. Each variant in its own process.

    python scripts/bench/tokens.py --threads 1 --output outputs/published/bench/tokens.json
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, keep, resident_bytes, show
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cl_runner.compose import compose
from cl_runner.families.encoding import Encoding

WORDS, LENGTH = 5000, 64


def used_bytes() -> int:
    """Memory of this process that is no file's, after glibc has given back what it holds unused."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes("RssAnon")


def measure(variant: str, count: int, cache: str) -> dict[str, float]:
    """Bytes and seconds of one variant."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)} | {"a": WORDS}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    options = compose(["backbone=tiny_llama", "backbone.max_length=256"]).config.backbone
    encoding = Encoding(options, PreTrainedTokenizerFast(tokenizer_object=tokenizer), ends=WORDS)
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in row) for row in random.integers(WORDS, size=(count, LENGTH)).tolist()]
    held, began = used_bytes(), time.process_time()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident_bytes()
    kept: Any = None
    if variant == "lists":
        kept = dict(zip(texts, encoding.reader.ids(texts), strict=True))
    else:
        encoding.remember(texts, [], Path(cache) if variant != "memory" else None)
    seconds, peak = time.process_time() - began, resident_bytes("VmHWM") - before
    found = {"bytes": used_bytes() - held, "peak_bytes": peak, "seconds": seconds}
    first = kept[texts[-1]] if kept is not None else encoding.prompts(texts[-1:])[0]
    assert len(first) == LENGTH
    return found


def main() -> None:
    """Measure every variant."""
    given = arguments(__doc__ or "", texts=200_000, variant="", cache="")
    if given.variant:
        print(json.dumps(measure(given.variant, given.texts, given.cache)))
        return
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        # "first" writes the file, "later" finds it.
        for variant in ("lists", "memory", "first", "later"):
            call = [sys.executable, *sys.argv, "--variant", variant, "--cache", folder]
            done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
            found[variant] = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for variant, numbers in found.items():
        numbers["bytes_per_token"] = numbers["bytes"] / (given.texts * LENGTH)
        numbers["by_lists"] = numbers["bytes"] / found["lists"]["bytes"]
        numbers["peak_by_lists"] = numbers["peak_bytes"] / found["lists"]["peak_bytes"]
        mebibytes = [f"{numbers[name] / 2**20:.0f} MiB" for name in ("bytes", "peak_bytes")]
        shares = [f"{numbers[name]:.2f}" for name in ("bytes_per_token", "by_lists", "peak_by_lists")]
        rows.append([variant, *mebibytes, *shares, f"{numbers['seconds']:.1f} s"])
    columns = ("", "kept", "peak", "bytes a token", "kept by lists", "peak by lists", "CPU")
    show(f"token ids of {given.texts:,} texts of {LENGTH} tokens", columns, rows)
    keep(given.output, {"texts": given.texts, "tokens_per_text": LENGTH, **found})


if __name__ == "__main__":
    main()
