"""Data sets of the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_runner.config import TaskDefinition
from cl_runner.data.readers import ArrowData

if TYPE_CHECKING:
    import datasets


def hub_reader(definition: TaskDefinition, name: str, domain: str, split: str) -> ArrowData:
    """A split of a data set of the hub.

    Raises:
        ValueError: it is not named well enough, or cannot be read.
    """
    if definition.dataset is None:
        raise ValueError(f"task.{name} reads the hub but names no data set. Type: task.{name}.dataset=OWNER/NAME")
    if definition.revision is None:
        raise ValueError(
            f"task.{name} must name the revision of {definition.dataset}, so that a run can be repeated. "
            f"Type: task.{name}.revision=COMMIT"
        )
    configuration = definition.configuration and definition.configuration.replace("{domain}", domain)
    where = f"{definition.dataset} ({configuration or 'default'}, {split}, {definition.revision[:12]})"

    remedy = (
        f"Check task.{name}.dataset, .configuration, .splits and .revision, and the network; without one, read a local "
        "copy with source=files"
    )
    data = hub_split(where, remedy, definition.dataset, configuration, split, definition.revision)
    return ArrowData(where, data, definition.label)


def hub_split(
    where: str, remedy: str, dataset: str, configuration: str | None, split: str, revision: str
) -> datasets.Dataset:
    """A split of a data set, as the library gives it.

    Args:
        where: how a message calls it.
        remedy: what a message says to do.

    Raises:
        ValueError: it cannot be read.
    """
    import datasets

    try:
        return datasets.load_dataset(dataset, configuration, split=split, revision=revision)
    except Exception as error:  # the library raises its own, the hub client's and the HTTP client's errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the hub data set {where} cannot be read: {reason}. {remedy}") from None
