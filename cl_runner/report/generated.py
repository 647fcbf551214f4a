"""What the model wrote of old tasks in the place of kept data, as a page shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cl_runner.digests import digest_of, read, readable
from cl_runner.plain import plain
from cl_runner.report.folder import Run
from cl_runner.report.text_table import Table

#: Examples that are shown of each old task before each new one: kept, and dropped.
_SHOWN = {"kept": 3, "dropped": 2}
#: Characters of a text that are shown.
_LONGEST = 300


def generated_tables(run: Run) -> list[Table]:
    """How many texts were written, kept and dropped; the files they lie in; a few of them. Empty if there are none."""
    counts: list[list[str]] = []
    texts: list[list[str]] = []
    files: list[list[str]] = []
    for path in sorted((run.folder / "generated").glob("*.jsonl")):
        content = read(path)
        with readable(path):
            lines = [json.loads(line) for line in content.split(b"\n") if line]
            accounts = [line for line in lines if line["kind"] == "account"]
            counts += [_account(line) for line in accounts]
            texts += [[accounts[0]["before"], *cells] for cells in _texts(lines)]
        files.append([path.relative_to(run.folder).as_posix(), f"{len(lines) - len(accounts):,}", digest_of(content)])
    if not counts:
        return []
    return [
        Table(["before", "of", "written", "kept", "of them to learn from", "to select by", "dropped"], counts, left=2),
        Table(["file", "texts in it", "SHA-256"], files, left=1, long=2),
        Table(["before", "of", "", "text", "answer, or why it was dropped"], texts, left=5, long=3),
    ]


def _account(line: Mapping[str, Any]) -> list[str]:
    kept, dropped = line["kept"], line["dropped"]
    numbers = [line["asked"], sum(kept.values()), kept.get("train", 0), kept.get("validation", 0)]
    reasons = ", ".join(f"{plain(reason)} {count:,}" for reason, count in dropped.items())
    return [line["before"], line["task"], *(f"{number:,}" for number in numbers), reasons or "-"]


def _texts(lines: list[dict[str, Any]]) -> list[list[str]]:
    """The first of each kind of each old task."""
    seen: dict[tuple[str, str], int] = {}
    rows = []
    for line in lines:
        kind, task = line["kind"], line["task"]
        place = seen[kind, task] = seen.get((kind, task), 0) + 1
        if place <= _SHOWN.get(kind, 0):
            said = line["answer"] if kind == "kept" else line["reason"]
            use = {"train": "learned", "validation": "selects"}.get(line.get("use", ""), kind)
            rows.append([task, use, _short(line["text"]), plain(said)])
    return rows


def _short(text: str) -> str:
    return plain(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
