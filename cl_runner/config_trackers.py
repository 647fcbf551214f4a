"""The schema of what shows a run elsewhere: W&B, and the other trackers."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from cl_runner.read_if import Written
from cl_runner.schema import Schema

TrackerName = Literal["tensorboard", "mlflow"]
Files: TypeAlias = list[Literal["report", "snapshots"]]


def _once(names: list[str]) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"names of which none is there twice, as {twice} is")
    return names


#: Beside W&B, which has a group of its own. One may stand without brackets.
Trackers = Annotated[
    list[TrackerName],
    BeforeValidator(lambda names: [names] if isinstance(names, str) else names),
    AfterValidator(_once),
]


class Wandb(Schema):
    """conf/wandb: offline runs write to the run folder and are uploaded by `wandb sync`."""

    mode: Literal["offline", "online", "disabled"]
    project: Annotated[str, Written]
    entity: Annotated[str | None, Written]
    group: Annotated[str | None, Written]  # null: the sweep, or none
    tags: Annotated[list[str], Written]  # beside method:NAME, backbone:NAME and task_order:NAME
    notes: Annotated[str | None, Written] = None
    job_type: Annotated[str | None, Written] = None
    artifacts: Annotated[Files, Written] = Field(default_factory=list)  # that go there with the run


class Mlflow(Schema):
    """Where `trackers=[mlflow]` writes."""

    uri: str | None = None  # of a server or a store; null: mlflow/mlflow.db below the root
    experiment: Annotated[str, Field(min_length=1)] = "cl_runner"
    artifacts: Files = Field(default_factory=list)  # that are copied there
