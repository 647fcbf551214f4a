"""Whether a run can have its weights in parts over its processes (hardware.shard): what to type where it cannot."""

from __future__ import annotations

import torch

from cl_runner import distributed
from cl_runner.config import Config
from cl_runner.methods.base import Chain
from cl_runner.needs import Needs
from cl_runner.parts import family_kind, part_class
from cl_runner.shards import available

#: Of models whose passes are all alike: through every block, in one order.
ALIKE = ("causal", "classifier")


def check_sharded(config: Config, method: Chain, device: torch.device) -> None:
    """Where each process is to hold its part of the weights, everything can do with that.

    Raises:
        ValueError: otherwise, with what to type.
    """
    if not config.hardware.shard:
        return
    typed = f"hardware.shard={str(config.hardware.shard).lower()}"
    for name, each in method.methods.items():
        if not each.sharded:
            raise ValueError(
                f"{typed}: {name} needs all of what trains in every process. Type: hardware.shard=false "
                "(or another method, such as method=seq_ft)"
            )
    if config.training.optimizer == "adafactor":
        raise ValueError(
            f"{typed}: adafactor's state is of rows and columns of whole matrices, of which a process has "
            "some. Type: training.optimizer=adamw (or hardware.shard=false)"
        )
    if config.reuse != "none":
        raise ValueError(
            f"reuse={config.reuse} is for weights that a process has all of, and {typed}. "
            "Type: reuse=none (or hardware.shard=false)"
        )
    if not available():
        raise ValueError(
            f"{typed} needs torch 2.8 or later, and this is {torch.__version__}. "
            "Type: pip install 'torch>=2.8' (or hardware.shard=false)"
        )
    if config.hardware.shard == "always":
        reason = cannot_always(config, method)
        if reason is not None:
            raise ValueError(f"{typed}: {reason}. Type: hardware.shard=true")
    processes, cards = distributed.beside(), torch.cuda.device_count()
    if device.type == "cuda" and distributed.size() > 1 and not distributed.apart():
        # NCCL wants a GPU for each, and what stands in for it (gloo) cannot add up parts of gradients on a GPU.
        raise ValueError(
            f"{typed}: {processes} processes of this machine see {cards} {'GPU' if cards == 1 else 'GPUs'}, and each "
            f"needs one of its own. Start {cards} on each machine (torchrun --nproc-per-node={cards}), or type: "
            "hardware=cpu (or hardware.shard=false)"
        )


def check_measured(config: Config, needs: Needs) -> None:
    """Where no process has all of the weights, importance is one that all measure at once.

    Raises:
        ValueError: otherwise, with what to type.
    """
    if config.hardware.shard != "always" or not needs.measures:
        return
    of_tasks = [task.importance.micro_batch for task in config.task_order.tasks if task.importance is not None]
    if max([config.importance.micro_batch, *filter(None, of_tasks)]) > 1:
        raise ValueError(
            "hardware.shard=always: importance in micro-batches needs a pass for each of them, which no process makes "
            "alone. Type: importance.micro_batch=1 (or hardware.shard=true)"
        )
    if needs.adapts is not None:
        raise ValueError(
            "hardware.shard=always: the importance of weights that a method adds needs a pass for each example, which "
            "no process makes alone. Type: hardware.shard=true"
        )
    if needs.sum_item != 4:
        raise ValueError(
            "hardware.shard=always: sums of importance in bf16 need a pass for each example, which no process makes "
            "alone. Type: hardware.shard=true (or leave bf16_accumulation out)"
        )


def cannot_always(config: Config, method: Chain) -> str | None:
    """What of a run asks for whole weights between trainings, which hardware.shard=always never has; None = nothing."""
    for name, each in method.methods.items():
        if each.sharded != "always":
            return f"{name} asks for whole weights between trainings"
    kind = family_kind(config.backbone.family)
    if kind not in ALIKE:
        return f"{config.backbone.name} ({kind}) makes passes of several kinds, and these are made by all at once"
    whole = [name for name, node in config.probe.items() if not part_class("probes", name, node).in_parts]
    if whole:
        return f"the probe {whole[0]} is another library's, which asks for whole weights (or probe=none)"
    if config.fork.run is not None:
        return "a fork takes whole weights of another run"
    return "every task of this order goes back to the first weights" if config.task_order.restart else None
