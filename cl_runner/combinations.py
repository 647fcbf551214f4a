"""Which methods are tried beside each other, and which refuse each other: what the tests run and `methods` shows.

Of each built-in method one option is tried, which starts from no other: `piece_f` for all selections of PIECE. Others
of the same class differ from it in values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cl_runner.built_in import FAMILIES, METHODS
from cl_runner.checks import Nodes, check_chain
from cl_runner.groups import nodes_of, options, starts_from
from cl_runner.parts import method_spec

#: Options that each method is tried with, one at a time: a regulariser, a distillation, a memory, a selection.
COMPANIONS = ("ewc", "lwf", "replay", "piece_s")


def plainest() -> dict[str, str]:
    """For each built-in node under `method` the option that brings it alone and starts from no other."""
    found: dict[str, str] = {}
    for option in options("method"):
        if not starts_from(option):
            (node,) = nodes_of(option)
            if node not in found or option == node:
                found[node] = option
    return {node: found[node] for node in METHODS}


def combinations() -> list[tuple[str, str]]:
    """Every method with every companion that it is not itself: pairs of options, in the order of a chain."""
    chosen = plainest()
    brought = {companion: nodes_of(companion).keys() for companion in COMPANIONS}
    return [
        (option, companion)
        for node, option in chosen.items()
        for companion in COMPANIONS
        if node not in brought[companion]
    ]


def refusal(chain: Sequence[str], folders: Sequence[Path] = ()) -> str | None:
    """Why options cannot be chained, as a run of them says it; None: they can, on some family of models."""
    return refused({name: values for option in chain for name, values in nodes_of(option, folders).items()}, folders)


def refused(nodes: Nodes, folders: Sequence[Path] = ()) -> str | None:
    """The same of a chain's nodes under `method`."""
    known = [method_spec(name, values).families for name, values in nodes.items()]
    family = next((family for family in FAMILIES if all(family in families for families in known)), "classifier")
    try:
        check_chain(nodes, family, folders)
    except ValueError as error:
        return str(error)
    return None
