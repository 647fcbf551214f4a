"""Which tensors are meant: by patterns of their names, and by the modules that own them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence, Set
from fnmatch import fnmatchcase

from torch import nn


def match(
    names: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
    exclude_modules: Sequence[str] = (),
    types: Mapping[str, Set[str]] | None = None,
) -> list[str]:
    """The names that fit a pattern of `include` (all, if it is empty) and nothing that is excluded, in their order.

    Args:
        exclude: patterns of names. Patterns are those of file names: * ? [abc].
        exclude_modules: types of the modules that own a tensor, such as "Embedding".
        types: `module_types` of the model; needed for `exclude_modules` only.

    Raises:
        ValueError: a pattern fits no name, a module type owns none of the model, or no name is left.
    """
    for pattern in [*include, *exclude]:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"the pattern {pattern!r} matches no parameter. {_nearest(pattern, names)}")
    owners: Mapping[str, Set[str]] = {}
    if exclude_modules:
        assert types is not None, "exclude_modules without types"
        owners = {name: types[name] for name in names}
        _check_types(exclude_modules, sorted(set().union(*types.values())))  # those that stay frozen have theirs, too
    kept = [
        name
        for name in names
        if (not include or any(fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
        and owners.get(name, set()).isdisjoint(exclude_modules)
    ]
    if not kept:
        modules = f" and exclude_modules={list(exclude_modules)}" if exclude_modules else ""
        raise ValueError(f"no parameter is left: exclude={list(exclude)}{modules} covers include={list(include)}")
    return kept


def module_types(model: nn.Module) -> dict[str, set[str]]:
    """Class names of the modules that own each parameter, by its name in `model.named_parameters()`.

    With the names of their base classes: "Linear" covers what is derived from it. A tied tensor has those of all
    its owners: an output layer that shares the word embeddings is an Embedding as well.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    types: dict[str, set[str]] = {name: set() for name in names.values()}
    for module in model.modules():
        bases = {base.__name__ for base in type(module).__mro__ if base is not object}
        for parameter in module.parameters(recurse=False):
            types[names[parameter]] |= bases
    return types


def _check_types(given: Sequence[str], known: Sequence[str]) -> None:
    """Every module type must own a tensor."""
    for name in given:
        if name not in known:
            # What is the same but for capitals is nearer than what difflib, which heeds them, would find.
            same = [other for other in known if other.lower() == name.lower()]
            close = same or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            remedy = f"Nearest: {close[0]!r}; type {close[0]}" if close else f"There are: {', '.join(known)}"
            raise ValueError(f"no module of type {name!r} owns a parameter. {remedy}")


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """What could have been meant by a pattern that matches nothing."""
    plain = re.sub(r"[*?\[\]]", "", pattern).strip(".")
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    fitting = [name for name in names if plain and plain in name]
    if fitting:
        return f"A pattern must cover the whole name, such as {fitting[0]!r}; type '*{plain}*'"
    # The part of the pattern that no name has is the mistyped one.
    strange = [part for part in plain.split(".") if part and part not in parts] or [plain]
    similar = difflib.get_close_matches(strange[0], parts, n=1, cutoff=0.6)
    if similar:
        example = next(name for name in names if similar[0] in name.split("."))
        return f"Nearest: {example!r}; type '*{similar[0]}*'"
    close = difflib.get_close_matches(plain, names, n=3, cutoff=0.0)
    return f"Nearest: {', '.join(close)}"
