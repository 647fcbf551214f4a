"""Published numbers beside a run: what other methods reached at the same setting, marked as runs of their own.

`report RUNS --publish NAME --beside` puts them into beside.json, which is part of the package. A setting is all that a
configuration says of what is computed but method, seed and machine, so that an override makes another one, of which
nothing is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.digests import replace_file
from cl_runner.identity import config_hash
from cl_runner.report.folder import Run
from cl_runner.report.grouping import names_of
from cl_runner.report.numbers import values_of
from cl_runner.report.publish import replaced
from cl_runner.report.tables import cell_of, cell_text
from cl_runner.report.text_table import Table

#: Setting -> name of the publication, its command, and a row for each method.
PLACE = Path(__file__).with_name("beside.json")
#: What is shown of each, in this order.
SHOWN = (
    "union_accuracy",
    "plasticity/diagonal",
    "forgetting/chaudhry18",
    "first_task/after_first",
    "first_task/last",
)


#: Groups of a configuration without which there is no setting: files of strangers, and of early versions.
GROUPS = ("backbone", "task", "task_order", "training", "importance", "hardware")


def setting_of(config: Mapping[str, Any]) -> str | None:
    """Eight hexadecimal digits that runs share whose numbers may stand beside each other.

    Args:
        config: of a run, resolved.
    """
    if any(not isinstance(config.get(group), Mapping) for group in GROUPS):
        return None
    shared = replaced(config, {f"{config['data_root']}/": "DATA/"})
    shared = {key: value for key, value in shared.items() if key not in ("method", "seed")}
    shared["task_order"] = {**shared["task_order"], "joint": False, "restart": False}
    shared["hardware"] = {"precision": shared["hardware"].get("precision")}
    return config_hash(shared)


def add(runs: Sequence[Run], name: str, command: str, place: Path | None = None) -> Path:
    """Put the numbers of runs into the package's file, in place of what was published under this name.

    Args:
        name: of the publication, as in outputs/published/<name>.
        command: the line, or lines, that made the runs.
    """
    place = place or PLACE
    known = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    found: dict[str, dict[str, Any]] = {key: entry for key, entry in known.items() if entry["name"] != name}
    for run in runs:
        setting = setting_of(run.config)
        if setting is None:
            raise ValueError(f"{run.folder} was made by an early version, whose setting is not known. Leave it out")
        entry = found.setdefault(setting, {"name": name, "command": command, "rows": {}})
        row = entry["rows"].setdefault(_label(run), {})
        row[str(run.seed)] = {metric: values_of(run)[metric] for metric in SHOWN if metric in values_of(run)}
    replace_file(place, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return place


def _label(run: Run) -> str:
    """The method, and what was typed of its options."""
    typed = [text.split(".", 2)[2] for text in run.overrides if text.startswith("method.") and text.count(".") > 1]
    return ", ".join([names_of(run)["method"], *typed])


def beside_table(run: Run, place: Path | None = None) -> Table | None:
    """A finished run's numbers and below them the published ones of its setting; None where there are none."""
    place = place or PLACE
    if run.status == "failed" or not run.tasks or run.done < len(run.tasks) or not place.is_file():
        return None
    entry = json.loads(place.read_text(encoding="utf-8")).get(setting_of(run.config) or "")
    if entry is None:
        return None
    rows = [[_label(run), "this run, 1", *(cell_text(each, cell_of(_values([run.metrics], each))) for each in SHOWN)]]
    for label, seeds in entry["rows"].items():
        cells = [cell_text(each, cell_of(_values(seeds.values(), each))) for each in SHOWN]
        rows.append([label, f"published, {len(seeds)}", *cells])
    notes = [
        f"Published: runs of their own at this setting (outputs/published/{entry['name']}), mean ± sample standard "
        "deviation over so many seeds. These lines run them again:",
        *entry["command"].split("; "),
    ]
    return Table(["method", "runs", *SHOWN], rows, "Beside published runs of this setting, in %", 2, notes)


def _values(found: Any, metric: str) -> list[float]:
    return [numbers[metric] for numbers in found if metric in numbers]
