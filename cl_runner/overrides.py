"""What was typed: overrides by Hydra's grammar, the jobs of a multirun, and the line to type again."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException

from cl_runner.groups import GROUPS, options

COMMAND = "python -m cl_runner"
#: Groups of which a list chooses several options at once.
CHAINS = ("method", "task_order", "task", "probe")


def quoted(override: str) -> str:
    """An override as it must be typed in a shell."""
    return override if re.fullmatch(r"[\w./=:@%+,~-]+", override) else shlex.quote(override)


def command_line(
    overrides: Iterable[str], folders: Sequence[Path] = (), multirun: bool = False, command: str = ""
) -> str:
    """The line that a user types for these overrides, for a run, a multirun, or a command such as submit."""
    flags = [command] if command else ["-m"] if multirun else []
    flags += [f"--config-dir {shlex.quote(str(folder))}" for folder in folders]
    return " ".join([COMMAND, *flags, *(quoted(o) for o in overrides)])


def replaced_by(overrides: Sequence[str], wrong: str, right: str, folders: Sequence[Path]) -> str:
    """The line with one override in the place of another."""
    return command_line([right if o == wrong else o for o in overrides], folders)


def written(value: Any) -> str:
    """A value in Hydra's grammar, which reads the same back: null, true, [a,b], text in quotes where it must be."""
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")
    if isinstance(value, dict):
        return "{" + ",".join(f"{written(key)}:{written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(written(inner) for inner in value) + "]"
    text = str(value)
    return text if text and _reads_as(text, text) else in_quotes(text)


def in_quotes(text: str) -> str:
    """A text in the quotes of Hydra's grammar, in which everything may stand."""
    # A backslash counts as one unless a quote follows it.
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), text)
    return f'"{escaped}"'


def _reads_as(text: str, value: str) -> bool:
    """Whether an override's value, on its own and inside a list, is read as this text."""
    try:
        found = OverridesParser.create().parse_override(f"k=[{text}]").value()
    except HydraException:
        return False
    return isinstance(found, list) and found == [value] and isinstance(found[0], str)


def key_of(override: str) -> str:
    """The group or key that an override is about."""
    return override.lstrip("+~").partition("=")[0]


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`, or None if none is similar."""
    known = list(names)
    by_leaf = [n for n in known if n.rpartition(".")[2] == name.rpartition(".")[2] and "." in n]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    alike = next((n for n in known if n.lower() == name.lower()), None)
    return alike or (close[0] if close else (by_leaf[0] if by_leaf else None))


def parse(overrides: Sequence[str], folders: Sequence[Path] = (), multirun: bool = False) -> list[Override]:
    """The overrides by Hydra's grammar.

    Args:
        folders: the user's own configuration files, for the lines that messages say to type.

    Raises:
        ValueError: an override cannot be read; the text says how it is typed.
    """
    parser = OverridesParser.create()
    parsed = []
    for position, text in enumerate(overrides):
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            reason = str(error).splitlines()[0].partition(" expecting {")[0]
            said, words = _mended(overrides, position, folders)
            line = f" Type: {command_line(words, folders, multirun)}" if words else ""
            raise ValueError(f"cannot read {text!r} ({reason}). {said}{line}") from None
        if parsed[-1].key_or_group == "hydra.searchpath":
            raise ValueError(f"{text}: folders of configuration files are named by a flag. Type: --config-dir FOLDER")
    return parsed


def _mended(overrides: Sequence[str], position: int, folders: Sequence[Path]) -> tuple[str, list[str]]:
    """What is wrong with a word that cannot be read, and the words as they should be; none if nobody can know."""
    before, text, after = overrides[:position], overrides[position], overrides[position + 1 :]
    key, sign, value = text.partition("=")
    if not sign:
        return _without_value(before, text, after, folders)
    plain = key.lstrip("+~")
    if not re.fullmatch(r"[\w./@-]+", plain, re.ASCII):
        return "A group or key is made of letters, digits, `.` and `_`, and NAME=VALUE has no blanks.", []
    if _open(value):
        joined, rest = text, list(after)
        while _open(joined) and rest:
            joined = f"{joined} {rest.pop(0)}"
        if _open(joined):
            return "A bracket is opened and never closed; a list is typed as 'method=[ewc,lwf]'.", []
        return "Blanks need quotes around the whole.", [*before, joined, *rest]
    if plain in GROUPS:
        names = re.findall(r"[\w./-]+", value)
        known = [nearest(name, options(plain, folders)) for name in names]
        found = list(dict.fromkeys(name for name in known if name))
        right = found[0] if len(found) == 1 else f"[{','.join(found)}]"
        said = f"Options of group {plain!r}: {', '.join(options(plain, folders))}."
        return said, [*before, f"{key}={right}", *after] if found else []
    if value.startswith("="):
        return "NAME=VALUE has one `=`.", [*before, f"{key}={value.lstrip('=')}", *after]
    if value.startswith("~"):
        place = str(Path(value).expanduser())
        return "`~` is not expanded there.", [*before, f"{key}={written(place)}", *after]
    if value.strip(",") != value:
        return "A comma has a value on both sides.", [*before, f"{key}={value.strip(',')}", *after]
    return "Such a value needs quotes inside the quotes of the shell.", [*before, f"{key}={in_quotes(value)}", *after]


def _without_value(
    before: Sequence[str], text: str, after: Sequence[str], folders: Sequence[Path]
) -> tuple[str, list[str]]:
    """The same of a word without a sign of equality."""
    if after and after[0].startswith("="):
        value, rest = after[0], list(after[1:])
        if value == "=" and rest:
            value += rest.pop(0)
        return "NAME=VALUE has no blanks.", [*before, text + value, *rest]
    name = re.sub(r"^(\./)?conf/|\.ya?ml$", "", text)
    group, _, option = name.partition("/")
    if group in GROUPS and option in options(group, folders):
        return "An option of a group is chosen by its name.", [*before, f"{group}={option}", *after]
    group = next((group for group in GROUPS if name in options(group, folders)), "")
    if group:
        return "An option is chosen with its group.", [*before, f"{group}={name}", *after]
    if text in GROUPS:
        return f"Group {text!r} has: {', '.join(options(text, folders))}. Type {text}=OPTION.", []
    if re.fullmatch(r"[\w.]+:\S+", text):
        return "A value follows `=`.", [*before, text.replace(":", "=", 1), *after]
    if before and "=" in before[-1]:
        if before[-1].endswith("="):
            return "NAME=VALUE has no blanks.", [*before[:-1], before[-1] + text, *after]
        key, _, value = f"{before[-1]} {text}".partition("=")
        right = [*before[:-1], f"{key}={written(value)}", *after]
        return f"If it belongs to {before[-1]!r}, blanks need quotes.", right
    return "Type NAME=VALUE.", []


def _open(text: str) -> bool:
    """Whether a bracket is opened that is not closed."""
    return any(text.count(opens) > text.count(closes) for opens, closes in ("[]", "{}"))


def check_single(overrides: Sequence[str], folders: Sequence[Path] = ()) -> list[Override]:
    """What was typed for one run, read: no key has several values, or a ValueError says what to type."""
    parsed = parse(overrides, folders)
    for override, text in zip(parsed, overrides, strict=True):
        if override.is_sweep_override():
            raise ValueError(_several(override, text, overrides, folders))
    return parsed


def check_once(overrides: Sequence[str], folders: Sequence[Path] = (), multirun: bool = False) -> None:
    """Nothing is said in two ways, or a ValueError names both: Hydra takes the last one in silence."""
    parsed = parse(overrides, folders, multirun)
    said: dict[str, str] = {}
    for override, text in zip(parsed, overrides, strict=True):
        key = override.key_or_group
        if override.package is not None:
            right = [o.replace(f"@{override.package}", "", 1) if o == text else o for o in overrides]
            line = command_line(right, folders, multirun)
            raise ValueError(f"{text}: an option always stands in its group's place. Type: {line}")
        leaves = list(leaves_of(key, None if override.is_delete() else override.value()))
        for leaf in leaves:
            # What comes later takes the place of parts that were said before it; a group's choice leaves them.
            under = () if key in GROUPS else (name for name in said if name.startswith(f"{leaf}."))
            earlier = said.get(leaf) or next((said[name] for name in under), None)
            if earlier not in (None, text):
                line = command_line([word for word in overrides if word != earlier], folders, multirun)
                raise ValueError(f"{earlier} and {text} both say {leaf}; only one counts. Type: {line}")
        said |= dict.fromkeys(leaves, text)


def leaves_of(key: str, value: Any) -> Iterator[str]:
    """The keys that an override sets: of a mapping each of its own."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves_of(f"{key}.{name}", inner)
    else:
        yield key


def _several(override: Override, text: str, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """What to type instead of a sweep's values in a single run."""
    key, _, value = text.partition("=")
    given: Any = override.value()
    line = command_line(overrides, folders, multirun=True)
    if isinstance(given, Glob) and key_of(text) not in GROUPS:
        return _glob(text)
    several = f"{text} gives several values, which takes a multirun. Type: {line} (a run of each)"
    if not isinstance(given, ChoiceSweep) or not given.simple_form:
        return several
    name = key_of(text)
    other = f"{key}={in_quotes(value)}" if name not in GROUPS else f"{key}=[{value}]"
    means = "one run, if the comma is part of it" if name not in GROUPS else "one run, of them all"
    if name in GROUPS and name not in CHAINS:
        return several
    right = [other if word == text else word for word in overrides]
    return f"{several}, or: {command_line(right, folders)} ({means})"


def _glob(text: str) -> str:
    return f"{text}: glob(...) chooses among options of a group. Type the values: {key_of(text)}=A,B"


def named(overrides: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """The overrides with the options that a glob chooses in its place: method=glob(piece*) is method=piece_f,piece_s.

    Raises:
        ValueError: it chooses none, or chooses among what is no group.
    """
    found = []
    for override, text in zip(parse(overrides, folders, multirun=True), overrides, strict=True):
        glob: Any = override.value()
        if isinstance(glob, Glob):
            group = override.key_or_group
            if group not in GROUPS:
                raise ValueError(_glob(text))  # Hydra would look among the options of no group
            chosen = glob.filter(options(group, folders))
            if not chosen:
                raise ValueError(f"{text} chooses none of: {', '.join(options(group, folders))}")
            text = f"{group}={','.join(chosen)}"
        found.append(text)
    return found


def jobs_of(overrides: Sequence[str], folders: Sequence[Path] = ()) -> list[list[str]]:
    """The override lists of a multirun, one per job, in the order in which Hydra's sweeper runs them."""
    parsed = parse(named(overrides, folders), folders, multirun=True)
    try:
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ValueError(f"this multirun cannot be read: {error}. Type the values: KEY=A,B") from None
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
        if plain and value and override.value() is None:  # of which Hydra makes no choice
            text = f"++{key.lstrip('+')}={value}"
        elif plain and value:
            text = f"{key}=choice({value})"
        given.append(text)
    return given


def from_sweeper(overrides: Sequence[str]) -> list[str]:
    """What was typed of a job of `for_sweeper`: `++` only where it matters."""
    parsed = zip(parse(overrides), overrides, strict=True)
    return [text.removeprefix("++") if override.value() is None else text for override, text in parsed]
