"""What a class says of itself in words, where it depends on its options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from string import Formatter
from typing import Any

from pydantic import BaseModel

from cl_runner.read_if import ReadIf

#: A text, or texts by the value of an option: {"fisher_data": {"last_task": "..."}}, in which `...` stands for every
#: other value but 0 and an empty one. Empty: nothing of the kind. None: the class does not say.
Said = str | Mapping[str, Mapping[Any, str]] | None
#: What a method may do with data of old tasks: its mark, and what that is.
OLD_DATA = {
    "learned": ("✓", "learned again"),
    "gradients": ("✓", "their gradients steer every step"),
    "answers": ("✓", "their prompts are answered again, the answers learned"),
    "shots": ("✓", "stand before the questions"),
    "generated": ("(✓)", "none are kept: the model writes examples of them itself, which are learned"),
    "importance": ("(✓)", "read between tasks, to measure importance"),
}
#: What it may be told of a question in a test.
TOLD = {
    "task": ("✓", "its task"),
    "labels": ("(✓)", "how many labels its task has"),
    "batch": ("(✓)", "that the questions of a batch are of one task"),
}


def texts(said: Said, schema: type[BaseModel], options: Mapping[str, Any], family: str | None) -> list[str] | None:
    """What is said of a class under these options, each text once; None if it does not say, or an option is missing.

    Args:
        schema: of the options. A value that is not read says nothing.
        options: as a node of the configuration gives them.
        family: the kind of the backbone's family; None = any.
    """
    if said is None:
        return None
    if isinstance(said, str):
        return [said] if said else []
    if not set(said) <= set(options):
        return None
    found = [
        text
        for option, cases in said.items()
        if (text := _case(cases, options[option])) and _is_read(schema, option, options, family)
    ]
    return list(dict.fromkeys(found))


def wrong(said: Said, options: Collection[str], known: Collection[str] | None) -> str | None:
    """What cannot be right in what a class says; None = nothing.

    Args:
        options: of the class.
        known: the words that may be said; None = any text, in which an option in braces stands for its value.
    """
    if said is None or isinstance(said, str):
        spoken: Iterable[Any] = [said or ""]
    elif isinstance(said, Mapping) and all(isinstance(cases, Mapping) for cases in said.values()):
        spoken = [text for cases in said.values() for text in cases.values()]
    else:
        return f"{said!r} is neither a text nor texts by the value of an option"
    named = [] if isinstance(said, str) or said is None else list(said)
    for text in spoken:
        if not isinstance(text, str):
            return f"{text!r} is no text"
        if text and known is not None and text not in known:
            return f"{text!r} is none of {', '.join(known)}"
        try:
            named += [name for _, name, _, _ in Formatter().parse(text) if name is not None]
        except ValueError as error:
            return f"{text!r} ({error})"
    strange = [name for name in named if name not in options]
    return f"there is no option {strange[0]!r}" if strange else None


def filled(text: str, options: Mapping[str, Any], written: Callable[[Any], str]) -> str:
    """A text with the values of the options that it names in braces."""
    return text.format_map({name: written(value) for name, value in options.items()})


def _case(cases: Mapping[Any, str], value: Any) -> str:
    """What is said of a value."""
    own = [text for case, text in cases.items() if case is not ... and _same(value, case)]
    return own[0] if own else cases.get(..., "") if value else ""


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_read(schema: type[BaseModel], option: str, options: Mapping[str, Any], family: str | None) -> bool:
    """Whether an option is read, as far as the options and the family say it."""
    field = schema.model_fields.get(option)
    known = {**options} if family is None else {**options, "backbone.family": family}
    conditions = [found for found in (field.metadata if field else ()) if isinstance(found, ReadIf)]
    return all(condition.read(known[condition.key]) for condition in conditions if condition.key in known)
