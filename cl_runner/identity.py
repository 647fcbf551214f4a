"""What tells runs apart: the part of a configuration that says what is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: Keys that say where and how often a run writes, not what it computes: they are no part of its identity.
NOT_IDENTITY = ("root", "data_root", "wandb", "checkpoint", "snapshots", "resume")


def config_hash(resolved: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that identify what a resolved configuration computes."""
    identity = {key: value for key, value in resolved.items() if key not in NOT_IDENTITY}
    # What came later and is not asked for: runs that were made before are the same ones.
    training, order = identity["training"], identity["task_order"]
    if all(amount is None for amount in training.get("budget", {}).values()):
        identity["training"] = {key: value for key, value in training.items() if key != "budget"}
    if order.get("balanced") is None:
        identity["task_order"] = {key: value for key, value in order.items() if key not in ("balanced", "fixed")}
    identity["hardware"] = {key: value for key, value in identity["hardware"].items() if key != "slurm"}
    identity["importance"] = {key: value for key, value in identity["importance"].items() if key != "cache_gb"}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
