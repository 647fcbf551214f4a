"""Check marks beside a method, as papers print them: are data of old tasks used again, is a question's task known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_runner.access import UNSAID, Access, mark
from cl_runner.report.grouping import Group
from cl_runner.said import OLD_DATA, TOLD

#: Column -> the field of `Access` that it shows, what papers call it, its words, and what is said where no row has any.
COLUMNS: Mapping[str, tuple[str, str, Mapping[str, tuple[str, str]], str]] = {
    "old data": ("old_data", "RP", OLD_DATA, "none of these goes back to data of old tasks"),
    "task told": ("told", "ID", TOLD, "none of these is told the task of a question in a test"),
}


def words_of(group: Group, column: str) -> tuple[str, ...]:
    """What a column's marks stand for, of runs that differ in nothing but the seed."""
    found: tuple[str, ...] = getattr(group.runs[0].access, COLUMNS[column][0])
    return found


def mark_of(access: Access, column: str) -> str:
    """The mark of a run in a column."""
    name, _, meanings, _ = COLUMNS[column]
    return mark(getattr(access, name), meanings)


def marks_of(group: Group) -> list[str]:
    """The cells of `COLUMNS` beside a group."""
    return [mark_of(group.runs[0].access, column) for column in COLUMNS]


def mark_notes(groups: Sequence[Group]) -> list[str]:
    """What the marks beside these groups mean."""
    return [_note(column, groups) for column in COLUMNS]


def _note(column: str, groups: Sequence[Group]) -> str:
    _, papers, meanings, none = COLUMNS[column]
    found = dict.fromkeys(word for group in groups for word in words_of(group, column))
    said: dict[str, list[str]] = {}
    for word, (sign, meaning) in meanings.items():
        if word in found:
            said.setdefault(sign, []).append(meaning)
    if not set(found) <= set(meanings):
        said[UNSAID] = ["the method does not say it"]
    told = "; ".join(f"{sign} {' or '.join(texts)}" for sign, texts in said.items())
    return f"{column} (papers: {papers}): {told or none}"


def marks_beside(methods: Sequence[tuple[str, Group]], column: str) -> dict[str, str]:
    """A column's mark for each name; where groups of one name differ, theirs side by side.

    Args:
        methods: name and group, such as the rows of a pivot.
    """
    found: dict[str, dict[str, None]] = {}
    for name, group in methods:
        found.setdefault(name, {})[mark_of(group.runs[0].access, column)] = None
    return {
        name: next(iter(marks)) if len(marks) == 1 else " / ".join(each or "–" for each in marks)
        for name, marks in found.items()
    }
