"""The GPUs of a run: whether its processes have one each, and how much of it a run may take.

A launcher may show each process all GPUs of its machine, or its own alone (srun --gpus-per-task): names alone tell.
"""

from __future__ import annotations

import socket
from typing import Any

#: A CUDA context and its kernels, which torch's allocator does not count.
CUDA_CONTEXT_BYTES = 500_000_000


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


def limit(most_gb: float) -> None:
    """Let this process's tensors take so much of its GPU and no more, in 10^9 bytes with what CUDA itself takes.

    Short of it torch gives back what it keeps for later tensors; beyond it there is no memory.
    """
    import torch

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    share = (most_gb * 1e9 - CUDA_CONTEXT_BYTES) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)))
