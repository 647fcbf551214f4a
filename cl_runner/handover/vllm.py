"""What vLLM's loaders ask of a folder, read off its source; vLLM itself is not run.

Of vllm/lora/peft_helper.py, lora/lora_model.py, config/lora.py and model_executor/models/registry.py; the names of
architectures lie in vllm.json with the version that they are of.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

#: What vLLM may be told an adapter's rank is at most (--max-lora-rank); 16 if nothing is said.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
USUAL_RANK = 16
#: Whole layers that an adapter may bring along: a classifier's head, and one of them.
HEADS = ("classifier", "score")
#: Ways an adapter may begin that leave the weights beneath as they are.
STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_TENSORS = (".lora_A.weight", ".lora_B.weight")


@functools.cache
def known() -> dict[str, Any]:
    """vllm.json: `version`, `architectures`, and those of them `without_adapters`."""
    found: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return found


def of_model(folder: Path) -> str:
    """What vLLM would do with a folder of transformers, in a sentence."""
    missing = [
        what
        for what, there in (
            ("a tokenizer", any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))),
            ("weights in safetensors", any(folder.glob("*.safetensors"))),
        )
        if not there
    ]
    architecture = _architecture(folder)
    if missing:
        return f"vLLM would refuse it: it has not {' and '.join(missing)}"
    refused = _unknown(architecture)
    if refused:
        return refused
    classifies = architecture.endswith("ForSequenceClassification")
    return (
        f"vLLM {known()['version']} would take it: {architecture} is in its list, and config.json, safetensors and "
        f"tokenizer are there (vllm serve FOLDER{' --runner pooling' if classifies else ''})"
    )


def of_adapter(folder: Path, architecture: str, base: str) -> str:
    """What vLLM would do with an adapter's folder, in a sentence.

    Args:
        architecture: the class of the model that it adapts.
        base: where that is, as it is typed.
    """
    content = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    refused = _unknown(architecture)
    if refused:
        return refused
    if architecture in known()["without_adapters"]:
        return f"vLLM {known()['version']} would refuse it: its {architecture} takes no LoRA adapter. Type: --merge"
    reasons = refusals(content, names)
    if reasons:
        return f"vLLM {known()['version']} would refuse the adapter: {'; '.join(reasons)}"
    rank = next(allowed for allowed in RANKS if allowed >= content["r"])
    more = f" --max-lora-rank {rank}" if rank > USUAL_RANK else ""
    return (
        f"vLLM {known()['version']} would take the adapter by its rules of names, ranks and layers "
        f"(vllm serve {base} --enable-lora{more} --lora-modules NAME=FOLDER)"
    )


def refusals(config: Mapping[str, Any], tensors: Sequence[str]) -> list[str]:
    """Why vLLM loads no adapter of this configuration and these tensors; empty where it does.

    Args:
        config: adapter_config.json.
        tensors: names in adapter_model.safetensors.
    """
    found = []
    if config.get("peft_type") != "LORA":
        return [f"it takes LoRA alone, and this is {config.get('peft_type')}"]
    saved = config.get("modules_to_save") or []
    others = [name for name in saved if name not in HEADS]
    if others:
        found.append(f"modules_to_save holds {', '.join(others)}, and it takes {' or '.join(HEADS)} alone")
    elif len(saved) > 1:
        found.append("modules_to_save holds two heads, and it takes one")
    if config.get("use_dora"):
        found.append("DoRA")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        found.append("biases are trained (bias, lora_bias)")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in STARTS:
        found.append(f"init_lora_weights={start}, which may change the weights beneath")
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > RANKS[-1]:
        found.append(f"rank {rank} is more than {RANKS[-1]}")
    heads = tuple(f"base_model.model.{name}." for name in saved)
    strange = [n for n in tensors if not n.startswith(heads or "\0") and not n.endswith(_TENSORS)]
    if strange:
        found.append(f"it has no place for the tensor {strange[0]}")
    return found


def _architecture(folder: Path) -> str:
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    return str(names[0])


def _unknown(architecture: str) -> str:
    if architecture in known()["architectures"]:
        return ""
    return f"vLLM {known()['version']} has no {architecture} in its list of models, so it would refuse it"
