"""A run of four tasks whose snapshots are known entry by entry."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import cl_runner.build
from cl_runner.sparse.bits import bits_of, weights_hash
from cl_runner.sparse.snapshots import Change, Snapshot, read_snapshot, write_snapshot

Weights = dict[str, Tensor]

#: What `four_tasks` gives.
Run = tuple[Path, list[Weights], dict[str, dict[str, Tensor]]]

#: Task -> what it stores: a number of random entries of a tensor, or None for all of them.
TASKS: dict[str, dict[str, int | None]] = {
    "books": {"layer.0.w": 900, "layer.1.w": 5, "head.w": None},
    "dvd": {"layer.0.w": 700, "layer.1.w": 40, "head.w": 3},
    "music": {"layer.0.w": 800, "head.w": None},
    "toys": {"layer.1.w": 100},
}


def starting_weights(dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = {"layer.0.w": (50, 60), "layer.1.w": (20, 30), "head.w": (7,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def copied(weights: Weights) -> Weights:
    return {name: weight.clone() for name, weight in weights.items()}


def store(path: Path, before: Weights, after: Weights, index: dict[str, Tensor | None], task: str, number: int) -> None:
    """The snapshot of a change from `before` to `after` at positions of some tensors."""
    changes = {}
    for name, at in index.items():
        old, new = ((side[name] if at is None else side[name].view(-1)[at]) for side in (before, after))
        changes[name] = Change(new, at, old)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_snapshot(
        path,
        changes,
        model=before,
        task=task,
        index=number,
        base=weights_hash(starting_weights(before["head.w"].dtype)),
        parent=weights_hash(before),
        weights=weights_hash(after),
        method={"pe": {"fraction": 0.1}},
    )


def train(path: Path, before: Weights, task: str, number: int) -> tuple[Weights, dict[str, Tensor]]:
    """A task as in `TASKS`, a fifth of whose entries keep their value: (weights after it, where they changed)."""
    generator = torch.Generator().manual_seed(number + 1)
    after, index, moved = copied(before), {}, {}
    for name, count in TASKS[task].items():
        size = before[name].numel()
        at = torch.arange(size) if count is None else torch.randperm(size, generator=generator)[:count].sort().values
        moves = torch.rand(at.numel(), generator=generator) < 0.8
        steps = torch.randn(at.numel(), generator=generator).to(before[name]) * moves
        after[name].view(-1)[at] += steps
        index[name] = None if count is None else at
        moved[name] = bits_of(after[name]) != bits_of(before[name])
    store(path, before, after, index, task, number)
    return after, moved


def four_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """(a run of the four tasks on fp32 weights, the weights before and after each, where each changed them)."""
    folder = tmp_path / "run"
    history, moved = [starting_weights()], {}
    for number, task in enumerate(TASKS):
        after, moved[task] = train(folder / "snapshots" / f"{number:02d}_{task}.safetensors", history[-1], task, number)
        history.append(after)

    class Model(nn.Module):
        def named_parameters(self, *_: object, **__: object):  # type: ignore[no-untyped-def]
            yield from ((name, nn.Parameter(weight)) for name, weight in starting_weights().items())

    monkeypatch.setattr(cl_runner.build, "rebuild", lambda run, begun: SimpleNamespace(model=Model()))
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder, history, moved


def assert_same_bits(found: Weights, expected: Weights) -> None:
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(bits_of(found[name]), bits_of(weight)), name


def read(run: Path, number: int) -> Snapshot:
    return read_snapshot(sorted((run / "snapshots").iterdir())[number])
