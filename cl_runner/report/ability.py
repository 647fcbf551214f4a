"""General ability over a run: what the probes measured before the first and after every task (ability.csv)."""

from __future__ import annotations

from cl_runner.parts import probe_spec
from cl_runner.registry import known
from cl_runner.report.folder import Run

CHANGE = "ability_change/"
OWN = "ability_own/"
#: Begins the numbers that have a section of their own.
APART = "representations/"
#: Numbers that are drawn; the table beside the picture has all.
DRAWN = 12


def unit_of(name: str) -> str:
    """The unit of a number `probe/name`; nothing is said of a probe that only its own configuration names."""
    probe = name.partition("/")[0]
    if name.endswith("perplexity") or probe not in known("probes"):
        return ""
    return probe_spec(probe).unit


def describe(name: str) -> str:
    """A number with its unit and its direction."""
    probe = name.partition("/")[0]
    lower = probe in known("probes") and not probe_spec(probe).higher_is_better
    return ", ".join(part for part in (name, unit_of(name), "lower is better" if lower else "") if part)


def changes(run: Run) -> dict[str, float]:
    """`ability_change/probe/name` -> the last value minus that of the untouched model, in the probe's unit."""
    names, rows = run.ability
    return {CHANGE + name: float(rows[-1, k] - rows[0, k]) for k, name in enumerate(names)} if len(rows) > 1 else {}


def own(run: Run) -> dict[str, float]:
    """`ability_own/probe` -> the mean over tasks of what a probe measured on each task right after it was learned.

    Only of probes with a number per task, such as task_loss, and of runs that have learned them all.
    """
    names, rows = run.ability
    found: dict[str, float] = {}
    for probe in dict.fromkeys(name.partition("/")[0] for name in names):
        places = [names.index(f"{probe}/{task}") for task in run.tasks if f"{probe}/{task}" in names]
        if len(places) == len(run.tasks) < len(rows):
            found[OWN + probe] = float(sum(rows[t + 1, place] for t, place in enumerate(places)) / len(places))
    return found


def change_formula(name: str) -> str:
    """What a number of `changes` or `own` is."""
    if name.startswith(OWN):
        probe = name.removeprefix(OWN)
        return f"{describe(f'{probe}/own')}: mean over tasks of the value right after the task was learned"
    probe = name.removeprefix(CHANGE)
    return f"{describe(probe)}: after the last task minus before the first, that is, what training for the tasks cost"


def change_text(name: str, value: float) -> str:
    """A change with its sign and unit, or a mean with its unit."""
    if name.startswith(OWN):
        return f"{value:.3g} {unit_of(name.removeprefix(OWN))}".rstrip()
    unit = unit_of(name.removeprefix(CHANGE))
    return f"{signed(value)} {'points' if unit == '%' else unit}".rstrip()


def signed(value: float) -> str:
    """A change as people read it."""
    return f"{value:+.2f}" if abs(value) >= 1 else f"{value:+.3g}"
