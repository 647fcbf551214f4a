"""Runs of snapshots on small weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cl_runner.sparse.bits import weights_hash
from cl_runner.sparse.snapshots import Change, write_snapshot

METHOD = {"pe": {"fraction": 0.005}}


def starting_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "encoder.weight": torch.randn(6, 5, generator=generator),
        "head.weight": torch.randn(4, generator=generator).bfloat16(),
        "scale": torch.randn((), generator=generator),
    }


def learn(
    path: Path,
    weights: dict[str, Tensor],
    task: str,
    index: int,
    base: str,
    positions: dict[str, list[int] | None],
) -> int:
    """Change `weights` at random, in whole tensors (None) or at positions, and write the snapshot."""
    parent = weights_hash(weights)
    generator = torch.Generator().manual_seed(100 + index)
    changes = {}
    for name, where in positions.items():
        new = torch.randn(weights[name].shape, generator=generator).to(weights[name])
        if where is None:
            old = weights[name].clone()
            weights[name].copy_(new)
            changes[name] = Change(weights[name], None, old)
        else:
            at = torch.tensor(where)
            old = weights[name].view(-1)[at]
            weights[name].view(-1)[at] = new.view(-1)[at]
            changes[name] = Change(weights[name].view(-1)[at], at, old)
    return write_snapshot(
        path,
        changes,
        model=weights,
        task=task,
        index=index,
        base=base,
        parent=parent,
        weights=weights_hash(weights),
        method=METHOD,
    )


def make_run(run: Path, weights: dict[str, Tensor], first: dict[str, list[int] | None]) -> list[dict[str, Tensor]]:
    """Three tasks: `first`, a sparse change, no change at all. The weights before and after each."""
    (run / "snapshots").mkdir(parents=True)
    base = weights_hash(weights)
    history = [{name: weight.clone() for name, weight in weights.items()}]
    sparse: dict[str, list[int] | None] = {next(iter(weights)): [0, 3, 7]}
    for index, (task, change) in enumerate({"books": first, "dvd": sparse, "music": {}}.items()):
        learn(run / "snapshots" / f"{index:02d}_{task}.safetensors", weights, task, index, base, change)
        history.append({name: weight.clone() for name, weight in weights.items()})
    return history


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype and torch.equal(found[name], weight), name


def snapshots(run: Path) -> list[Path]:
    return sorted((run / "snapshots").iterdir())
