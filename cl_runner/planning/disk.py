"""What a run leaves on disk, and what lies there while it goes on."""

from __future__ import annotations

from cl_runner.change import LARGE_SHARE
from cl_runner.planning.architecture import Architecture
from cl_runner.planning.setting import Setting, TaskNumbers

#: Bytes of a line in predictions/*.jsonl, and of each token in it.
PREDICTION_BYTES = 100
TOKEN_BYTES = 4


def checkpoint_bytes(architecture: Architecture, s: Setting, task: TaskNumbers) -> int:
    """Of a checkpoint inside a task: what trains, the optimizer's state, what the methods need to go on."""
    trained = architecture.trained(s, task)
    size = (8 if s.selects_epoch else 4) * trained + s.optimizer.state_bytes(architecture.shapes(s, task))
    size += s.needs.weight_bytes * architecture.parameters(s) + s.memory_bytes
    size += architecture.kept_bytes(s, task) + s.needs.task_bytes * trained
    if task.later:
        size += s.needs.entry_bytes * trained + s.needs.example_bytes * task.examples
    return size + (8 * trained if task.trains == "selected" else 0)  # positions


def kept_examples_bytes(s: Setting) -> int:
    """Of what methods keep of examples outside of checkpoints."""
    return s.needs.kept_example_bytes * s.kept_examples


def disk_bytes(architecture: Architecture, s: Setting) -> dict[str, int]:
    """Bytes on disk: "snapshots" and "predictions" stay, "state while running" goes when the run is done."""
    item = s.dtype.itemsize
    said = 0.0 if s.answers is None else s.answers.mean_length + s.answers.mean_generated
    kept, hidden, state = 0, 0, 0
    for number, task in enumerate(s.tasks):
        trained = architecture.trained(s, task)
        # A sparse snapshot holds a position (mostly a 16-bit gap) and old and new value in one word.
        change = trained * (2 + item) if task.trains == "selected" else trained * item
        if s.encoder is not None:
            assert s.needs.retrieves is not None
            change = 4 * (trained + s.needs.retrieves.slots * s.encoder.query)
        dense = sum(s.needs.merged.values())
        if dense:
            change = item * dense  # into which what trains has gone
        if task.trains in ("all", "listed") and s.needs.adapts is None:
            dense += trained
        large = dense > LARGE_SHARE * architecture.parameters(s)
        if s.snapshots == "all" or (s.snapshots == "sparse" and not (large and number)):
            kept += change
        else:
            hidden = max(hidden, change)
        state = max(state, checkpoint_bytes(architecture, s, task))
    queries = {}
    if s.encoder is not None:
        queries["cached queries"] = 4 * s.encoder.query * s.encoded if s.cache_bytes else 0
    return {
        "snapshots": kept,
        "cached importance": _cached(architecture, s),
        **queries,
        "predictions": round(
            (s.evaluated - sum(task.curve[1] for task in s.tasks)) * (PREDICTION_BYTES + TOKEN_BYTES * said)
        ),
        # The state before goes when the next one is complete.
        "state while running": 2 * state + hidden + kept_examples_bytes(s),
    }


def _cached(architecture: Architecture, s: Setting) -> int:
    """Bytes of the sums that are kept for other runs, at most."""
    sums = s.needs.sums * s.needs.sum_item * sum(architecture.measured(s).values())
    passes = sum(task.measured > 0 for task in s.tasks)
    return min(s.cache_bytes, passes * sums) if sums <= s.cache_bytes else 0
