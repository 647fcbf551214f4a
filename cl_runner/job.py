"""One job: from a checked request to an exit status. Everything a request can get wrong is found before torch loads."""

from __future__ import annotations

import sys

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from cl_runner.compose import Request, request


def run_request(asked: Request) -> int:
    """Run one request and return its exit status; messages go to the terminal."""
    from cl_runner.data.task import build_tasks
    from cl_runner.distributed import require_single_process

    try:
        require_single_process()
        tasks = build_tasks(asked.config.task_order, asked.config.task)
    except ValueError as error:
        print(f"cl_runner: {error}", file=sys.stderr)
        return 2
    from cl_runner.run import execute

    return execute(asked, tasks)


def job(config: DictConfig) -> int:
    """What Hydra calls for each job of a multirun, here or on a node of a cluster.

    A failure is on the screen at once and does not end the other jobs; an interruption ends the sweep.
    """
    hydra = HydraConfig.get()
    composed = OmegaConf.create(config)
    with open_dict(composed):
        composed.hydra = hydra
    sweep = str(hydra.sweep.dir).rpartition("/")[2]
    status = run_request(request(composed, list(hydra.overrides.task), sweep))
    if status == 75:
        raise SystemExit(status)
    return status
