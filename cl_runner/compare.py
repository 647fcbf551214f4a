"""The command `compare`: why two runs differ, from what their folders hold. Nothing is run again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.arguments import Parser
from cl_runner.damage import read_config
from cl_runner.digests import read_json, readable
from cl_runner.identity import NOT_IDENTITY, NOT_OF_HARDWARE
from cl_runner.intervals import read_predictions
from cl_runner.overrides import COMMAND
from cl_runner.plain import plain_lines
from cl_runner.report.grouping import flat
from cl_runner.report.text_table import Table, show

#: What stands for a value that one of the runs does not have.
NONE = "-"
#: Lines of a section on the screen; `--json` has all.
SHOWN = 30


def _parser() -> Parser:
    parser = Parser(
        prog=f"{COMMAND} compare",
        description="Why two runs differ: configuration, program, machine, data and checkpoints, and from where on "
        "their numbers do. Finished or not.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0, or 2 after one message for a folder that is no run's, or cannot be read."""
    try:
        asked = _parser().parse_args(list(arguments))
        found = differences(*asked.runs)
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        _show(asked.runs, found)
    return 0


def differences(one: Path, other: Path) -> dict[str, Any]:
    """What is not alike in two runs, section by section: name -> [of the first, of the second]; and where it shows.

    Raises:
        ValueError: a folder is no run's, or a file of it is damaged.
    """
    for folder in (one, other):
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"{folder} is no run: it has no config.yaml")
    configurations = [dict(flat(read_config(folder / "config.yaml"))) for folder in (one, other)]
    asked = _unlike(*configurations)
    apart = {key for key in asked if _is_apart(key)}
    return {
        "configuration": {key: values for key, values in asked.items() if key not in apart},
        "not of a run's identity": {key: asked[key] for key in asked if key in apart},
        "program and machine": _unlike(*(_environment(folder) for folder in (one, other))),
        "data": _unlike(*(_data(folder) for folder in (one, other))),
        "numbers": {**_course(one, other), **_answers(one, other), **_ends(one, other)},
    }


def _is_apart(key: str) -> bool:
    """Whether a key says where or how a run goes, not what it computes."""
    top, _, rest = key.partition(".")
    return top in NOT_IDENTITY or (top == "hardware" and rest.partition(".")[0] in NOT_OF_HARDWARE)


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [one.get(key, NONE), other.get(key, NONE)]
        for key in dict.fromkeys([*one, *other])
        if one.get(key, NONE) != other.get(key, NONE)
    }


def _environment(folder: Path) -> dict[str, Any]:
    """Versions, code, machine: all that environment.json knows but the command and when it began."""
    path = folder / "environment.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    git = content.get("git") or {}
    said = {"python": content.get("python"), "platform": content.get("platform")}
    said |= {"code of cl_runner": str(content.get("code"))[:12], "commit": str(git.get("commit"))[:12]}
    said |= {"changed since the commit": git.get("dirty")} if git else {}
    return said | dict(content.get("packages") or {}) | dict(content.get("hardware") or {})


def _data(folder: Path) -> dict[str, str]:
    """Digests of each task's examples and of each file of the checkpoints that were read."""
    path = folder / "data.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    found = {f"examples of {task}": digest[:12] for task, digest in content.get("fingerprints", {}).items()}
    for key, files in content.get("checkpoints", {}).items():
        found |= {f"{key}: {name}": digest[:12] for name, digest in files.items()}
    return found


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if path.is_file():
        with readable(path), path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def _course(one: Path, other: Path) -> dict[str, list[Any]]:
    """From which training step and which row of the matrix on the numbers are not the same."""
    steps, rows = [], []
    for folder in (one, other):
        lines = list(_lines(folder))
        steps.append([(line["task"], line["step"], line["loss"]) for line in lines if line["kind"] == "train"])
        rows.append([(line["after"], line["accuracy"]) for line in lines if line["kind"] == "evaluation"])
    found: dict[str, list[Any]] = {}
    for (task, step, loss), (_, _, its) in zip(*steps, strict=False):
        if loss != its:
            found[f"loss, from step {step} (task {task}) on"] = [loss, its]
            break
    if len(steps[0]) != len(steps[1]):
        found["training steps"] = [len(steps[0]), len(steps[1])]
    for (after, accuracy), (_, its) in zip(*rows, strict=False):
        unlike = _unlike(accuracy, its)
        if unlike:
            name = next(iter(unlike))
            found[f"accuracy, from the evaluation after {after} on: {name}"] = unlike[name]
            break
    if len(rows[0]) != len(rows[1]):
        found["evaluations"] = [len(rows[0]), len(rows[1])]
    return found


def _answers(one: Path, other: Path) -> dict[str, list[Any]]:
    """How many kept predictions of the last evaluation that both have are other ones."""
    counts = [len(list((folder / "predictions").glob("*.jsonl"))) for folder in (one, other)]
    if not min(counts):
        return {}
    kept = [read_predictions(folder, min(counts) - 1) for folder in (one, other)]
    common = [task for task in kept[0] if len(kept[0][task]) == len(kept[1].get(task, ()))]
    whole = sum(len(kept[0][task]) for task in common)
    other_ones = sum(a[0] != b[0] for task in common for a, b in zip(kept[0][task], kept[1][task], strict=True))
    return {f"answers that are other ones, of {whole}": [0, other_ones]} if other_ones else {}


def _ends(one: Path, other: Path) -> dict[str, list[Any]]:
    """Derived numbers of finished runs, and the hash of all weights."""
    ends = []
    for folder in (one, other):
        path = folder / "summary.json"
        summary = read_json(path) if path.is_file() else {}
        said = dict(summary.get("metrics", {}))
        if "weights_sha256" in summary:
            said["weights at the end"] = str(summary["weights_sha256"])[:12]
        ends.append(said)
    return _unlike(*ends) if all(ends) else {}


def _show(runs: Sequence[Path], found: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    causes = [name for name in ("configuration", "program and machine", "data") if found[name]]
    print("\n".join(f"{letter}: {run}" for letter, run in zip("AB", runs, strict=True)))
    if not found["numbers"]:
        print("Their numbers are the same, as far as both have them.")
    elif causes:
        print(f"Their numbers differ. What differs as well: {', '.join(causes)}.")
    else:
        print(
            "Their numbers differ, and nothing that is recorded does: a GPU's sums (hardware.deterministic=true), "
            "a file read from elsewhere, or a fault. Please report it with this page."
        )
    for name, rows in found.items():
        if not rows:
            continue
        listed = [[key, *(_text(value) for value in values)] for key, values in list(rows.items())[:SHOWN]]
        more = [f"and {len(rows) - SHOWN} more (--json has all)"] if len(rows) > SHOWN else []
        show(Table(["", "A", "B"], listed, title=name, left=3, notes=more))


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "null" if value is None else str(value)
