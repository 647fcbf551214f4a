"""What a run read: its tasks' rows, used and left out, and what may not be meant, as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from cl_runner.report.folder import Run
from cl_runner.report.text_table import Table

#: Labels that a cell counts one by one.
_COUNTED = 10


def data_tables(run: Run) -> list[Table]:
    """The rows of every split by task, and everything odd in a sentence each; empty for runs without an account."""
    rows: list[list[str]] = []
    odd: list[list[str]] = []
    for task, found in run.data.items():
        for split, account in found["splits"].items():
            rows.append(
                [
                    task,
                    split,
                    _files(account["files"]),
                    f"{account['rows']:,}",
                    f"{account['used']:,}",
                    _counts(account["left_out"]),
                    _labels(account["labels"]),
                ]
            )
            odd += [[task, split, note, f"{count:,}"] for note, count in account["notes"].items()]
        odd += [[task, "all", note, f"{count:,}"] for note, count in found["notes"].items()]
        odd += [[task, "all", kind, ", ".join(labels)] for kind, labels in found["classes"].items()]
    if not rows:
        return []
    header = ["task", "split", "files", "rows", "used", "left out", "labels"]
    tables = [Table(header, rows, left=3)]
    return [*tables, Table(["task", "split", "what", "how many, or which"], odd, left=3)] if odd else tables


def _files(paths: list[str]) -> str:
    """The names of the files, each with its folder."""
    names = ["/".join(PurePath(path).parts[-2:]) for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counted.items())


def _labels(counted: Mapping[str, Any] | None) -> str:
    """How often each label is there, or how many there are and how often the rarest and the most frequent one."""
    if not counted:
        return "any text"
    if len(counted) <= _COUNTED:
        return _counts(counted)
    return f"{len(counted)} labels, {min(counted.values()):,} to {max(counted.values()):,} each"
