"""One table: every method on every family that it claims, through every invariant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conformance import ROWS, Cell, Row, configured, fits, moved
from tiny import tiny_learner

from cl_runner.groups import options


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Of each row the families that it names; with --every-family all that it claims."""
    if "cell" not in metafunc.fixturenames:
        return
    every = metafunc.config.getoption("--every-family")
    cells = [
        (row, family)
        for row in ROWS
        for family in (row.claimed if every else row.families)
        if family not in row.refuses
    ]
    metafunc.parametrize("cell", cells, ids=[f"{row.choice}-{family}" for row, family in cells], indirect=True)


@pytest.fixture(scope="module")
def cell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cell:
    row, family = request.param
    return Cell(row, family, tmp_path_factory.mktemp("cell"))


def test_the_table_has_every_method() -> None:
    assert {row.choice for row in ROWS if "[" not in row.choice} == set(options("method"))
    assert all(set(row.families) <= set(row.claimed) for row in ROWS)


def test_the_loss_falls(cell: Cell) -> None:
    for before, after in cell.losses[: 1 if cell.row.trained == 0 and not cell.learner.added else 2]:
        assert after < before or cell.row.choice == "icl"


def test_only_the_allowed_weights_move(cell: Cell) -> None:
    flags, row, learner = moved(cell), cell.row, cell.learner
    backbone = {name: f for name, f in flags.items() if name not in learner.added}
    share = sum(int(f.sum()) for f in backbone.values()) / sum(backbone[name].numel() for name in learner.measurable() if name in backbone)
    assert share <= 1.3 * row.trained
    assert share > 0.5 if row.trained == 1 else share > 0 or row.trained == 0
    for name, flag in flags.items():
        allowed = torch.zeros_like(flag)
        if name in cell.second.allowed:
            index = cell.second.allowed[name]
            allowed[slice(None) if index is None else index] = True
        assert not bool((flag & ~allowed).any()), f"{name}: a fixed weight moved"
        assert not bool(flag.any()) or fits(row.only, name), f"{name}: nothing of it may move"
    # What was there before the task began is what the task before left.
    for name, values in cell.between.items():
        assert name in learner.added or torch.equal(cell.second.before[name], values), name
    part = 0 < row.trained < 1 or any(bool(flags[name].any()) for name in learner.added)
    assert ("certificate" in cell.second.detail) == part
    if part:
        proof = cell.second.detail["certificate"]
        assert proof["holds"] and proof["changed"] == sum(int(flag.sum()) for flag in flags.values())


def test_a_task_goes_on_from_its_middle_with_the_same_bits(cell: Cell) -> None:
    if not cell.second.losses:
        return
    learner, method, losses = cell.again(cell.second.inside, cell.second.training)
    assert losses == cell.second.losses[2:]
    found = learner.weights()
    assert all(torch.equal(found[name], values) for name, values in cell.second.after.items())
    same(method.state_dict(), cell.state, 0.0)


def test_smaller_passes_learn_the_same(cell: Cell) -> None:
    if cell.row.by_pass:
        pytest.skip(cell.row.by_pass)
    if not cell.second.losses:
        return
    learner, method, losses = cell.again(cell.second.prepared, None, "base.micro_batch=4", "incremental.micro_batch=4")
    assert losses == pytest.approx(cell.second.losses, rel=1e-4)
    for name, values in learner.weights().items():
        torch.testing.assert_close(values, cell.second.after[name], rtol=1e-3, atol=1e-5, msg=lambda m: f"{name}: {m}")
    same(method.state_dict(), cell.state, 1e-3)


def same(found: object, wanted: object, tolerance: float, scale: float = 1.0) -> None:
    """Two states: draws and counters are equal, numbers of the weights' kind to rounding."""
    assert type(found) is type(wanted)
    if isinstance(found, dict):
        assert found.keys() == wanted.keys()
        size = max((float(one.abs().max()) for one in wanted.values() if isinstance(one, torch.Tensor)), default=scale)
        for key in found:
            same(found[key], wanted[key], tolerance, size)
    elif isinstance(found, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other, tolerance, scale)
    elif isinstance(found, torch.Tensor) and tolerance and found.is_floating_point():
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * scale)
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, wanted)
    else:
        assert found == wanted
