"""Whether the processes of a run have GPUs of their own.

A launcher may show each process all GPUs of its machine, or its own alone (srun --gpus-per-task): names alone tell.
"""

from __future__ import annotations

import socket
from typing import Any


def cards_of_their_own(store: Any, rank: int, size: int, local: int) -> bool:
    """Whether every process has a GPU that no other one has, as NCCL wants it.

    Args:
        store: of keys and values, which all processes reach.
        local: the number of this process on its machine.
    """
    import torch

    count = torch.cuda.device_count()
    own = ""
    if count:
        properties = torch.cuda.get_device_properties(local % count)
        own = f"{socket.gethostname()} {getattr(properties, 'uuid', local % count)}"
    store.set(f"card {rank}", own)
    every = [store.get(f"card {each}").decode() for each in range(size)]
    return "" not in every and len(set(every)) == size
