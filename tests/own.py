"""A current folder of the user's own, and what conf/README.md prints, for tests."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import TINY, run_command

from cl_runner.compose import compose
from cl_runner.groups import CONF

README = (CONF / "README.md").read_text(encoding="utf-8")
SMALL = [o for o in TINY if not o.startswith("task_order")]
DOMAINS = ("phones", "routers", "watches")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"conf/README.md has no section {title!r}"
    return found[1]


def write_blocks(title: str, folder: Path) -> dict[str, str]:
    """The files that a section prints, written as they stand there."""
    found = dict(re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL))
    for name, text in found.items():
        write(folder / name, text)
    return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def commands(title: str) -> list[list[str]]:
    """The arguments of the lines that a section says to type."""
    lines = re.findall(r"^python -m cl_runner (.*)$", section(title), re.MULTILINE)
    assert lines
    return [shlex.split(line) for line in lines]


def write_tickets(folder: Path) -> None:
    for domain in DOMAINS:
        for split, count in (("train", 12), ("test", 8)):
            rows = [f"the {domain} of ticket {i} {'broke' if i % 2 else 'works'},{i % 2}" for i in range(count)]
            write(folder / "tickets" / domain / f"{split}.csv", "\n".join(["text,label", *rows, ""]))


def summary_of(arguments: Sequence[str], folders: Sequence[Path] = ()) -> dict[str, Any]:
    folder = compose(arguments, folders).folder
    assert (folder / "COMPLETED").is_file()
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def finished(arguments: Sequence[str], folder: Path) -> tuple[dict[str, Any], Path]:
    assert run_command(["--config-dir", str(folder / "mine"), *arguments]) == 0
    request = compose(arguments, [folder / "mine"])
    summary: dict[str, Any] = json.loads((request.folder / "summary.json").read_text())
    return summary, request.folder
