"""What a run is given beside the data of the task under way: data of old tasks, and the task of a question in a test.

Papers print both as columns of check marks, since a method that replays, or is told the task, is not to be compared
with one that does not and is not. Methods say it by `old_data` and `told`; what the task order does is added here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cl_runner.built_in import METHODS
from cl_runner.parts import TARGET, method_spec
from cl_runner.said import texts

#: A method of the user's own that does not say it.
UNSAID = "?"


@dataclass(frozen=True)
class Access:
    """What a run goes back to of old tasks' data, and what it is told of a question: words of cl_runner/said.py."""

    old_data: tuple[str, ...]
    told: tuple[str, ...]


def access(config: Mapping[str, Any], family: str | None, foreign: bool = False) -> Access:
    """What a run is given, by its resolved configuration.

    Args:
        family: the kind of the backbone's family; None = unknown.
        foreign: the configuration may be anybody's: no class that it names is imported, and what such a class would say
            is unsaid.
    """
    old: dict[str, None] = {}
    told: dict[str, None] = {}
    for name, node in config["method"].items():
        if foreign and (TARGET in node or name not in METHODS):
            old[UNSAID] = told[UNSAID] = None
            continue
        spec = method_spec(name, node)
        for found, said in ((old, spec.old_data), (told, spec.told)):
            words = texts(said, spec.schema, node, family)
            found.update(dict.fromkeys([UNSAID] if words is None else words))
    order = config["task_order"]
    if order["joint"]:
        old["learned"] = None
    if order["restart"]:  # a model of each task, from the pretrained weights: which one answers has to be known
        old, told = {}, {**told, "task": None}
    return Access(tuple(old), tuple(told))


def mark(words: tuple[str, ...], meanings: Mapping[str, tuple[str, str]]) -> str:
    """The check mark of a table: ✓, (✓) of something less, ? where a method does not say it, or nothing."""
    marks = {meanings[word][0] if word in meanings else UNSAID for word in words}
    return next((mark for mark in ("✓", UNSAID, "(✓)") if mark in marks), "")
