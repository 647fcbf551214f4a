"""Which class or function is behind a name: the built-in tables, entry points of installed packages, or a dotted path.

    what                  where its name stands          entry points of the group
    a method, a probe     a node under method, probe     cl_runner.methods, cl_runner.probes
    a family of models    backbone.family                cl_runner.families
    a metric              task.<name>.metrics            cl_runner.metrics
    a converter           task.<name>.convert            cl_runner.converters

A method's or probe's node may name its class itself, by its key `_target_`; for the others the path is the name.
Nothing is imported before it is asked for by `load`, so that a configuration composes without torch.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from cl_runner.built_in import CONVERTERS, DEFINITIONS, FAMILIES, METHODS, PROBES

PartKind = Literal["methods", "probes", "families", "metrics", "converters"]

#: kind -> what one is called, the package it lies in, and its names there as `file:class`.
_BUILT_IN: dict[PartKind, tuple[str, str, Mapping[str, str]]] = {
    "methods": ("method", "cl_runner.methods", METHODS),
    "probes": ("probe", "cl_runner.probes", PROBES),
    "families": ("family", "cl_runner.families", FAMILIES),
    "metrics": ("metric", "cl_runner.metrics", {name: place for name, (place, _) in DEFINITIONS.items()}),
    "converters": ("converter", "cl_runner.data", CONVERTERS),
}
KINDS: tuple[PartKind, ...] = tuple(_BUILT_IN)


@dataclass(frozen=True)
class Place:
    """Where a class or function is defined.

    Attributes:
        built_in: it is one of this package's own.
        asked: how it was asked for, for messages.
    """

    module: str
    name: str
    built_in: bool
    asked: str


def find(kind: PartKind, name: str, target: str | None = None) -> Place:
    """Where the part `name` is defined; nothing is imported.

    Args:
        target: the dotted path that its node gives under `_target_`.

    Raises:
        ValueError: nothing of that name is known, or more than one thing is.
    """
    word, package, built_in = _BUILT_IN[kind]
    if target is not None:
        return _by_path(target, f"{word}.{name}._target_={target}")
    if name in built_in:
        _refuse_twice(word, name, [f"{package} itself", *_packages(kind, name)])
        module, _, attribute = built_in[name].partition(":")
        return Place(f"{package}.{module}", attribute, True, f"{word} {name}")
    points = [point for point in _points(kind) if point.name == name]
    if points:
        _refuse_twice(word, name, _packages(kind, name))
        return Place(points[0].module, points[0].attr, False, f"{word} {name} of the package {_package(points[0])}")
    if "." in name and kind not in ("methods", "probes"):
        return _by_path(name, f"{word} {name}")
    raise ValueError(f"no {word} is called {name!r}. {suggestion(kind, name)}")


def suggestion(kind: PartKind, name: str) -> str:
    """All names of a kind, the one nearest to `name`, and how to name a class of one's own."""
    names = known(kind)
    close = difflib.get_close_matches(name, names, n=1)
    said = f"Known: {', '.join(names)}." + (f" Nearest: {close[0]!r}." if close else "")
    word = _BUILT_IN[kind][0]
    own = f"{word}.{name}._target_: PACKAGE.MODULE.CLASS" if kind in ("methods", "probes") else "PACKAGE.MODULE.NAME"
    return f"{said} One of your own: {own}"


def known(kind: PartKind) -> list[str]:
    """The names of all built-in and installed parts of a kind."""
    return list(dict.fromkeys([*_BUILT_IN[kind][2], *(point.name for point in _points(kind))]))


def installed(kind: PartKind) -> dict[str, str]:
    """The names that installed packages bring, and which package and path each is of."""
    return {point.name: f"{point.value} of the package {_package(point)}" for point in _points(kind)}


def load(place: Place) -> Any:
    """Import a class or function.

    Raises:
        ValueError: its module cannot be imported, with the reason, or holds nothing of that name.
    """
    here = os.getcwd()
    # `python -m cl_runner` finds modules of the current folder; so does the console script.
    if here not in sys.path and not sys.flags.safe_path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(place.module)
    except Exception as error:  # whatever a user's module raises
        if isinstance(error, ModuleNotFoundError) and f"{place.module}.".startswith(f"{error.name}."):
            reason = f"there is no module {error.name!r}, neither installed nor in {here}"
        else:
            reason = f"importing {place.module} ended in {type(error).__name__}: {error}"
        raise ValueError(f"{place.asked}: {reason}") from error
    try:
        return functools.reduce(getattr, place.name.split("."), module)
    except AttributeError:
        close = difflib.get_close_matches(place.name, list(vars(module)), n=1)
        nearest = f". Nearest: {close[0]!r}" if close else ""
        raise ValueError(f"{place.asked}: {place.module} has no {place.name!r}{nearest}") from None


def _by_path(path: str, asked: str) -> Place:
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"{asked}: a dotted path is expected, such as my_package.my_module.Mine")
    return Place(module, name, False, asked)


def _points(kind: PartKind) -> tuple[EntryPoint, ...]:
    return _points_on(kind, tuple(sys.path))


@functools.cache
def _points_on(kind: PartKind, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of a kind; `path` is where Python looks for them now."""
    found = entry_points(group=f"cl_runner.{kind}")
    return tuple(sorted(found, key=lambda point: (point.name, point.value)))


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"


def _packages(kind: PartKind, name: str) -> list[str]:
    return [f"the package {_package(point)}" for point in _points(kind) if point.name == name]


def _refuse_twice(word: str, name: str, owners: Iterable[str]) -> None:
    """One name is one thing."""
    owners = list(dict.fromkeys(owners))
    if len(owners) > 1:
        raise ValueError(
            f"the {word} {name!r} is brought by {' and by '.join(owners)}. "
            f"Uninstall one, or call it another name in that package's entry points"
        )
