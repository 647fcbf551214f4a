"""Every number of a run by its name: from its matrix, of its general ability, and what it costs."""

from __future__ import annotations

from cl_runner.matrix import OWN_WEIGHT, RETRIEVAL, SERVED, formula_of
from cl_runner.report.ability import CHANGE, OWN, change_formula, change_text, changes, own
from cl_runner.report.costs import COSTS, cost_text, costs
from cl_runner.report.folder import Run

#: Of a method that retrieves, what was served first.
RETRIEVALS = (SERVED, OWN_WEIGHT, RETRIEVAL)
AFTER_K = "forgetting/slm_after_"
#: Names that begin so are percentage points and carry a sign.
DIFFERENCES = ("forgetting/", "bwt/", "forward_transfer/")


def values_of(run: Run) -> dict[str, float]:
    """All numbers of a run: derived from its matrix, the change of general ability, and its costs."""
    return run.metrics | changes(run) | own(run) | costs(run)


def definition_of(name: str) -> str:
    """What a number is."""
    if name.startswith((CHANGE, OWN)):
        return change_formula(name)
    return COSTS.get(name) or formula_of(name)


def value_text(name: str, value: float) -> str:
    """A number of one run with its unit."""
    if name in COSTS:
        return cost_text(name, value)
    if name.startswith((CHANGE, OWN)):
        return change_text(name, value)
    return f"{value:+.2f} points" if name.startswith(DIFFERENCES) else f"{value:.2f} %"


def interval_text(run: Run, name: str) -> str:
    """The 95 % interval of a number; empty where it is not known."""
    if name not in run.intervals:
        return ""
    low, high = run.intervals[name]
    sign = "+" if name.startswith(DIFFERENCES) else ""
    return f"{low:{sign}.2f} to {high:{sign}.2f}"
