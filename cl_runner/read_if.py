"""When an option is read: a condition that stands in the type of the option, where it is declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReadIf:
    """Written into the type of an option, it says with which values of another one the option is read.

    A value that was typed and that nothing reads is refused (cl_runner/unread.py).

    Attributes:
        key: the other option: of the same node, or with a full stop a whole key. Of backbone.family the kind counts.
        values: with which the option is read.
        unless: it is read with all others instead.
    """

    key: str
    values: tuple[Any, ...]
    unless: bool = False

    def read(self, value: Any) -> bool:
        """Whether the option is read beside this value of the other one."""
        return (value in self.values) != self.unless


#: What a classifier does not read, and what nothing else does.
OfLanguageModels = ReadIf("backbone.family", ("classifier",), unless=True)
OfClassifiers = ReadIf("backbone.family", ("classifier",))
#: What a definition of tasks reads from files, from the hub, and from either.
OfFiles, OfHub = ReadIf("source", ("files",)), ReadIf("source", ("hub",))
NotGenerated = ReadIf("source", ("files", "hub"))
OfAdamW = ReadIf("optimizer", ("adamw",))
#: Of a W&B run that there is.
Written = ReadIf("mode", ("offline", "online"))
