"""Prompts: what a definition's template makes of a row."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from cl_runner.config import TaskDefinition

#: Placeholders that are no columns: the text columns joined, and the label names.
RESERVED = ("text", "options")
_PLACEHOLDER = re.compile(r"{([^{}]+)}")


def label_names(definition: TaskDefinition) -> tuple[str, ...]:
    """The label names in the order of the definition; none for free answers, and none before a schema is read."""
    labels = definition.labels if isinstance(definition.labels, dict) else {}
    return tuple(dict.fromkeys(label for label in labels.values() if label is not None))


def placeholders(definition: TaskDefinition) -> list[str]:
    """What stands in braces in the template, whether it is known or not."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(definition.template or "")))


def check_template(definition: TaskDefinition, name: str, columns: Iterable[str], where: str) -> None:
    """The template takes something from every row, and nothing in it looks like a misspelt placeholder.

    Args:
        name: of the definition, for messages.
        columns: of the source.
        where: how the source is called in messages.

    Raises:
        ValueError: otherwise, with what can be typed.
    """
    template = definition.template
    if template is None:
        return
    known = list(dict.fromkeys([*RESERVED, *columns]))
    used = placeholders(definition)
    listed = ", ".join(f"{{{one}}}" for one in known)
    for word in used:
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
        if word not in known and close:
            raise ValueError(
                f"task.{name}.template holds {{{word}}}, but {where} has: {listed}. "
                f"Nearest: {{{close[0]}}}. Write that under task.{name}.template"
            )
    if "options" in used and not label_names(definition):
        raise ValueError(
            f"task.{name}.template holds {{options}}, the label names, but task.{name}.labels is null: any text is an "
            f"answer. Write the options themselves, or name the labels"
        )
    if not any(word in known and word != "options" for word in used):
        raise ValueError(
            f"task.{name}.template takes nothing from a row, so that all prompts would be the same. "
            f"Write one of these into it: {listed}"
        )


def prompt(definition: TaskDefinition, values: Mapping[str, str]) -> str:
    """The template with {text}, {options} and {COLUMN} filled in, other braces as they stand; or the text alone."""
    if definition.template is None:
        return values["text"]
    filled = {**values, "options": ", ".join(label_names(definition))}
    return _PLACEHOLDER.sub(lambda match: filled.get(match[1], match[0]), definition.template)
