"""An adapter, or a prompt, as a folder that peft loads onto the backbone it was made for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PromptTuningConfig
from peft.tuners.lora import LoraModel
from safetensors.torch import save_file
from torch import Tensor

_SUM, _START = "sum", "start"


def add_up(tuner: LoraModel, names: Sequence[str], start: Mapping[str, Tensor]) -> str:
    """One adapter that adds what several do, their ranks side by side.

    Args:
        start: values that the first of them began with and that the weights beneath lost, by its parameters' names;
            empty = they are as they were.

    Returns:
        Its name.
    """
    if len(names) == 1 and not start:
        return names[0]
    # Values follow, and another start would change the weights beneath.
    plain = dataclasses.replace(_config(tuner, names[0]), init_lora_weights=True)
    tuner.peft_config[names[0]] = plain
    adapters, signs = list(names), [1.0] * len(names)
    if start:
        tuner.peft_config[_START] = plain
        tuner.inject_adapter(tuner.model, _START)
        with torch.no_grad():
            for name, values in start.items():
                tuner.model.get_parameter(name.replace(f".{names[0]}.", f".{_START}.")).copy_(values)
        adapters, signs = [*adapters, _START], [*signs, -1.0]
    tuner.add_weighted_adapter(adapters, signs, _SUM, combination_type="cat")
    return _SUM


def write(
    folder: Path, tuner: LoraModel, name: str, head: Mapping[str, Tensor], base: str, task_type: str | None
) -> None:
    """adapter_config.json and adapter_model.safetensors.

    Args:
        head: tensors of a classifier's head, which replace the backbone's, by name.
        base: the backbone, as from_pretrained takes it.
        task_type: peft's name of what the model does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {n: p.detach() for n, p in tuner.model.named_parameters() if ".lora_" in n and f".{name}." in n}
    # As peft names them: without the adapter's name, and of DoRA's lengths without `.weight`.
    own = {n.replace(f".{name}.", ".").replace("_vector.weight", "_vector"): p for n, p in found.items()} | dict(head)
    tensors = {f"base_model.model.{n}": tensor.cpu().contiguous() for n, tensor in own.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = dataclasses.replace(
        _config(tuner, name),
        base_model_name_or_path=base,
        task_type=task_type,
        inference_mode=True,
        init_lora_weights=True,
        modules_to_save=sorted({n.partition(".")[0] for n in head}) or None,
    )
    config.save_pretrained(str(folder))


def write_prompt(folder: Path, vectors: Tensor, base: str, task_type: str | None) -> None:
    """The same two files for vectors [count, columns] before every text, which no decoder's answer has before it.

    Args:
        base, task_type: as for an adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"prompt_embeddings": vectors.detach().cpu().contiguous()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    count, columns = vectors.shape
    config = PromptTuningConfig(
        base_model_name_or_path=base,
        task_type=task_type,
        inference_mode=True,
        num_virtual_tokens=count,
        token_dim=columns,
        num_transformer_submodules=1,
    )
    config.save_pretrained(str(folder))


def _config(tuner: LoraModel, name: str) -> LoraConfig:
    config = tuner.peft_config[name]
    assert isinstance(config, LoraConfig)
    return config
