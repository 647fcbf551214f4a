"""From a request to its trackers, and what they are told at a run's end."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.compose import Request
from cl_runner.config import Config
from cl_runner.tracking.tracker import Cell, Told, Tracker, Trackers

#: What each tracker imports: modules, and the extra that installs them.
NEEDED = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def check_trackers(config: Config) -> None:
    """What the chosen trackers are made of is installed.

    Raises:
        ValueError: it is not, with what to type.
    """
    for name in config.trackers:
        missing = [module for module in NEEDED[name] if importlib.util.find_spec(module) is None]
        if missing:
            rest = [other for other in config.trackers if other != name]
            raise ValueError(
                f"trackers: {name} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
                f"installed. Type: pip install 'cl-runner[{name}]' (or trackers=[{','.join(rest)}])"
            )


def opened(request: Request, warn: Callable[[str], None]) -> Trackers:
    """The chosen trackers of a run; nothing of the others is imported."""
    config, wandb = request.config, request.config.wandb
    parts = {"method": request.method, "backbone": request.backbone, "task_order": request.task_order}
    told = Told(
        run_id=request.run_id,
        name=f"{request.method}/{request.backbone}/{request.task_order}/seed{config.seed}",
        group=wandb.group or request.sweep,
        tags=[*(f"{group}:{name}" for group, name in parts.items()), *wandb.tags],
        config=request.resolved,
        folder=request.folder,
        warn=warn,
    )
    found: list[Tracker] = []
    if wandb.mode != "disabled":
        from cl_runner.tracking.wandb_log import WandbLog

        found.append(
            WandbLog(
                told,
                wandb.mode,
                project=wandb.project,
                entity=wandb.entity,
                notes=wandb.notes,
                job_type=wandb.job_type,
            )
        )
    if "tensorboard" in config.trackers:
        from cl_runner.tracking.tensorboard_log import TensorboardLog

        found.append(TensorboardLog(told))
    if "mlflow" in config.trackers:
        from cl_runner.tracking.mlflow_log import MlflowLog

        options = config.mlflow
        store = Path(config.root) / "mlflow"
        found.append(MlflowLog(told, uri=options.uri, experiment=options.experiment, store=store))
    return Trackers(found)


def tell_end(
    trackers: Trackers,
    request: Request,
    numbers: Mapping[str, Any],
    columns: Sequence[str],
    matrices: tuple[Sequence[Sequence[Cell]], Sequence[Sequence[Cell]]],
) -> None:
    """What a finished run is worth: its numbers, matrices, pictures, and the files that were asked for."""
    folder = request.folder
    files = {
        "report": [path for path in (folder / "report.html", folder / "summary.json") if path.is_file()],
        "snapshots": sorted((folder / "snapshots").glob("*.safetensors")),
    }
    images = {path.stem: path for path in sorted((folder / "plots").glob("*.png"))}
    asked = {"W&B": request.config.wandb.artifacts, "MLflow": request.config.mlflow.artifacts}
    for tracker in trackers:
        tracker.summary(numbers)
        tracker.tables(columns, *matrices, images)
        for kind in asked.get(tracker.title, ()):
            tracker.artifacts(kind, files[kind])
