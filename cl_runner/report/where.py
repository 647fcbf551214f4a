"""Which of the runs found a table is about: `--where KEY=VALUE`, with values as they are typed in a run's command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_runner.report.folder import Run
from cl_runner.report.grouping import axis_text, flat, names_of

#: Values of a key that a message lists.
LISTED = 8


def where(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs for which every condition holds.

    Args:
        conditions: KEY=VALUE or KEY=VALUE,VALUE. A key is task_order, backbone, method or protocol, as tables name
            them, or any dotted key of a run's config.yaml. In a run without the key its value is null.

    Raises:
        ValueError: a condition cannot be read, no run has its key or its value, or all of them leave no run.
    """
    parted = [_parted(condition) for condition in conditions]
    keys = [key for key, _ in parted]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        values = ",".join(value for key, value in parted if key == twice)
        raise ValueError(
            f"--where {twice} is there twice; several values are one condition. Type: {_typed(twice, values)}"
        )
    described = [_described(run) for run in runs]
    left = list(zip(runs, described, strict=True))
    for key, text in parted:
        if not any(key in each for each in described):
            raise ValueError(_unknown_key(key, described))
        known = [value for each in described for value in each.get(key, (None,))]
        wanted = _values(key, text)
        if not any(_same(value, text, wanted) for value in known):
            raise ValueError(_unknown_value(key, text, known))
        left = [
            (run, each) for run, each in left if any(_same(value, text, wanted) for value in each.get(key, (None,)))
        ]
    if not left:
        together = " ".join(_typed(key, text) for key, text in parted)
        raise ValueError(f"no run fulfils all of {together}; each alone some do. Leave one of them out")
    return [run for run, _ in left]


def _described(run: Run) -> dict[str, tuple[Any, ...]]:
    """The values of every key; of a name those of the tables and of the folder, which tell bounds apart differently."""
    found: dict[str, tuple[Any, ...]] = {key: (value,) for key, value in flat(run.config)}
    folder = {"task_order": run.task_order, "backbone": run.backbone, "method": run.method}
    return found | {key: (name, folder.get(key, name)) for key, name in names_of(run).items()}


def _parted(condition: str) -> tuple[str, str]:
    key, equal, value = condition.partition("=")
    if not (key and equal):
        raise ValueError(f"--where {condition}: a condition is KEY=VALUE, such as --where method=pe")
    return key, value


def _values(key: str, text: str) -> list[Any]:
    """What Hydra makes of a value, or of each of several; nothing of what it cannot read."""
    from cl_runner.overrides import parse

    try:
        (override,) = parse([f"{key}={text}"])
    except ValueError:
        return []
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def _same(value: Any, text: str, wanted: Sequence[Any]) -> bool:
    """Whether a run's value is the typed one, or one of those."""
    if text in ("null" if value is None else str(value), axis_text(value)):
        return True
    return any((type(each) is type(value) and each == value) or _number(each) == _number(value) for each in wanted)


def _number(value: Any) -> Any:
    """A number for a number; what else it is, no other value is equal to."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else object()


def _typed(key: str, text: str) -> str:
    from cl_runner.overrides import quoted

    return f"--where {quoted(f'{key}={text}')}"


def _unknown_key(key: str, described: Sequence[Mapping[str, Any]]) -> str:
    from cl_runner.overrides import nearest

    keys = list(dict.fromkeys(name for each in described for name in each))
    below = [name for name in keys if name.startswith(f"{key}.")]
    if below:
        return f"--where {key}: it has no value of its own, but {', '.join(below[:LISTED])}"
    close = nearest(key, keys)
    return f"--where {key}: no run has that key." + (f" Nearest: {close}. Type: --where {close}=VALUE" if close else "")


def _unknown_value(key: str, text: str, known: Sequence[Any]) -> str:
    from cl_runner.overrides import nearest

    values = list(dict.fromkeys("null" if value is None else str(value) for value in known))
    listed = ", ".join(values[:LISTED]) + (f" and {len(values) - LISTED} more" if len(values) > LISTED else "")
    best = nearest(text, values) or values[0]
    return f"--where {key}={text}: no run has that value. There are: {listed}. Type: {_typed(key, best)}"
