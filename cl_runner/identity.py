"""What tells runs apart: the part of a configuration that says what is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Keys that say where and how often a run writes, not what it computes: they are no part of its identity.
NOT_IDENTITY = (
    "root",
    "data_root",
    "wandb",
    "trackers",
    "mlflow",
    "checkpoint",
    "snapshots",
    "resume",
    "reuse",
    "sweep",
)
#: The same of the hardware.
NOT_OF_HARDWARE = ("slurm", "fit", "memory_gb", "shard", "offload")
#: What came later, and the value that asks for nothing: runs that were made before are the same ones.
LATER: dict[str, dict[str, Any]] = {
    "backbone": {"gguf": None, "head": "new"},
    "task_order": {"answers_until": "end", "balanced": None},
    "evaluation": {"every_epoch": False},
    "training": {"budget": {"steps": None, "tokens": None, "seconds": None, "flops": None}},
}
#: The same of every definition of tasks.
LATER_OF_TASKS: dict[str, Any] = {"grammar": "full", "turns": "all"}
#: And of every probe.
LATER_OF_PROBES: dict[str, Any] = {"column": "text"}


def config_hash(resolved: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that identify what a resolved configuration computes."""
    identity = {key: value for key, value in resolved.items() if key not in NOT_IDENTITY}
    for group, later in LATER.items():
        kept = {key: value for key, value in identity[group].items() if key not in later or value != later[key]}
        identity[group] = kept if "balanced" in kept else {key: kept[key] for key in kept if key != "fixed"}
    for group, named in (("task", LATER_OF_TASKS), ("probe", LATER_OF_PROBES)):
        if group not in identity:  # of a part of a configuration, or one that an early version wrote
            continue
        identity[group] = {
            name: {key: value for key, value in definition.items() if (key, value) not in named.items()}
            for name, definition in identity[group].items()
        }
    hardware = {key: value for key, value in identity["hardware"].items() if key not in NOT_OF_HARDWARE}
    # The default was the CPU once; on which device a run computes its environment tells.
    identity["hardware"] = hardware | ({"device": "cpu"} if hardware.get("device") == "auto" else {})
    identity["importance"] = {key: value for key, value in identity["importance"].items() if key != "cache_gb"}
    forked = identity.pop("fork", None)  # of a whole run there is nothing to say, and once nothing was said
    if forked is not None and forked["run"] is not None:
        # Where the other run lies is no part of it, which run it is: <order>/<backbone>/<method>/seed<seed>-<hash>.
        identity["fork"] = ["/".join(Path(forked["run"]).parts[-4:]), forked["at"]]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
