"""From the configuration to the parts of a run: model family, methods, device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cl_runner import distributed
from cl_runner.compose import check
from cl_runner.config import Backbone, Config, Hardware
from cl_runner.damage import read_config
from cl_runner.data.task import Task, outlines
from cl_runner.digests import Damaged, read_json
from cl_runner.families.base import Family
from cl_runner.methods.base import Chain
from cl_runner.own_cards import limit
from cl_runner.parts import PartSpec, method_spec, options_of, part_class, probe_spec
from cl_runner.probes.base import Probe
from cl_runner.registry import PartKind


@dataclass(frozen=True)
class Rebuilt:
    """A run's model with all that its methods added, and what made it.

    Attributes:
        tasks: without their examples.
        labels: of all tasks, in the order of a classifier's rows.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    method: Chain
    family: Family
    tasks: Sequence[Task]
    labels: Sequence[str]
    config: Config


def rebuild(folder: Path, begun: int = 1) -> Rebuilt:
    """The untrained starting model of a run, from the run's own configuration.

    Args:
        begun: tasks whose parameters exist.

    Raises:
        ValueError: what the run's folder says of it cannot be used, or its checkpoint is not there.
    """
    config = check(read_config(folder / "config.yaml"))
    labels = read_json(folder / "data.json").get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise Damaged(folder / "data.json", "does not hold the labels of a run")
    transformers.utils.logging.disable_progress_bar()
    family = build_family(config.backbone, labels)
    model, tokenizer = family.build(config.seed)
    tasks = outlines(config.task_order, config.task)
    method = build_method(config.method)
    built = method.build(model, tasks, config.seed, config.task_order.restart)
    assert isinstance(built, PreTrainedModel)
    for index in range(1, 1 if config.task_order.restart else begun):
        method.grow(built, index, config.seed)
    return Rebuilt(built, tokenizer, method, family, tasks, labels, config)


def build_family(backbone: Backbone, labels: Sequence[str]) -> Family:
    """The family of models that `backbone.family` names, for this backbone and these label names.

    Raises:
        ValueError: the backbone's parts do not fit it.
    """
    family: Family = part_class("families", backbone.family)(backbone, labels)
    return family


def build_method(nodes: Mapping[str, Mapping[str, Any]]) -> Chain:
    """The chain of methods that the configuration's node `method` describes."""
    return Chain(_parts("methods", nodes, method_spec))


def build_probes(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Probe]:
    """The probes of general ability that the configuration's node `probe` describes."""
    return _parts("probes", nodes, probe_spec)


def _parts(
    kind: PartKind, nodes: Mapping[str, Mapping[str, Any]], spec: Callable[[str, Mapping[str, Any]], PartSpec]
) -> dict[str, Any]:
    """An instance for each node, with its options."""
    found = {}
    for name, node in nodes.items():
        values = dict(spec(name, node).schema.model_validate(options_of(node)))
        found[name] = part_class(kind, name, node)(**values)
        found[name].node = name
    return found


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep the inputs of whole blocks only and compute the rest again in backward.

    Raises:
        ValueError: the architecture cannot do that.
    """
    # transformers 5.2x renamed it.
    start = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    start({"use_reentrant": False})


def prepare_hardware(hardware: Hardware) -> torch.device:
    """Set threads and determinism of this process, and return the device to compute on.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    if hardware.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(hardware.deterministic)
    # By default the deterministic mode also fills every new tensor, which costs time and changes no result here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set up at run time
    available = torch.cuda.is_available()
    if hardware.device == "cuda" and not available:
        raise ValueError("hardware.device=cuda, but torch sees no GPU here. Type: hardware=cpu (or hardware=auto)")
    if not available or hardware.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda")
    if distributed.size() > 1:
        device = torch.device("cuda", distributed.local() % torch.cuda.device_count())
        torch.cuda.set_device(device)  # what asks for "cuda" is given it as well
    if hardware.memory_gb is not None:
        limit(hardware.memory_gb)
    return device
