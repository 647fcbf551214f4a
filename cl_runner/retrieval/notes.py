"""What of a task's retrieval did not go as it looks: keys that stay, a head that does not learn, texts that are cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cl_runner.data.example import Example
from cl_runner.data.task import Task
from cl_runner.retrieval.encoder import Queries


def say_unmoved(counts: Mapping[str, int], keys: int, warn: Callable[[str], None]) -> None:
    """Keys that no text retrieved, by task.

    Args:
        keys: of a task.
    """
    for name, count in counts.items():
        if count:
            warn(
                f"Note: {count} of {keys} keys of {name} are what they were drawn as: no text retrieved them, and "
                "their values learn little. A higher method.slm.key_mask moves more of them, or fewer method.slm.slots"
            )


def say_head(task: Task, rows: int, warn: Callable[[str], None]) -> None:
    """A task that trains none of the head's rows."""
    if not rows:
        warn(
            f"Note: {task.name} trains no row of the head, as earlier tasks learned all of its labels: only its values "
            "learn. For a head of each task, which is told the task of a text, type method=slm_ti"
        )


def say_cut(
    queries: Queries, task: Task, scored: Sequence[Example], warn: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Texts that the encoder does not read to their end: how many to train on and to be scored on."""
    found = {}
    for kind, examples in (("training", task.train), ("scored", scored)):
        count, limit = queries.longer([example.prompt for example in examples])
        found[kind] = {"texts": count, "tokens_read": limit}
        if count:
            warn(
                f"Note: {count} of {len(examples)} {kind} texts of {task.name} are longer than the {limit} tokens that "
                "the encoder reads, and are retrieved by their beginning. More: method.slm.encoder.max_length=N"
            )
    return found
