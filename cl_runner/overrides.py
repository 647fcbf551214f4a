"""What was typed: overrides by Hydra's grammar, the jobs of a multirun, and the line to type again."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from cl_runner.groups import GROUPS, options

COMMAND = "python -m cl_runner"


def quoted(override: str) -> str:
    """An override as it must be typed in a shell."""
    return override if re.fullmatch(r"[\w./=:@%+,~-]+", override) else shlex.quote(override)


def command_line(overrides: Iterable[str], folders: Sequence[Path] = (), multirun: bool = False) -> str:
    """The line that a user types for these overrides."""
    flags = ["-m"] if multirun else []
    flags += [f"--config-dir {shlex.quote(str(folder))}" for folder in folders]
    return " ".join([COMMAND, *flags, *(quoted(o) for o in overrides)])


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`, or None if none is similar."""
    known = list(names)
    by_leaf = [n for n in known if n.rpartition(".")[2] == name.rpartition(".")[2] and "." in n]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else (by_leaf[0] if by_leaf else None)


def parse(overrides: Sequence[str]) -> list[Override]:
    """The overrides by Hydra's grammar.

    Raises:
        ValueError: an override cannot be read.
    """
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            hint = f"Type: method={text}" if text in options("method") else "Type NAME=VALUE."
            if text.endswith((".yaml", ".yml")):
                hint = "Choose an option of a group instead, as in method=pe."
            reason = str(error).splitlines()[0]
            raise ValueError(f"cannot read {text!r} ({reason}). {hint}") from None
        if parsed[-1].key_or_group == "hydra.searchpath":
            raise ValueError(f"{text}: folders of configuration files are named by a flag. Type: --config-dir FOLDER")
    return parsed


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """The override lists of a multirun, one per job, in the order in which Hydra's sweeper runs them."""
    batches = BasicSweeper.split_arguments(parse(overrides), max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def for_sweeper(overrides: Sequence[str]) -> list[str]:
    """The overrides of a multirun as Hydra's sweeper can take them.

    Before it makes the jobs it composes once without what is swept, so that a key which only a swept choice brings,
    such as method.piece.fraction with method=piece_f,piece_s, would be unknown. A sweep over one value is left out.
    """
    parsed = list(zip(parse(overrides), overrides, strict=True))
    if not any(override.is_sweep_override() and override.key_or_group in GROUPS for override, _ in parsed):
        return list(overrides)
    given = []
    for override, text in parsed:
        key, _, value = text.partition("=")
        name = override.key_or_group
        plain = not (override.is_sweep_override() or override.is_delete() or name in GROUPS or name.startswith("hydra"))
        given.append(f"{key}=choice({value})" if plain and value else text)
    return given


def sweep_id(overrides: Sequence[str]) -> str:
    """The name of a multirun: the same line is the same sweep."""
    return "sweep-" + hashlib.sha256(json.dumps(list(overrides)).encode()).hexdigest()[:8]
