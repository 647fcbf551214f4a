"""The importance of the task under way: measured once, however many methods of a chain ask for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cl_runner.config import Importance as ImportanceOptions
from cl_runner.config import ImportanceChange
from cl_runner.sparse.importance import Importance

#: PE eq. 1: every example, its own label, the exact Fisher.
EXACT = ImportanceOptions(
    micro_batch=1,
    batch_size=16,
    max_length=None,
    max_examples=None,
    labels="data",
    answer_tokens="mean",
    accumulate="device",
    passes=1,
    cache_gb=0,
)


@dataclass
class Measured:
    """How importance is measured in this run, and what was measured in the task under way.

    Attributes:
        options: of the run.
        change: what the task under way does otherwise.
        found: by everything that it depends on.
        on_new_data: whether it needed the task's own data.
        from_disk: whether it came from the cache.
    """

    options: ImportanceOptions = EXACT
    change: ImportanceChange | None = None
    found: dict[str, Importance] = field(default_factory=dict)
    on_new_data: bool = False
    from_disk: bool = False

    @property
    def now(self) -> ImportanceOptions:
        """How it is measured in the task under way."""
        return self.options.changed(self.change)

    def begin(self) -> None:
        """A task begins."""
        self.found, self.on_new_data, self.from_disk = {}, False, False
