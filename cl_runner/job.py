"""One job: from a checked request to an exit status. Everything a request can get wrong is found before torch loads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from cl_runner import damage, digests, distributed
from cl_runner.compose import Request, request
from cl_runner.data.task import Task, build_tasks, fingerprint
from cl_runner.groups import CONF
from cl_runner.matrix import headline
from cl_runner.overrides import from_sweeper, written
from cl_runner.pretrained import places


def run_request(asked: Request) -> int:
    """Run one request and return its exit status; messages go to the terminal."""
    try:
        distributed.join()
        tasks = build_tasks(asked.config.task_order, asked.config.task)
        check_data(asked, tasks)
        if (asked.folder / "COMPLETED").is_file():
            if distributed.first():  # what is left if a run died right after its last word
                shutil.rmtree(asked.folder / "state", ignore_errors=True)
            return say_completed(asked)
    except ValueError as error:
        distributed.say(error)
        return 2
    from cl_runner.run import execute  # torch and transformers take seconds to import

    return execute(asked, tasks)


def check_data(request: Request, tasks: Sequence[Task]) -> None:
    """The data and the checkpoints of a run that was begun are still the same.

    Raises:
        ValueError: they changed; the text says which and what to type.
    """
    path = request.folder / "data.json"
    if not path.is_file():
        return
    try:
        content = digests.read_json(path)
        with digests.readable(path):
            known = dict(content.get("fingerprints", ()))
            checkpoints = {key: dict(files) for key, files in content.get("checkpoints", {}).items()}
    except digests.Damaged as error:
        raise ValueError(damage.what_to_type(request.folder, error)) from None
    changed = [task.name for task in tasks if known.get(task.name) != fingerprint(task)]
    if changed:
        anew = request.command_with({"root": written(f"{request.config.root}_new_data")})
        raise ValueError(
            f"the data of {', '.join(changed)} changed since this run began in {request.folder}. Put the old data "
            f"back, or start anew in another folder: {anew}"
        )
    _check_checkpoints(request, checkpoints)


def _check_checkpoints(request: Request, known: Mapping[str, Mapping[str, str]]) -> None:
    """The files of the checkpoints that a run read are still the same.

    Args:
        known: key in the configuration -> file -> SHA-256, from when the run began.
    """
    try:
        found = places.all_digests(request.config)
    except ValueError:
        if (request.folder / "COMPLETED").is_file():
            return  # a finished run needs its checkpoint no more
        raise
    for key, files in known.items():
        now = found.get(key, files)  # of what is on the hub, and was thrown away here, nothing can be said
        changed = sorted(name for name in files.keys() | now.keys() if files.get(name) != now.get(name))
        if changed:
            anew = request.command_with({"root": written(f"{request.config.root}_new_checkpoint")})
            raise ValueError(
                f"{key}: {', '.join(changed)} of the checkpoint changed since this run began in {request.folder}. Put "
                f"the old {'file' if len(changed) == 1 else 'files'} back, or start anew in another folder: {anew}"
            )


def say_completed(request: Request) -> int:
    """A finished run says so, and what to type for another one.

    Raises:
        ValueError: its record is damaged, or was edited.
    """
    damage.check_finished(request.folder)
    metrics = finished_metrics(request.folder)
    kept = damage.read_config(request.folder / "config.yaml").get("snapshots", {}).get("save")
    if kept != request.config.snapshots.save:
        print(f"It ran with snapshots.save={kept}; to run it with another value, delete its folder.")
    name = headline(metrics)
    print(
        f"This run is completed: {name} {metrics[name]:.1f} %.\n"
        f"{request.folder}/report.html shows it. "
        f"Another seed is another run: {request.command_with({'seed': str(request.config.seed + 1)})}"
    )
    return 0


def finished_metrics(folder: Path) -> dict[str, float]:
    """The derived numbers of a finished run.

    Raises:
        Damaged: its summary.json is, or was edited.
    """
    path = folder / "summary.json"
    metrics = digests.read_json(path).get("metrics")
    if not isinstance(metrics, dict) or not isinstance(metrics.get(headline(metrics)), int | float):
        raise digests.Damaged(path, "does not hold the numbers of a finished run")
    return metrics


def job(config: DictConfig) -> float:
    """What Hydra calls for each job of a multirun, here or on a node of a cluster.

    A failure is on the screen at once and ends the sweep only if sweep.on_error=stop; an interruption does.
    """
    hydra = HydraConfig.get()
    composed = OmegaConf.create(config)
    with open_dict(composed):
        composed.hydra = hydra
    sweep = str(hydra.sweep.dir).rpartition("/")[2]
    sources = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    folders = [source for source in sources if source != CONF]
    asked = request(composed, from_sweeper(hydra.overrides.task), sweep, folders)
    status = run_request(asked)
    if status == 75 or (status and asked.config.sweep.on_error == "stop"):
        raise SystemExit(status)
    if not searches(str(hydra.sweeper.get("_target_", ""))):
        return status
    if status:
        raise RuntimeError(f"no {asked.config.sweep.objective or 'number'} to tell: {asked.folder} did not complete")
    return objective(asked)


def searches(sweeper: str) -> bool:
    """Whether a sweeper, by its class, chooses jobs by what the ones before have reached."""
    return not sweeper.endswith(".BasicSweeper")


def objective(asked: Request) -> float:
    """What a searching sweeper is told of a finished run.

    Raises:
        ValueError: the run has no such number.
    """
    metrics = finished_metrics(asked.folder)
    name = asked.config.sweep.objective or headline(metrics)
    if not isinstance(metrics.get(name), int | float):
        raise ValueError(f"sweep.objective={name} is no number of this run. It has: {', '.join(sorted(metrics))}")
    return float(metrics[name])
