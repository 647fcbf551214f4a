"""The only file that may import torch.distributed. A run is one process for now, and refuses to start as several."""

from __future__ import annotations

import os


def require_single_process() -> None:
    """Refuse to run as one of several processes, which would write over each other's files.

    Raises:
        ValueError: the launcher (torchrun, srun) started more than one.
    """
    for variable in ("WORLD_SIZE", "SLURM_NTASKS"):
        if int(os.environ.get(variable, "1")) > 1:
            raise ValueError(
                f"{variable}={os.environ[variable]}: a run uses one process. Start it without torchrun, "
                "or with --ntasks=1; many runs at once are a multirun (-m)"
            )
